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
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tailor_ray.config.base import result_settings
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import StageError
from tailor_ray.storage import FileEntry, Store, committed_parts
from tailor_ray.training.agreement import HeldOut
from tailor_ray.training.crew import Crew, WorkersFailed, crew_shape

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int, dict[str, float]], None]
STOP_WAIT_S = 30.0


@dataclass(frozen=True)
class TrainJob:
    """What a round's training works on.

    `student_in` is a local folder or storage URI of a Hugging Face model; `examples` holds the committed parts
    `examples-*`; `out` is the stage's folder. `special_tokens` says whether the tokenizer adds its own to a prompt (off
    for chat templates, which write them). `held_out` are questions to choose the best
    student by, and to compare it with the engines. `use_gpu` None takes GPUs if there are enough.
    """

    config: TrainingConfig
    student_in: str
    examples: Store
    out: Store
    seed: int
    round: int
    special_tokens: bool = True
    held_out: HeldOut | None = None
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
        except BaseException as error:
            if not isinstance(error, WorkersFailed):
                job.out.child("checkpoints").write_bytes("stop", b"")
                crew.wait(STOP_WAIT_S)
            self.close()
            raise
        _report(job, on_progress)
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
        "student_in": job.student_in,
        "examples": job.examples,
        "out": job.out,
        "seed": job.seed,
        "round": job.round,
        "fingerprint": fingerprint(job),
        "started": time.time(),
        "special_tokens": job.special_tokens,
        "held_out": job.held_out,
    }


def fingerprint(job: TrainJob) -> str:
    """What a checkpoint depends on: data, student, settings, and the shape of the optimizer's shards."""
    parts = [(part.entry.path, part.entry.sha256) for part in committed_parts(job.examples, "examples", verify=False)]
    shape = [job.config.workers, job.config.zero_stage, job.config.offload_optimizer]
    content = [parts, job.student_in, result_settings(job.config), job.seed, job.round, shape]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _result(found: dict[str, Any]) -> TrainResult:
    keys = ("steps", "tokens", "loss_first", "loss_last")
    _say_what_was_left_out(found)
    metrics = {key: found[key] for key in (*keys, "step_kept")}
    metrics |= {"truncated": len(found["truncated"]), "skipped": len(found["skipped"])}
    metrics |= {key: found[key] for key in ("with_pair_trained", "layout", "peak_memory_bytes")}
    times = found["times"]  # of the last attempt
    metrics["seconds_to_first_step"] = times["ready"]
    metrics["seconds_between_steps"] = times["stepping"] - times["in_steps"]
    metrics["seconds_in_steps"] = times["in_steps"]
    return TrainResult(
        **{key: found[key] for key in keys},
        truncated=found["truncated"],
        skipped=found["skipped"],
        files=found["files"],
        metrics=metrics,
    )


def _say_what_was_left_out(found: dict[str, Any]) -> None:
    """All of them are in left_out.json; a warning names the first."""
    for what, cure in (
        ("truncated", "their rationale was cut at training.max_length"),
        ("skipped", "their prompt leaves no room for a rationale: raise training.max_length"),
    ):
        names = sorted(set(found[what]))
        if names:
            more = f" and {len(names) - 8} more (left_out.json)" if len(names) > 8 else ""
            log.warning("%d examples were %s, %s: %s%s", len(found[what]), what, cure, ", ".join(names[:8]), more)
