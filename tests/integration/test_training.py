"""A round's training on real Ray Train workers: figures, export, resuming after SIGKILL, refusing to diverge."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import CorruptionError, ModelError, StageError, Stopped
from tailor_ray.models import identify, read_model, resolve
from tailor_ray.storage import Store, committed_parts, read_part
from tailor_ray.storage.store import node_cache
from tailor_ray.training.example_parts import make_examples as make_parts
from tailor_ray.training.launch import Trainers, TrainJob
from tests.training.parts import commit_stage
from tests.training.students import make_examples, make_student, make_tokenizer
from tests.training.test_example_parts import commit, examples_job

CONFIG = TrainingConfig(epochs=6, learning_rate=1e-3, batch_size=16, warmup_steps=5, checkpoint_every_steps=7)


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("training")
    student = identify(str(make_student(folder / "student")))
    tokenizer = make_tokenizer(folder / "tokenizer")
    examples = Store.open(str(folder / "examples"))
    commit_stage(examples, [make_examples(60, questions=40), make_examples(40, seed=1, questions=40)], tokenizer)
    return folder, examples, student


def job(made, name: str, config: TrainingConfig = CONFIG) -> TrainJob:
    folder, examples, student = made
    return TrainJob(config, student, examples, Store.open(str(folder / name)), 7, 1)


def steps_of(out: Store) -> pa.Table:
    log = out.child("log")
    (part,) = committed_parts(log, "steps")
    return read_part(log, part)


def student_hash(made, name: str) -> str:
    return Store.open(str(made[0] / name)).hash_file("student/model.safetensors")


@pytest.fixture(scope="module")
def trainers(ray_cluster):
    """Kept from test to test until one of them ends the workers. So tests of two workers follow each other."""
    with Trainers() as trainers:
        yield trainers


@pytest.fixture(scope="module")
def undisturbed(made, trainers):
    done = []
    task = job(made, "undisturbed")
    of_a_killed_driver = {"done": 99, "steps": 99, "loss": 0.0}
    task.out.child("checkpoints").write_json("progress.json", of_a_killed_driver)
    result = trainers.train(task, lambda step, steps, figures: done.append((step, steps, figures["loss"])))
    return result, done


def test_figures_and_files(made, undisturbed):
    result, _ = undisturbed
    out = Store.open(str(made[0] / "undisturbed"))
    assert result.metrics["steps"] == 6 * 7
    assert result.metrics["loss_last"] < 0.8 * result.metrics["loss_first"]
    assert result.metrics["truncated"] == result.metrics["skipped"] == 0
    assert result.metrics["with_pair_trained"] == 40 + 26
    rows = steps_of(out).to_pylist()
    assert [row["step"] for row in rows] == list(range(42))
    assert rows[-1]["loss"] == result.metrics["loss_last"]
    assert sum(row["tokens"] for row in rows) == result.metrics["tokens"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["mle"] + 0.5 * rows[0]["reflection"])
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {entry.path for entry in result.model.files} >= wanted
    assert read_model(out) == result.model
    assert resolve(result.model) == Path(out.path("student"))  # and its files have the hashes that it says
    assert not (node_cache() / "examples").exists() or not list((node_cache() / "examples").glob("*/"))


def test_progress_is_not_what_a_killed_driver_left(undisturbed):
    _, done = undisturbed
    assert done
    assert {steps for _, steps, _ in done} == {42}


def test_the_exported_student_learnt_and_loads_without_us(made, undisturbed):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made[0] / "undisturbed" / "student"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == tokenizer.eos_token_id

    def loss(where) -> float:
        model = AutoModelForCausalLM.from_pretrained(where)
        total = 0.0
        for example in make_examples(20):
            ids = tokenizer(example.prompt + example.rationale, return_tensors="pt").input_ids
            with torch.no_grad():
                total += model(input_ids=ids, labels=ids).loss.item()
        return total

    assert loss(folder) < 0.8 * loss(made[0] / "student")


def kill_after(task: TrainJob, record: str, tear: bool) -> threading.Event:
    """Kill worker 0 once a checkpoint is there, and cut its last checkpoint's weights off; set when it is done."""
    killed = threading.Event()
    checkpoints = task.out.child("checkpoints")

    def kill() -> None:
        while record not in checkpoints.files():
            time.sleep(0.01)
        os.kill(checkpoints.read_json("progress.json")["pid"], signal.SIGKILL)
        if tear:
            last = sorted(name for name in checkpoints.files() if name.startswith("step-"))[-1].removesuffix(".json")
            torn = next(Path(checkpoints.path(last)).rglob("*.safetensors"))
            torn.write_bytes(torn.read_bytes()[:-100])
        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    return killed


def test_a_killed_worker_goes_on_from_the_checkpoint_bit_for_bit(made, undisturbed, trainers):
    """Its last checkpoint is torn as well, so it goes on from the one before."""
    task = job(made, "killed")
    killed = kill_after(task, "step-00000014.json", tear=True)
    result = trainers.train(task)
    assert killed.is_set()
    assert result.metrics["steps"] == 42
    assert student_hash(made, "killed") == student_hash(made, "undisturbed")
    before, after = (steps_of(Store.open(str(made[0] / run))) for run in ("undisturbed", "killed"))
    assert before.column("loss").to_pylist() == after.column("loss").to_pylist()


def test_an_interrupt_stops_at_a_checkpoint_and_the_same_job_goes_on(made, trainers):
    # long enough that the interrupt, noticed within three seconds, comes before the end
    task = job(made, "interrupted", CONFIG.model_copy(update={"epochs": 42.0, "checkpoint_every_steps": 100_000}))

    def interrupt(step: int, steps: int, figures: dict) -> None:
        raise Stopped("enough for today")

    with pytest.raises(Stopped, match="enough"):
        trainers.train(task, interrupt)
    (kept,) = [name for name in task.out.child("checkpoints").files() if name.startswith("step-")]
    done = int(kept.removeprefix("step-").removesuffix(".json"))
    history = pq.read_table(task.out.path(f"checkpoints/step-{done:08d}/history.parquet")).to_pylist()
    assert 0 < done < 294
    assert trainers.train(task).metrics["steps"] == 294
    rows = steps_of(task.out).to_pylist()
    assert [row["step"] for row in rows] == list(range(294))
    assert rows[:done] == history  # with their seconds: they were not done again


def test_divergence_ends_the_stage_and_exports_nothing(made, trainers):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0.0})
    task = job(made, "diverged", config)
    with pytest.raises(StageError, match=r"training step \d+ gave .*(nan|inf|skipped steps).*q\d+.*learning_rate"):
        trainers.train(task)
    assert not task.out.exists("student")


def train_on_a_damaged_part(made, trainers, workers):
    folder, _, student = made
    examples = Store.open(str(folder / f"damaged-{workers}"))
    parts = [make_examples(20), make_examples(20, seed=1)]
    commit_stage(examples, parts, make_tokenizer(folder / "tokenizer"))
    data = bytearray(examples.read_bytes("examples-00001.parquet"))
    data[len(data) // 2] ^= 1
    examples.write_bytes("examples-00001.parquet", bytes(data))
    out = Store.open(str(folder / f"from-damaged-{workers}"))
    task = TrainJob(CONFIG.model_copy(update={"workers": workers}), student, examples, out, 7, 1)
    with pytest.raises(CorruptionError, match=r"examples-00001\.parquet does not have the hash"):
        trainers.train(task)


def test_a_damaged_example_part_is_named(made, trainers):
    train_on_a_damaged_part(made, trainers, 1)


def test_one_of_two_workers_lost_ends_near_the_undisturbed_one(made, undisturbed, trainers):
    """Their gradient shards (ZeRO-2) come back from the checkpoint; only the order of float additions differs."""
    from safetensors.numpy import load_file

    task = job(made, "two", CONFIG.model_copy(update={"workers": 2, "zero_stage": 2}))
    killed = kill_after(task, "step-00000007.json", tear=False)
    result = trainers.train(task)
    assert killed.is_set()
    assert result.metrics["steps"] == 42
    rows = steps_of(task.out).to_pylist()
    assert [row["step"] for row in rows] == list(range(42))
    expected, found = (load_file(made[0] / run / "student/model.safetensors") for run in ("undisturbed", "two"))
    for name, value in expected.items():
        assert abs(found[name] - value).max() < 1e-4, name  # each moved by up to 42 · 1e-3


def test_a_damaged_example_part_ends_both_workers(made, trainers):
    """One of them reads it, and the other must not wait for that one for ever."""
    train_on_a_damaged_part(made, trainers, 2)


@pytest.fixture(scope="module")
def committed_stages(tmp_path_factory):
    store = Store.open(str(tmp_path_factory.mktemp("stages")))
    for part in range(5):
        commit(store, part)
    return store


def test_example_parts_are_made_on_the_cluster_and_kept(ray_cluster, made, committed_stages):
    told = []
    work = examples_job(committed_stages, made[2])
    digest, counts = make_parts(work, 5, told.append)
    assert (digest.count, digest.rows) == (5, 5 * 48)
    assert sorted(part.index for part in told) == [0, 1, 2, 3, 4]
    assert all(set(part.info) == {"counts", "truncated_ids", "skipped_ids"} for part in told)
    expected = {"examples": 240, "questions": 60, "with_pair": 160, "with_pair_trained": 160, "truncated": 0}
    assert expected.items() <= counts.items()
    assert counts["skipped_ids"] == []
    times = {name: Path(work.out.path(name)).stat().st_mtime_ns for name in work.out.files() if "00002" not in name}
    work.out.write_bytes("examples-00002.parquet", b"torn")
    assert make_parts(work, 5) == (digest, counts)
    assert {name: Path(work.out.path(name)).stat().st_mtime_ns for name in times} == times


def test_what_a_task_finds_wrong_is_raised_as_it_is(ray_cluster, made, committed_stages, tmp_path):
    work = examples_job(committed_stages, made[2])
    with pytest.raises(CorruptionError, match=r"train-00005\.json is missing") as raised:
        make_parts(work, 6)
    assert type(raised.value) is CorruptionError
    gone = replace(made[2], uri=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="is not on the node"):
        make_parts(replace(work, student=gone, out=Store.open(str(tmp_path / "out"))), 2)


def test_long_prompts_are_told_once_with_the_first_names(ray_cluster, made, committed_stages, tmp_path, caplog):
    work = examples_job(committed_stages, made[2], max_length=8)
    digest, counts = make_parts(replace(work, out=Store.open(str(tmp_path / "out"))), 5)
    assert (digest.rows, counts["skipped"], len(counts["skipped_ids"])) == (0, 240, 100)
    assert counts["skipped_ids"][:4] == ["q0"] * 4
    (said,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert "240 examples were skipped" in said
    assert "raise training.max_length: q0, " in said
    assert "and 232 more" in said
