"""What the driver does when training fails: a shortage of memory halves the batch, other losses are tried again."""

from dataclasses import replace

import pytest
import torch
from ray.exceptions import OutOfMemoryError

from tailor_ray.config import load_config
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import CorruptionError, LeaseLost, StageError, Stopped
from tailor_ray.models import ModelRef
from tailor_ray.observe.faults import fault_in_text
from tailor_ray.storage import FileEntry, Manifest, PartsDigest, Store, commit_manifest
from tailor_ray.training.launch import Trainers, TrainJob, fingerprint
from tailor_ray.training.worker import DeviceBackend
from tailor_ray.training.worker_group import WorkerGroup, WorkersFailed, is_out_of_memory

STUDENT = ModelRef("/nowhere", (FileEntry("config.json", "ab", 1),))
FOUND = {
    "steps": 1, "tokens": 1, "loss_first": 1.0, "loss_last": 1.0, "truncated": 2, "skipped": 0, "model": STUDENT,
    "step_kept": 1, "with_pair_trained": 0, "layout": "tree", "peak_memory_bytes": 0,
    "times": {"ready": 0.0, "stepping": 0.0, "in_steps": 0.0},
}  # fmt: skip


class Failing(Trainers):
    """Workers that fail as often as there are errors, and remember the settings that they were given."""

    def __init__(self, *errors):
        super().__init__()
        self.errors = list(errors)
        self.given = []

    def _try(self, job, config, on_progress):
        self.given.append(config.micro_batch_tokens)
        if self.errors:
            raise self.errors.pop(0)
        return FOUND


MEMORY, LOST = WorkersFailed("OutOfMemoryError", True), WorkersFailed("worker lost", False)


def job(tmp_path, **settings):
    store = Store.open(str(tmp_path))
    return TrainJob(TrainingConfig(**{"micro_batch_tokens": 4096} | settings), STUDENT, store, store, 1, 1)


def test_a_shortage_of_memory_halves_the_micro_batch_and_a_lost_worker_does_not(tmp_path):
    trainers = Failing(MEMORY, LOST, MEMORY)
    result = trainers.train(job(tmp_path))
    assert (result.metrics["steps"], result.model, result.metrics["truncated"]) == (1, STUDENT, 2)
    assert trainers.given == [4096, 2048, 2048, 1024]


def test_after_so_many_failures_the_stage_ends_and_says_what_to_lower(tmp_path):
    trainers = Failing(MEMORY, MEMORY, MEMORY)
    with pytest.raises(StageError, match=r"failed 2 times.*lower training\.micro_batch_tokens"):
        trainers.train(job(tmp_path, max_failures=1))
    assert trainers.given == [4096, 2048]


def worker_error(text):
    """As the worker group makes it of what its workers printed."""
    return WorkersFailed(text, is_out_of_memory(text), fault_in_text(text))


def test_a_full_disk_is_not_trained_for_again(tmp_path):
    trainers = Failing(worker_error("OSError: [Errno 28] No space left on device: '/runs/x'"))
    with pytest.raises(Stopped, match=r"a disk is full .*No space left.*; what was committed is kept; make space"):
        trainers.train(job(tmp_path))
    assert len(trainers.given) == 1


def test_storage_that_refuses_for_a_moment_is_waited_for_and_uses_up_no_retry(tmp_path, caplog):
    trainers = Failing(worker_error("OSError: [Errno 30] Read-only file system: '/runs/x'"))
    assert trainers.train(job(tmp_path, max_failures=0)).metrics["steps"] == 1
    assert len(trainers.given) == 2
    assert "Read-only file system" in caplog.text
    assert "training waits" in caplog.text


def test_what_surely_does_not_fit_is_said_before_anything_is_computed(tmp_path):
    huge = ModelRef("/nowhere", (FileEntry("model.safetensors", "ab", 1 << 60),))
    trainers = Failing()
    with pytest.raises(Stopped, match=r"at least \d+\.\d\d GiB to .* are free.*Make space"):
        trainers.train(replace(job(tmp_path), student=huge))
    assert trainers.given == []


class NoRoom:
    """A cluster with one GPU where none joins."""

    wait_s = 0.0

    def could_have(self, resource):
        return 1.0

    def fit(self, bundles):
        return not any("GPU" in bundle for bundle in bundles) and len(bundles) < 3

    def wait_for(self, bundles, what):
        return self.fit(bundles)

    def shown(self):
        return "2 CPUs and 1 GPUs"


def test_too_few_gpus_are_said_and_too_few_cpus_stop_the_run(tmp_path, monkeypatch, caplog):
    from tailor_ray.training import launch

    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(launch, "WorkerGroup", NoWorkers)
    monkeypatch.setattr(NoWorkers, "do", lambda *_: FOUND)
    examples = committed(tmp_path / "examples")
    trainers = Trainers(NoRoom())
    trainers.train(replace(job(tmp_path, workers=2), examples=examples))
    assert "training takes CPUs: training.workers=2 take a GPU each, and the cluster has 1" in caplog.text
    with pytest.raises(Stopped, match=r"no room for training\.workers=3.*2 CPUs and 1 GPUs.*Add nodes, or lower"):
        trainers.train(replace(job(tmp_path, workers=3), examples=examples))


def test_what_torch_says_for_want_of_memory_is_known_as_that():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(str(refused.value).splitlines()[0])
    assert is_out_of_memory("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert is_out_of_memory("WorkerGroupError: 1 worker(s) were killed due to the node running low on memory.")
    assert not is_out_of_memory("ActorDiedError: The actor died unexpectedly before finishing this task.")


class LostToTheMemoryMonitor:
    """A worker group of Ray Train whose workers the memory monitor has ended."""

    def __len__(self):
        return 2

    def execute_async(self, *_, **__):
        raise OutOfMemoryError("2 worker(s) were killed due to the node running low on memory\nand more")


def test_workers_that_the_memory_monitor_ended_are_shut_down_without_an_error(caplog):
    """Else Ray Train would not give their place back, and the retry would wait for it for ever."""
    backend = DeviceBackend()
    backend.backend_cls().on_shutdown(LostToTheMemoryMonitor(), backend)
    assert "running low on memory" in caplog.text


def committed(folder, sha256="aa") -> Store:
    store = Store.open(str(folder))
    commit_manifest(store, Manifest("examples", 1, "", {}, {"examples": PartsDigest(1, 5, sha256)}, 0.0))
    return store


def test_a_checkpoint_belongs_to_what_is_trained_and_not_to_where_it_lies(tmp_path):
    mine = replace(job(tmp_path), examples=committed(tmp_path / "here"))
    moved = replace(mine, examples=committed(tmp_path / "there"), out=Store.open(str(tmp_path / "out")))
    assert fingerprint(moved) == fingerprint(mine)
    assert fingerprint(replace(moved, student=replace(STUDENT, uri="s3://bucket/student"))) == fingerprint(mine)
    spread = TrainingConfig(workers=2, zero_stage=3, offload_optimizer=True)
    assert fingerprint(replace(mine, config=spread)) == fingerprint(mine)
    others = [
        replace(mine, examples=committed(tmp_path / "other", "bb")),
        replace(mine, student=ModelRef("/nowhere", (FileEntry("config.json", "cd", 1),))),
        replace(mine, config=TrainingConfig(learning_rate=1e-4)),
        replace(mine, seed=2),
        replace(mine, round=2),
    ]
    assert len({fingerprint(one) for one in (mine, *others)}) == 6
    with pytest.raises(CorruptionError, match="no manifest"):
        fingerprint(job(tmp_path / "nothing"))


def test_settings_from_a_file_are_those_of_the_code(tmp_path):
    """What YAML says is read as a float; a copy with other values has what it was given."""
    file = tmp_path / "run.yaml"
    file.write_text("training: {epochs: 10, round_decay: 1, lora: {rank: 4, targets: [q_proj]}}\n")
    read = load_config(file, []).training
    examples = committed(tmp_path / "examples")
    written = TrainingConfig(lora={"rank": 4, "targets": ["q_proj"]}).model_copy(update={"epochs": 10})
    jobs = [replace(job(tmp_path), config=config, examples=examples) for config in (read, written)]
    assert (str(read.epochs), str(written.epochs)) == ("10.0", "10")
    assert fingerprint(jobs[0]) == fingerprint(jobs[1])


class NoWorkers(WorkerGroup):
    """A group without workers: its job says how far it is, and no more."""

    def __init__(self, config, gpus, out):
        self.shape = (config.workers, config.cpus_per_worker, gpus)
        self._pending = None

    @property
    def alive(self):
        return True


def test_the_first_error_is_heard_though_the_lease_is_lost(tmp_path, monkeypatch):
    """Asking the workers to stop writes a file, which without the lease may not be."""
    from tailor_ray.training import launch

    def check():
        if lost:
            raise LeaseLost("taken over")

    def work(group, task, tick):
        store.write_json("checkpoints/progress.json", {"done": 1, "steps": 2})
        lost.append(True)
        tick()

    def interrupt(step, steps, figures):
        raise KeyboardInterrupt

    lost, closed = [], []
    store = Store.open(str(tmp_path / "out"))
    mine = replace(job(tmp_path), examples=committed(tmp_path / "examples"), out=store.guarded(check), use_gpu=False)
    monkeypatch.setattr(launch, "WorkerGroup", NoWorkers)
    monkeypatch.setattr(NoWorkers, "do", work)
    monkeypatch.setattr(NoWorkers, "close", lambda self: closed.append(self))
    with pytest.raises(KeyboardInterrupt):
        Trainers().train(mine, interrupt)
    assert len(closed) == 1
