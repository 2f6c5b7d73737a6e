"""A round's training, as the driver sees it: Ray Train workers started, watched, restarted, their result returned.

In: a `TrainJob`, with Ray initialised. Out: a `TrainResult`. `<out>/student/` and the steps' figures in `<out>/log/`
were written before.

Always holds. A job that was killed goes on from its last whole checkpoint when it is called again. A lost worker or a
shortage of memory is retried so at most `max_failures` times. An interrupt in the caller's thread asks the workers to
save and stop. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tailor_ray.config.base import result_settings
from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import CorruptionError, LeaseLost, StageError, Stopped, TailorError
from tailor_ray.layout import EXAMPLES
from tailor_ray.models import ModelRef, resolve
from tailor_ray.observe import metrics
from tailor_ray.observe.faults import LOW_MEMORY, stopped_by
from tailor_ray.storage import Store, read_manifest
from tailor_ray.storage.commits import canonical
from tailor_ray.training.held_out import HeldOut
from tailor_ray.training.worker_group import WorkerGroup, WorkersFailed, group_shape

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int, dict[str, float]], None]
STOP_WAIT_S = 30.0
STORAGE_WAIT_S = 120.0
LOW_MEMORY_WAIT_S = 5.0  # or new workers are ended with the old ones, whose memory is not free yet
CHECK_CAPACITY_S = 5.0


class Room(Protocol):
    """What may be asked about the cluster's nodes; `rounds.cluster.Nodes` answers."""

    wait_s: float

    def could_have(self, resource: str) -> float: ...

    def fit(self, bundles: Sequence[dict[str, float]]) -> bool: ...

    def wait_for(self, bundles: Sequence[dict[str, float]], what: str) -> bool: ...

    def shown(self) -> str: ...


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
    """The student that was made, which lies in the job's `out`, and figures of all steps."""

    model: ModelRef
    metrics: dict[str, Any]


class Trainers:
    """A session's training workers: started for the first job, kept for the next ones, except on GPUs."""

    def __init__(self, nodes: Room | None = None) -> None:
        """`nodes` waits for what an autoscaler brings; without it Ray Train alone looks for room."""
        self._group: WorkerGroup | None = None
        self._nodes = nodes

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def try_student(self, student: ModelRef) -> None:
        """Find out whether `student` could be trained and saved, before a run pays.

        Its configuration and tokenizer alone are read. A Ray task does it, for this process imports no torch. Raises
        ModelError.
        """
        import ray

        error = ray.get(ray.remote(_try_student).options(num_cpus=0).remote(student))
        if error is not None:
            raise error

    def train(self, job: TrainJob, on_progress: OnProgress | None = None) -> TrainResult:
        """Train to the end.

        `on_progress(done, steps, figures)` is called in this thread about every second. A full disk is not tried again.
        Storage that does not answer is waited for, which uses up no retry.

        Raises StageError when retries are used up, and Diverged for NaN or Inf. Raises Stopped when asked to stop, or
        when there is no room for the workers. Raises ModelError and DataError for what the student or the data are
        refused for.
        """
        _check_space(job)
        signals = job.out.child("checkpoints")
        for left in ("stop", "progress.json"):  # by a driver that was killed
            signals.delete(left)
        micro_batch_tokens = job.config.micro_batch_tokens
        failures = pauses = 0
        while failures <= job.config.max_failures:
            config = job.config.model_copy(update={"micro_batch_tokens": micro_batch_tokens})
            try:
                found = self._try(job, config, on_progress)
            except WorkersFailed as error:
                if error.fault is not None:
                    if not error.fault.waits:
                        raise stopped_by(error.fault, str(error)) from None
                    _wait_for_storage(signals, error)
                    pauses += 1
                    if pauses <= max(1, job.config.max_failures):
                        continue
                log.warning("training failed (%d of %d retries used): %s", failures, job.config.max_failures, error)
                last, failures = error, failures + 1
                if error.out_of_memory:
                    micro_batch_tokens = max(16, micro_batch_tokens // 2)
                if LOW_MEMORY in str(error):
                    time.sleep(LOW_MEMORY_WAIT_S)
                continue
            signals.delete("progress.json")
            return _result(found)
        raise StageError(
            f"training failed {job.config.max_failures + 1} times, last with: {last}; "
            + ("lower training.micro_batch_tokens" if last.out_of_memory else "look at the log, or raise max_failures")
        )

    def _try(self, job: TrainJob, config: TrainingConfig, on_progress: OnProgress | None) -> dict[str, Any]:
        """One attempt; workers that raised anything, or that hold a GPU's memory, are let go."""
        gpus = self._use_gpu(job)
        capacity = _Capacity(self._nodes, config, gpus)
        capacity.wait()
        group = self._group
        if group is None or not group.alive or group.shape != group_shape(config, gpus):
            self.close()
            group = self._group = WorkerGroup(config, gpus, job.out)

        def tick() -> None:
            capacity.check()
            _report(job, on_progress)

        try:
            found = group.do(_task(job, config), tick)
            _report(job, on_progress)
        except BaseException as error:
            if not isinstance(error, WorkersFailed):
                try:
                    job.out.child("checkpoints").write_bytes("stop", b"")
                except (OSError, LeaseLost) as failure:  # the first error is what the caller must hear of
                    log.warning("the workers could not be asked to stop: %s", failure)
                group.wait(STOP_WAIT_S)
            self.close()
            raise
        if gpus or "error" in found:
            self.close()
        if "error" in found:
            raise found["error"]
        return found

    def _use_gpu(self, job: TrainJob) -> bool:
        """Waits for GPUs where an autoscaler may bring them; says so where there are too few and CPUs are taken."""
        import ray

        if job.use_gpu is not None:
            return job.use_gpu
        workers = job.config.workers
        if self._nodes is not None and self._nodes.could_have("GPU") >= 1:
            self._nodes.wait_for([{"CPU": job.config.cpus_per_worker, "GPU": 1.0}] * workers, "training.workers")
        gpus = ray.cluster_resources().get("GPU", 0)
        if 0 < gpus < workers:
            log.warning(
                "training takes CPUs: training.workers=%d take a GPU each, and the cluster has %d; lower "
                "training.workers, or add nodes",
                *(workers, gpus),
            )
        return gpus >= workers


def _try_student(student: ModelRef) -> TailorError | None:
    from tailor_ray.training.export import try_export
    from tailor_ray.training.model import student_without_weights

    try:
        with tempfile.TemporaryDirectory(prefix="tailor-ray-export-") as scratch:
            try_export(student_without_weights(resolve(student)), Path(scratch))
    except TailorError as error:
        return error
    return None


class _Capacity:
    """Room for the workers: waited for before they start, and checked while they work, for nodes get lost."""

    def __init__(self, nodes: Room | None, config: TrainingConfig, gpus: bool) -> None:
        self._nodes, self._workers = nodes, config.workers
        one = {"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if gpus else {})
        self._bundles = [one] * config.workers
        self._next, self._lacked_since = 0.0, math.inf

    def wait(self) -> None:
        if self._nodes is not None and not self._nodes.wait_for(self._bundles, "training.workers"):
            raise self._none()

    def check(self) -> None:
        """Called about every second; Ray Train itself would wait for room for half an hour."""
        now = time.monotonic()
        if self._nodes is None or now < self._next:
            return
        self._next = now + CHECK_CAPACITY_S
        if self._nodes.fit(self._bundles):
            self._lacked_since = math.inf
            return
        self._lacked_since = min(self._lacked_since, now)
        if now - self._lacked_since >= self._nodes.wait_s:
            raise self._none()

    def _none(self) -> Stopped:
        assert self._nodes is not None
        return Stopped(
            f"there is no room for training.workers={self._workers} with {self._bundles[0]} each: the cluster has "
            f"{self._nodes.shown()}, after waiting cluster.wait_for_nodes_s={self._nodes.wait_s:g} s; what was "
            "committed is kept. Add nodes, or lower training.workers or training.cpus_per_worker, then run the same "
            "command: it goes on there"
        )


def _check_space(job: TrainJob) -> None:
    """Raise Stopped before anything is computed where the student and one checkpoint will surely not fit."""
    if not job.out.is_local:
        return
    # The weights once as the result, and in a checkpoint with a master copy and two moments of the optimizer.
    needed = job.student.weight_bytes * (1 if job.config.lora else 4)
    folder = next(path for path in (Path(job.out.path()), *Path(job.out.path()).parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Stopped(
            f"training writes at least {needed / 2**30:.2f} GiB to {job.out.uri} (the student and a checkpoint), and "
            f"{free / 2**30:.2f} GiB are free; what was committed is kept. Make space there, then run the same "
            "command: it goes on there"
        )


def _wait_for_storage(store: Store, error: WorkersFailed) -> None:
    """Until it can be written again; raises the fault's own error when that takes longer than STORAGE_WAIT_S."""
    log.warning("%s; training waits until it can go on, at most %.0f s", error, STORAGE_WAIT_S)
    deadline = time.monotonic() + STORAGE_WAIT_S
    while True:
        try:
            store.write_bytes("probe", b"")
            store.delete("probe")
            return
        except OSError as still:
            if time.monotonic() > deadline:
                assert error.fault is not None
                raise stopped_by(error.fault, str(still)) from still
        time.sleep(2.0)


def _report(job: TrainJob, on_progress: OnProgress | None) -> None:
    """Pass on how far the workers say they are; storage that fails for a moment only delays that."""
    signals = job.out.child("checkpoints")
    try:
        if on_progress is None or not signals.exists("progress.json"):
            return
        figures = signals.read_json("progress.json")
    except (OSError, ValueError) as error:
        log.info("the workers' progress cannot be read: %s", error)
        return
    on_progress(figures.pop("done"), figures.pop("steps"), figures)


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
    # of the examples by the manifest, for the records of all parts are no matter for the driver
    manifest = read_manifest(job.examples)
    if manifest is None:
        raise CorruptionError(f"{job.examples.uri} has no manifest: its stage is not committed")
    content = [manifest.parts[EXAMPLES].sha256, job.student.sha256, result_settings(config), job.seed, job.round]
    return hashlib.sha256(canonical(content)).hexdigest()


def _result(found: dict[str, Any]) -> TrainResult:
    keys = (
        *("steps", "tokens", "loss_first", "loss_last", "step_kept", "truncated", "skipped", "with_pair_trained"),
        *("layout", "peak_memory_bytes"),
    )
    figures = {key: found[key] for key in keys}
    times = found["times"]  # of the last attempt
    figures["seconds_to_first_step"] = times["ready"]
    figures["seconds_between_steps"] = times["stepping"] - times["in_steps"]
    figures["seconds_in_steps"] = times["in_steps"]
    return TrainResult(found["model"], figures)
