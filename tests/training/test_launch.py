"""What the driver does when training fails: a shortage of memory halves the batch, other losses are tried again."""

import pytest
import torch

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import StageError
from tailor_ray.storage import Store
from tailor_ray.training.crew import WorkersFailed, is_out_of_memory
from tailor_ray.training.launch import Trainers, TrainJob

FOUND = {
    "steps": 1, "tokens": 1, "loss_first": 1.0, "loss_last": 1.0, "truncated": [], "skipped": [], "files": [],
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
    return TrainJob(TrainingConfig(micro_batch_tokens=4096, **settings), "student", store, store, 1, 1)


def test_a_shortage_of_memory_halves_the_micro_batch_and_a_lost_worker_does_not(tmp_path):
    trainers = Failing(MEMORY, LOST, MEMORY)
    assert trainers.train(job(tmp_path)).steps == 1
    assert trainers.given == [4096, 2048, 2048, 1024]


def test_after_so_many_failures_the_stage_ends_and_says_what_to_lower(tmp_path):
    trainers = Failing(MEMORY, MEMORY, MEMORY)
    with pytest.raises(StageError, match=r"failed 2 times.*lower training\.micro_batch_tokens"):
        trainers.train(job(tmp_path, max_failures=1))
    assert trainers.given == [4096, 2048]


def test_what_torch_says_for_want_of_memory_is_known_as_that():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(str(refused.value).splitlines()[0])
    assert is_out_of_memory("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert not is_out_of_memory("ActorDiedError: The actor died unexpectedly before finishing this task.")
