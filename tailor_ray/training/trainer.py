"""What Ray Train runs: the function of its workers, and its TorchTrainer without two processes that serve nothing here.

A `fit()` starts a controller, a placement group cleaner, a data set manager, a barrier for reports and the workers, and
each imports Ray Train. The cleaner (11 of 28 s to the first step, on 2 cores without bytecode) frees the workers'
resources should the controller die while its driver lives on; our driver starts no second run before the first has
ended, and frees them by ending. The manager hands out shards of Ray data sets; our workers read committed parts.
"""

from __future__ import annotations

import gc
import logging
from typing import Any

from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

UNUSED = {"PlacementGroupCleanerCallback", "DatasetsCallback"}


class LeanTrainer(TorchTrainer):
    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in UNUSED]


class DeviceBackend(TorchConfig):
    """Workers talk by NCCL where worker 0 sees a GPU, else by gloo: a cluster may count GPUs that torch cannot use."""

    @property
    def backend_cls(self) -> Any:
        return _Backend


class _Backend(_TorchBackend):  # of Ray 2.60: its `on_start` reads the configuration's `backend`
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        backend_config.backend = "nccl" if worker_group.execute_single(0, _sees_gpu) else "gloo"
        super().on_start(worker_group, backend_config)


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def take_jobs(settings: dict[str, Any]) -> None:
    """One worker's loop: do the queue's jobs, one after the other, until there are no more."""
    import ray.train

    # with its level, or a warning would count as chatter where the driver reads it
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True)

    from tailor_ray.training.worker import WorkerTask, run_worker  # torch may be imported here

    first = ray.train.get_context().get_world_rank() == 0
    number = 0
    while (job := ray.get(settings["queue"].get.remote(number))) is not None:
        result = run_worker(WorkerTask(**job))
        if first:
            ray.get(settings["queue"].finish.remote(number, result))
        del result
        gc.collect()  # the last job's model and optimizer refer to each other
        number += 1
