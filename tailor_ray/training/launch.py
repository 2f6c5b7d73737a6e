"""A round's training, as the driver sees it: Ray Train workers started, watched, restarted, their result returned.

In: a `TrainJob`, with Ray initialised. Out: a `TrainResult`, after `<out>/student/` and `<out>/steps.parquet` were
written. What always holds: a job that was killed goes on from its last whole checkpoint when it is called again, and a
lost worker or a shortage of memory is retried so at most `max_failures` times; an interrupt in the caller's thread asks
the workers to save and stop. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from tailor_ray.config.base import result_settings
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import StageError
from tailor_ray.storage import FileEntry, Store, committed_parts

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int, dict[str, float]], None]
POLL_S = 1.0
# Ray Train's own settings, read from the driver's environment; what a user has set there stays.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of 2 s, which the end of a run waits for
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # of 60 s, too short for the imports on a busy machine
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process a node, to warn of what our checkpoints cover
}
STOP_WAIT_S = 30.0


@dataclass(frozen=True)
class TrainJob:
    """What a round's training works on.

    `student_in` is a local folder or storage URI of a Hugging Face model; `examples` holds the committed parts
    `examples-*`; `out` is the stage's folder. `special_tokens` says whether the tokenizer adds its own to a prompt (off
    for chat templates, which write them). `card` goes into the model card. `use_gpu` None takes GPUs if there are
    enough.
    """

    config: TrainingConfig
    student_in: str
    examples: Store
    out: Store
    seed: int
    round: int
    special_tokens: bool = True
    card: dict[str, str] = field(default_factory=dict)
    use_gpu: bool | None = None


@dataclass(frozen=True)
class TrainResult:
    """`truncated` and `skipped` hold question ids; `files` carry paths relative to the job's `out`."""

    steps: int
    tokens: int
    loss_first: float
    loss_last: float
    truncated: list[str]
    skipped: list[str]
    files: list[FileEntry]
    metrics: dict[str, Any]


def train(job: TrainJob, on_progress: OnProgress | None = None) -> TrainResult:
    """Train to the end. `on_progress(done, steps, figures)` is called in this thread about every second.

    Raises StageError when retries are used up, Diverged for NaN or Inf, Stopped when asked to stop, and what the
    student or the data are refused for (ModelError, DataError).
    """
    signals = job.out.child("checkpoints")
    signals.delete("stop")
    micro_batch_tokens = job.config.micro_batch_tokens
    for failures in range(job.config.max_failures + 1):
        config = job.config.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
        try:
            found = _Attempt(job, config).run(on_progress)
        except _WorkersFailed as error:
            log.warning("training failed (%d of %d retries used): %s", failures, job.config.max_failures, error)
            last = error
            if error.out_of_memory:
                micro_batch_tokens = max(16, micro_batch_tokens // 2)
            continue
        signals.delete("progress.json")
        return _result(found)
    raise StageError(
        f"training failed {job.config.max_failures + 1} times, last with: {last}; "
        + ("lower training.micro_batch_tokens" if last.out_of_memory else "look at the log, or raise max_failures")
    )


class _WorkersFailed(Exception):
    """One attempt ended by a lost worker or by an error that is not ours."""

    def __init__(self, message: str, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class _Attempt:
    """One call of `fit()`, in a thread: on the main thread it would take over SIGINT."""

    def __init__(self, job: TrainJob, config: TrainingConfig) -> None:
        self.job, self.config = job, config
        self.signals = job.out.child("checkpoints")
        self.found: dict[str, Any] | None = None
        self.error: BaseException | None = None

    def run(self, on_progress: OnProgress | None) -> dict[str, Any]:
        thread = threading.Thread(target=self._fit, name="tailor-ray-training", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL_S)
                if on_progress is not None:
                    self._report(on_progress)
        except BaseException:
            self.signals.write_bytes("stop", b"")
            thread.join(STOP_WAIT_S)
            raise
        if on_progress is not None:
            self._report(on_progress)
        if self.error is not None:
            raise self.error
        assert self.found is not None
        if "error" in self.found:
            raise self.found["error"]
        return self.found

    def _report(self, on_progress: OnProgress) -> None:
        if self.signals.exists("progress.json"):
            figures = self.signals.read_json("progress.json")
            on_progress(figures.pop("done"), figures.pop("steps"), figures)

    def _fit(self) -> None:
        from ray.exceptions import RayError
        from ray.train import TrainingFailedError

        try:
            self.found = self._trainer().fit().return_value
        except (TrainingFailedError, RayError) as error:
            text = _root_cause(error)
            memory = any(sign in text for sign in ("OutOfMemory", "out of memory", "can't allocate memory"))
            self.error = _WorkersFailed(text, memory)
        except BaseException as error:  # noqa: BLE001 — handed to the calling thread, which raises it
            self.error = error

    def _trainer(self) -> Any:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from ray.train import RunConfig
        from ray.train.torch import TorchConfig
        from ray.train.v2.api.config import FailureConfig

        from tailor_ray.training.trainer import LeanTrainer
        from tailor_ray.training.worker_entry import enter

        job, gpus = self.job, self._use_gpu()
        return LeanTrainer(
            cast(Any, enter),  # Ray's types know no return value, though it hands worker 0's back
            train_loop_config={"task": self._task()},
            scaling_config=_scaling(self.config, gpus),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            run_config=RunConfig(
                # a name of its own, or Ray would resume, even a finished run: resuming is ours
                name=f"training-{uuid.uuid4().hex[:12]}",
                storage_path=job.out.path("checkpoints/ray"),
                storage_filesystem=job.out.filesystem,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=2),
            ),
        )

    def _use_gpu(self) -> bool:
        import ray

        if self.job.use_gpu is not None:
            return self.job.use_gpu
        return ray.cluster_resources().get("GPU", 0) >= self.config.workers

    def _task(self) -> dict[str, Any]:
        job = self.job
        return {
            "config": self.config,
            "student_in": job.student_in,
            "examples": job.examples,
            "out": job.out,
            "seed": job.seed,
            "round": job.round,
            "fingerprint": fingerprint(job),
            "started": time.time(),
            "special_tokens": job.special_tokens,
            "card": job.card,
        }


def fingerprint(job: TrainJob) -> str:
    """What a checkpoint depends on: data, student, settings, and the shape of the optimizer's shards."""
    parts = [(part.entry.path, part.entry.sha256) for part in committed_parts(job.examples, "examples", verify=False)]
    shape = [job.config.workers, job.config.zero_stage, job.config.offload_optimizer]
    content = [parts, job.student_in, result_settings(job.config), job.seed, job.round, shape]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _scaling(config: TrainingConfig, gpus: bool) -> Any:
    from ray.train import ScalingConfig

    resources: dict[str, float] = {"CPU": config.cpus_per_worker}
    if gpus:
        resources["GPU"] = 1
    return ScalingConfig(num_workers=config.workers, use_gpu=gpus, resources_per_worker=resources)


def _root_cause(error: BaseException) -> str:
    """The last line of what the workers said, for Ray wraps it several times."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'no message'}"


def _result(found: dict[str, Any]) -> TrainResult:
    keys = ("steps", "tokens", "loss_first", "loss_last")
    metrics = {key: found[key] for key in keys}
    metrics |= {"truncated": len(found["truncated"]), "skipped": len(found["skipped"])}
    metrics |= {key: found[key] for key in ("with_pair_trained", "layout", "peak_memory_bytes")}
    metrics["seconds_to_first_step"] = found["times"]["ready"]
    return TrainResult(
        **{key: found[key] for key in keys},
        truncated=found["truncated"],
        skipped=found["skipped"],
        files=found["files"],
        metrics=metrics,
    )
