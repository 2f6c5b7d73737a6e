"""Ray Train workers that are kept from job to job, for to start them takes 15 to 25 s on two cores.

In: one worker's jobs, put in a queue. Out: worker 0's result of each.

Always holds. All workers take the same jobs in the same order. When a worker is lost the whole group ends, and a new
one is started for the same job.

`fit()` starts a controller and the workers. Their imports (Ray Train, torch, transformers, DeepSpeed) are what takes
long. Its training function, `worker.take_jobs`, takes jobs from the queue, an actor, until there are no more. Nothing
here imports torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import Callable
from typing import Any, cast

import ray
from ray.exceptions import OutOfMemoryError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tailor_ray.config.training import TrainingConfig
from tailor_ray.observe.faults import LOW_MEMORY, FaultKind, fault_in_text, one_line
from tailor_ray.storage import Store

log = logging.getLogger(__name__)

POLL_S = 1.0
LEAVE_S = 30.0
# Ray Train's own settings, read from the driver's environment; what a user has set there stays.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of 2 s, which a lost worker waits for
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # of 60 s, too short for the imports on a busy machine
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process a node, to warn of what our checkpoints cover
}


class WorkersFailed(Exception):
    """A worker was lost, or ended by an error that is not ours; `fault` is its kind where a person must mend it."""

    def __init__(self, message: str, out_of_memory: bool, fault: FaultKind | None = None) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory
        self.fault = fault


class JobQueue:
    """The actor between driver and workers: jobs in order, worker 0's results, and the end."""

    def __init__(self) -> None:
        self._jobs: list[Any] = []
        self._results: dict[int, Any] = {}
        self._closed = False
        self._changed = asyncio.Condition()

    async def put(self, job: Any) -> None:
        async with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    async def close(self) -> None:
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def get(self, number: int) -> Any:
        """Job `number` once it is there. Returns None when no more will come."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or number < len(self._jobs))
            return self._jobs[number] if number < len(self._jobs) else None

    async def finish(self, number: int, result: Any) -> None:
        async with self._changed:
            self._results[number] = result
            self._changed.notify_all()

    async def result(self, number: int) -> Any:
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._results)
            return self._results.pop(number)


class WorkerGroup:
    """Workers of one shape; `fit()` runs in a thread, for on the main thread it would take over SIGINT."""

    def __init__(self, config: TrainingConfig, gpus: bool, out: Store) -> None:
        self.shape = group_shape(config, gpus)
        self._jobs = 0
        self._pending: Any = None
        self._error: BaseException | None = None
        queue: Any = ray.remote(JobQueue)
        # beside the driver: on a worker's node it would be lost with that node, and the workers' end be missed
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = queue.options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote()
        trainer = _trainer(config, gpus, out, self._queue)
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="tailor-ray-training", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def do(self, job: Any, tick: Callable[[], None]) -> Any:
        """Have the workers do `job`; `tick` is called about every second.

        Returns worker 0's result. Raises WorkersFailed when the group ends without, or memory ran out for the queue.
        """
        number, self._jobs = self._jobs, self._jobs + 1
        try:
            ray.get(self._queue.put.remote(job))
            self._pending = self._queue.result.remote(number)
            while not ray.wait([self._pending], timeout=POLL_S)[0]:
                if not self.alive:
                    raise self._error or WorkersFailed("the workers left before the job was done", False)
                tick()
            return ray.get(self._pending)
        except OutOfMemoryError as error:
            raise workers_failed(error) from None

    def wait(self, seconds: float) -> None:
        """Wait for the job that `do` was interrupted in, `seconds` at most."""
        if self._pending is not None:
            ray.wait([self._pending], timeout=seconds)

    def close(self) -> None:
        """Let the workers go; raises nothing, for it is called while an error is on its way.

        One that hangs ends with the cluster, or with the driver's job.
        """
        try:
            if self.alive:
                ray.get(self._queue.close.remote(), timeout=LEAVE_S)
                self._thread.join(LEAVE_S)
            ray.kill(self._queue)
        except RayError as error:
            log.warning("the training workers could not be told to leave: %s", error)

    def _fit(self, trainer: Any) -> None:
        from ray.train import TrainingFailedError

        try:
            trainer.fit()
        except (TrainingFailedError, RayError) as error:
            self._error = workers_failed(error)
        except BaseException as error:  # noqa: BLE001 — handed to the calling thread, which raises it
            self._error = error


def workers_failed(error: Exception) -> WorkersFailed:
    """Of what Ray raised: it wraps what the workers said several times."""
    text = f"{type(error).__name__}: {one_line(error)}"
    return WorkersFailed(text, is_out_of_memory(text), fault_in_text(text))


def group_shape(config: TrainingConfig, gpus: bool) -> tuple[int, float, bool]:
    """What must stay the same for a group to do another job."""
    return config.workers, config.cpus_per_worker, gpus


def _trainer(config: TrainingConfig, gpus: bool, out: Store, queue: Any) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.config import FailureConfig

    from tailor_ray.training.worker import DeviceBackend, LeanTrainer, take_jobs

    resources: dict[str, float] = {"CPU": config.cpus_per_worker}
    if gpus:
        resources["GPU"] = 1
    return LeanTrainer(
        cast(Any, take_jobs),  # Ray's types know no return value
        train_loop_config={"queue": queue},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=gpus, resources_per_worker=resources),
        torch_config=DeviceBackend(),
        run_config=RunConfig(
            # a name of its own, or Ray would resume, even a finished run: resuming is ours
            name=f"training-{uuid.uuid4().hex[:12]}",
            storage_path=out.path("checkpoints/ray"),
            storage_filesystem=out.filesystem,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=2),
        ),
    )


def is_out_of_memory(text: str) -> bool:
    """Whether an error's text is that of torch, of CUDA or of Ray for want of memory."""
    return any(sign in text for sign in ("OutOfMemory", "out of memory", "can't allocate memory", LOW_MEMORY))
