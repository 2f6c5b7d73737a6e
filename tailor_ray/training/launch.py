"""A round's training, as the driver sees it: Ray Train workers started, watched, restarted, their result returned.

In: a `TrainJob`, with Ray initialised. Out: a `TrainResult`, after `<out>/student/` and the steps' figures in
`<out>/log/` were written. What always holds: a job that was killed goes on from its last whole checkpoint when it is
called again, and a lost worker or a shortage of memory is retried so at most `max_failures` times; an interrupt in the
caller's thread asks the workers to save and stop. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tailor_ray.config.base import result_settings
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import CorruptionError, LeaseLost, StageError
from tailor_ray.layout import EXAMPLES
from tailor_ray.models import ModelRef
from tailor_ray.observe import metrics
from tailor_ray.storage import Store, read_manifest
from tailor_ray.storage.seal import canonical
from tailor_ray.training.agreement import HeldOut
from tailor_ray.training.crew import Crew, WorkersFailed, crew_shape

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int, dict[str, float]], None]
STOP_WAIT_S = 30.0


@dataclass(frozen=True)
class TrainJob:
    """What a round's training works on.

    `student` is where it begins; `examples` is the committed stage's folder, `out` this stage's. `held_out` are
    questions to choose the best student by, and to compare it with the engines. `use_gpu` None takes GPUs if there are
    enough.
    """

    config: TrainingConfig
    student: ModelRef
    examples: Store
    out: Store
    seed: int
    round: int
    held_out: HeldOut | None = None
    use_gpu: bool | None = None


@dataclass(frozen=True)
class TrainResult:
    """Figures of all steps, and the student that they made, which lies in the job's `out`."""

    steps: int
    tokens: int
    loss_first: float
    loss_last: float
    model: ModelRef
    metrics: dict[str, Any]


def train(job: TrainJob, on_progress: OnProgress | None = None) -> TrainResult:
    """One job by workers of its own."""
    with Trainers() as trainers:
        return trainers.train(job, on_progress)


class Trainers:
    """A session's training workers: started for the first job, kept for the next ones, except on GPUs."""

    def __init__(self) -> None:
        self._crew: Crew | None = None

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def train(self, job: TrainJob, on_progress: OnProgress | None = None) -> TrainResult:
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
                found = self._try(job, config, on_progress)
            except WorkersFailed as error:
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

    def _try(self, job: TrainJob, config: TrainingConfig, on_progress: OnProgress | None) -> dict[str, Any]:
        """One attempt; workers that raised anything, or that hold a GPU's memory, are let go."""
        gpus = _use_gpu(job)
        crew = self._of_shape(config, gpus, job.out)
        try:
            found = crew.do(_task(job, config), lambda: _report(job, on_progress))
            _report(job, on_progress)
        except BaseException as error:
            if not isinstance(error, WorkersFailed):
                _ask_to_stop(job)
                crew.wait(STOP_WAIT_S)
            self.close()
            raise
        if gpus or "error" in found:
            self.close()
        if "error" in found:
            raise found["error"]
        return found

    def _of_shape(self, config: TrainingConfig, gpus: bool, out: Store) -> Crew:
        if self._crew is None or not self._crew.alive or self._crew.shape != crew_shape(config, gpus):
            self.close()
            self._crew = Crew(config, gpus, out)
        return self._crew


def _ask_to_stop(job: TrainJob) -> None:
    try:
        job.out.child("checkpoints").write_bytes("stop", b"")
    except (OSError, LeaseLost) as error:  # the first error is what the caller must hear of
        log.warning("the workers could not be asked to stop: %s", error)


def _report(job: TrainJob, on_progress: OnProgress | None) -> None:
    signals = job.out.child("checkpoints")
    if on_progress is not None and signals.exists("progress.json"):
        figures = signals.read_json("progress.json")
        on_progress(figures.pop("done"), figures.pop("steps"), figures)


def _use_gpu(job: TrainJob) -> bool:
    import ray

    if job.use_gpu is not None:
        return job.use_gpu
    return ray.cluster_resources().get("GPU", 0) >= job.config.workers


def _task(job: TrainJob, config: TrainingConfig) -> dict[str, Any]:
    return {
        "config": config,
        "student": job.student,
        "examples": job.examples,
        "out": job.out,
        "seed": job.seed,
        "round": job.round,
        "fingerprint": fingerprint(job),
        "started": time.time(),
        "held_out": job.held_out,
        "run": metrics.current_run(),
    }


def fingerprint(job: TrainJob) -> str:
    """What a checkpoint belongs to: examples, student, and settings that change results."""
    # validated again: a copy may carry a 10 where a file was read as 10.0
    config = TrainingConfig.model_validate(job.config.model_dump())
    content = [_digest(job.examples), job.student.sha256, result_settings(config), job.seed, job.round]
    return hashlib.sha256(canonical(content)).hexdigest()


def _digest(examples: Store) -> str:
    """From the manifest, for the records of all parts are no matter for the driver."""
    manifest = read_manifest(examples)
    if manifest is None:
        raise CorruptionError(f"{examples.uri} has no manifest: its stage is not committed")
    return manifest.parts[EXAMPLES].sha256


def _result(found: dict[str, Any]) -> TrainResult:
    keys = ("steps", "tokens", "loss_first", "loss_last")
    more = ("step_kept", "truncated", "skipped", "with_pair_trained", "layout", "peak_memory_bytes")
    figures = {key: found[key] for key in (*keys, *more)}
    times = found["times"]  # of the last attempt
    figures["seconds_to_first_step"] = times["ready"]
    figures["seconds_between_steps"] = times["stepping"] - times["in_steps"]
    figures["seconds_in_steps"] = times["in_steps"]
    return TrainResult(**{key: found[key] for key in keys}, model=found["model"], metrics=figures)
