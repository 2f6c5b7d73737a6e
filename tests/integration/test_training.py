"""A round's training on real Ray Train workers: figures, export, resuming after SIGKILL, refusing to diverge."""

import os
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import StageError, Stopped
from tailor_ray.records import TRAIN_EXAMPLE_SCHEMA, to_table
from tailor_ray.storage import Store, commit_part, verify_files
from tailor_ray.storage.manifest import Manifest
from tailor_ray.training.launch import Trainers, TrainJob
from tests.training.students import make_examples, make_student

CONFIG = TrainingConfig(epochs=6, learning_rate=1e-3, batch_size=16, warmup_steps=5, checkpoint_every_steps=7)


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("training")
    make_student(folder / "student")
    examples = Store.open(str(folder / "examples"))
    commit_part(examples, "examples", 0, to_table(make_examples(60, questions=40), TRAIN_EXAMPLE_SCHEMA))
    commit_part(examples, "examples", 1, to_table(make_examples(40, seed=1, questions=40), TRAIN_EXAMPLE_SCHEMA))
    return folder, examples


def job(made, name: str, config: TrainingConfig = CONFIG) -> TrainJob:
    folder, examples = made
    return TrainJob(config, str(folder / "student"), examples, Store.open(str(folder / name)), 7, 1)


def student_hash(made, name: str) -> str:
    return Store.open(str(made[0] / name)).hash_file("student/model.safetensors")


@pytest.fixture(scope="module")
def trainers(ray_cluster):
    """Workers are kept from test to test until one of them ends them."""
    with Trainers() as trainers:
        yield trainers


@pytest.fixture(scope="module")
def undisturbed(made, trainers):
    done = []
    result = trainers.train(
        job(made, "undisturbed"), lambda step, steps, figures: done.append((step, steps, figures["loss"]))
    )
    return result, done


def test_figures_and_files(made, undisturbed):
    result, _ = undisturbed
    out = Store.open(str(made[0] / "undisturbed"))
    assert result.steps == 6 * 7
    assert result.loss_last < 0.8 * result.loss_first
    assert result.truncated == result.skipped == []
    rows = pq.read_table(out.path("steps.parquet")).to_pylist()
    assert [row["step"] for row in rows] == list(range(42))
    assert rows[-1]["loss"] == result.loss_last
    assert sum(row["tokens"] for row in rows) == result.tokens
    assert rows[0]["loss"] == pytest.approx(rows[0]["mle"] + 0.5 * rows[0]["triplet"])
    paths = {entry.path for entry in result.files}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert paths >= {f"student/{name}" for name in wanted} | {"steps.parquet"}
    verify_files(out, Manifest("train", 1, "", {}, tuple(result.files), 0.0))
    assert out.read_json("left_out.json") == {"truncated": [], "skipped": []}


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
            torn = next(Path(checkpoints.path(last)).rglob("*.pt"))
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
    assert result.steps == 42
    assert student_hash(made, "killed") == student_hash(made, "undisturbed")
    before, after = (pq.read_table(made[0] / run / "steps.parquet") for run in ("undisturbed", "killed"))
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
    history = task.out.read_json(f"checkpoints/step-{done:08d}/history.json")
    assert 0 < done < 294
    assert trainers.train(task).steps == 294
    rows = pq.read_table(task.out.path("steps.parquet")).to_pylist()
    assert [row["step"] for row in rows] == list(range(294))
    assert rows[:done] == history  # with their seconds: they were not done again


def test_divergence_ends_the_stage_and_exports_nothing(made, trainers):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0.0})
    task = job(made, "diverged", config)
    with pytest.raises(StageError, match=r"training step \d+ gave .*(nan|inf|skipped steps).*q\d+.*learning_rate"):
        trainers.train(task)
    assert not task.out.exists("student")


def test_one_of_two_workers_lost_ends_near_the_undisturbed_one(made, undisturbed, trainers):
    """Their gradient shards (ZeRO-2) come back from the checkpoint; only the order of float additions differs."""
    from safetensors.numpy import load_file

    task = job(made, "two", CONFIG.model_copy(update={"workers": 2, "zero_stage": 2}))
    killed = kill_after(task, "step-00000007.json", tear=False)
    result = trainers.train(task)
    assert killed.is_set()
    assert result.steps == 42
    rows = pq.read_table(task.out.path("steps.parquet")).to_pylist()
    assert [row["step"] for row in rows] == list(range(42))
    expected, found = (load_file(made[0] / run / "student/model.safetensors") for run in ("undisturbed", "two"))
    for name, value in expected.items():
        assert abs(found[name] - value).max() < 1e-4, name  # each moved by up to 42 · 1e-3
