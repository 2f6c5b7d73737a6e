"""What Ray Train runs: one worker's share of every step, which leaves the trained student, and a lean trainer.

In: a `WorkerTask`. Out: on worker 0 a dict of figures. `<out>/student/` and the steps' figures in `<out>/log/` were
written before.

Always holds. All workers compute the same plan from the same records. So they agree on every step's batch and counts
without talking, and each reads its own rows alone. Steps before the last whole checkpoint are not done again. An error
of ours ends all workers alike and is returned, for what is raised here would be retried by Ray.

`LeanTrainer` is Ray's TorchTrainer without two processes that serve nothing here. A `fit()` starts a controller, a
placement group cleaner, a data set manager, a barrier for reports and the workers. Each imports Ray Train. The cleaner
took 11 of 28 s to the first step, on 2 cores without bytecode. It frees the workers' resources should the controller
die while its driver lives on. Our driver starts no second run before the first has ended, and frees them by ending. The
manager hands out shards of Ray data sets. Our workers read committed parts.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import Stopped, TailorError
from tailor_ray.layout import EXAMPLES, LOG, STEPS
from tailor_ray.models import ModelRef, resolve, write_model
from tailor_ray.observe import metrics
from tailor_ray.observe.faults import one_line
from tailor_ray.storage import Part, Store, commit_part, stage_parts
from tailor_ray.training.checkpoint import Checkpoints, Pace
from tailor_ray.training.deepspeed_engine import TrainingEngine, choose_dtype
from tailor_ray.training.example_parts import node_rows
from tailor_ray.training.export import masters_of, try_export
from tailor_ray.training.held_out import HeldOut, Selection
from tailor_ray.training.model import Student, load_student
from tailor_ray.training.plan import PartShape, Plan
from tailor_ray.training.steps import History, Stepper

log = logging.getLogger(__name__)

T = TypeVar("T")
PROGRESS, STOP = "progress.json", "stop"  # below <out>/checkpoints: how far we are; the driver asks us to stop


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker needs to know; picklable."""

    config: TrainingConfig
    student: ModelRef
    examples: Store
    out: Store
    seed: int
    round: int
    fingerprint: str
    started: float  # time.time() when the job was given
    held_out: HeldOut | None
    run: str = ""  # whose metrics these are


def run_worker(task: WorkerTask) -> dict[str, Any] | None:
    """Do one job's share.

    Returns the figures on worker 0, None elsewhere, and on all workers {"error": …} for an error of ours.
    """
    metrics.set_run(task.run)
    try:
        with tempfile.TemporaryDirectory(prefix="tailor-ray-training-") as scratch:
            # one a run: a build that was killed leaves a lock behind that would hang the next one
            os.environ["TORCH_EXTENSIONS_DIR"] = f"{scratch}/extensions"
            return _Worker(task, Path(scratch)).run()
    except TailorError as error:
        return {"error": error}


class _Worker:
    def __init__(self, task: WorkerTask, scratch: Path) -> None:
        import ray.train

        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.local_rank, self.local_workers = context.get_local_rank(), context.get_local_world_size()
        self.task, self.config, self.scratch = task, task.config, scratch
        self.device = _device(task.config, self.local_workers)
        self.done = 0  # steps
        self.history = History()  # of worker 0
        self.times = {"started": time.time() - task.started}
        self.signals = task.out.child("checkpoints")
        self.next_signal = 0.0

    def run(self) -> dict[str, Any] | None:
        task, config = self.task, self.config
        dtype = choose_dtype(config.precision, self.device)
        folder = _together(lambda: resolve(task.student))  # first, for workers that share a student load it together
        student = _together(lambda: self._load(folder, dtype))
        plan, parts, counts = self._plan()
        module = student.loss_module(config.triplet_margin, config.reflection, config.redi_floor)
        with (
            node_rows(task.examples, parts, self.local_rank, self.local_workers, _together) as rows,
            closing(TrainingEngine(module, config, self.workers, dtype)) as engine,
        ):
            checkpoints = Checkpoints(
                task.out, task.fingerprint, rank=self.rank, workers=self.workers, attempt=str(task.started)
            )
            self._resume(checkpoints, engine)
            stepper = Stepper(plan, rows, engine, student, task.round, self.rank, self.device)
            selection = Selection(stepper, task.held_out, task.out, self.scratch)
            self.times["ready"] = time.time() - task.started
            resumed = self.done
            self._steps(stepper, plan, checkpoints, engine, selection)
            self.times["stepping"] = time.time() - task.started - self.times["ready"]
            self.times["in_steps"] = float(self.history.column("seconds")[resumed:].sum())
            found = self._finish(student, engine, selection)
        return None if found is None else {**counts, **found}

    def _load(self, folder: Path, dtype: torch.dtype) -> Student:
        """The student on the device that trains it; that it can be saved is tried before anything is spent on it."""
        student = load_student(folder, self.config, dtype, self.task.seed, self.device)
        try_export(student, self.scratch)
        return replace(student, origin=self.task.student)

    def _plan(self) -> tuple[Plan, list[Part], dict[str, int]]:
        """From the parts' records, of which no more is kept than what reading their rows takes."""
        parts = _together(lambda: stage_parts(self.task.examples, EXAMPLES))
        shapes = [PartShape.from_info(part.info) for part in parts]
        plan = Plan.of(shapes, self.config, self.task.seed + self.task.round, self.workers)
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update(part.info["counts"])
        kept = {name: counts[name] for name in ("with_pair_trained", "truncated", "skipped")}
        return plan, [replace(part, info={}) for part in parts], kept

    def _resume(self, checkpoints: Checkpoints, engine: TrainingEngine) -> None:
        found = checkpoints.latest() if self.rank == 0 else None
        box: list[Any] = [None if found is None else (found.name, found.step, found.figures)]
        if self.workers > 1:
            dist.broadcast_object_list(box, src=0)
        (chosen,) = box
        if found is not None:
            self.history = found.history
        if chosen is not None:
            name, self.done, figures = chosen
            engine.restore(checkpoints.tensors(name), figures)
            log.info("training goes on after %s", name)
        elif engine.half:
            engine.set_masters(masters_of(self.task.student))

    def _steps(
        self, stepper: Stepper, plan: Plan, checkpoints: Checkpoints, engine: TrainingEngine, selection: Selection
    ) -> None:
        pace, row = Pace(self.config.checkpoint_every_steps, self.done), None
        for step in range(self.done, plan.steps):
            row = stepper.step(step)
            self.done += 1
            row["validation"] = selection.consider(self.done) if selection.due(self.done) else None
            if self.rank == 0:
                self.history.append(row)
                # as Ray metrics: microseconds, where `ray.train.report` takes 1.7 s
                for term, name in (("total", "loss"), ("mle", "mle"), ("reflection", "reflection")):
                    metrics.gauge("training_loss", row[name], term=term)
                metrics.count("training_tokens", row["tokens"])
                metrics.count("training_steps")
            busy = checkpoints.busy  # which raises what went wrong, on whichever worker
            # by worker 0's clock, for all must save and stop at the same step
            due, stop = self._agreed((pace.due(self.done) and not busy, self._signal(plan, row)))
            if (due and self.done < plan.steps) or stop:
                self._save(checkpoints, engine, pace)
            if stop:
                checkpoints.wait()
                raise Stopped(f"training was stopped after step {self.done} of {plan.steps}; its checkpoint is kept")
        checkpoints.wait()
        if row is not None:
            self.next_signal = 0.0
            self._signal(plan, row)  # the last step is told as well

    def _agreed(self, flags: tuple[bool, bool]) -> tuple[bool, bool]:
        """Worker 0's two flags on every worker."""
        if self.workers == 1:
            return flags
        shared = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.broadcast(shared, src=0)
        overdue, stop = shared.bool().tolist()
        return overdue, stop

    def _save(self, checkpoints: Checkpoints, engine: TrainingEngine, pace: Pace) -> None:
        """Begin to write a snapshot; of its own, so that nothing here holds one that has been written."""
        begun = time.monotonic()
        tensors, figures = engine.snapshot(self.rank)
        checkpoints.save(self.done, self.history, tensors, figures, self.scratch)
        beside = checkpoints.write_seconds if self.device.type == "cpu" else 0.0
        pace.saved(self.done, time.monotonic() - begun + beside)

    def _signal(self, plan: Plan, row: dict[str, Any]) -> bool:
        """Say how far we are, and ask whether to stop: every two seconds, for on an object store both take time."""
        stop = False
        if self.rank == 0 and time.monotonic() >= self.next_signal:
            self.next_signal = time.monotonic() + 2.0
            figures = {"done": self.done, "steps": plan.steps, "pid": os.getpid(), **row}
            self.signals.write_json(PROGRESS, figures)
            stop = self.signals.exists(STOP)
        return stop

    def _finish(self, student: Student, engine: TrainingEngine, selection: Selection) -> dict[str, Any] | None:
        weights = engine.state_dict()
        if self.rank != 0:
            return None
        out = self.task.out
        out.delete(LOG)  # of an attempt that was cut off
        kept, model = selection.keep(weights, self.history)
        write_model(out, model)
        commit_part(out.child(LOG), STEPS, 0, self.history.table())
        losses = self.history.column("loss").tolist()
        on_gpu = self.device.type == "cuda"
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.times["finished"] = time.time() - self.task.started
        return {
            "steps": self.done,
            "step_kept": kept,
            "tokens": int(self.history.column("tokens").sum()),
            "loss_first": losses[0] if losses else math.nan,
            "loss_last": losses[-1] if losses else math.nan,
            "model": model,
            "layout": student.layout_note,
            "times": self.times,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if on_gpu else rss,
        }


def _device(config: TrainingConfig, local_workers: int) -> torch.device:
    if torch.cuda.is_available():
        import ray.train.torch

        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)  # which workers talk through, before DeepSpeed sets it
        return device
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // local_workers) if config.threads == "auto" else config.threads)
    return torch.device("cpu")


def _together(work: Callable[[], T]) -> T:
    """Do it on all workers and wait for them; an error of ours on any of them is raised on all."""
    result, error = None, None
    try:
        result = work()
    except TailorError as found:
        error = found
    errors: list[TailorError | None] = [error]
    if dist.get_world_size() > 1:
        errors = [None] * dist.get_world_size()
        dist.all_gather_object(errors, error)
    for first in errors:
        if first is not None:
            raise first
    return cast(T, result)


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
        backend_config.backend = "nccl" if worker_group.execute_single(0, torch.cuda.is_available) else "gloo"
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Raises nothing for a lost worker: Ray would keep the group's place, and no other workers could start.

        Ray itself expects lost actors here, but not that its memory monitor ended them.
        """
        try:
            super().on_shutdown(worker_group, backend_config)
        except RayError as error:
            log.warning("the lost workers' process group was not closed: %s", one_line(error))


def take_jobs(settings: dict[str, Any]) -> None:
    """One worker's loop: do the jobs of `settings["queue"]`, one after the other, until there are no more."""
    import ray.train

    # with its level, or a warning would count as chatter where the driver reads it
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True)

    first = ray.train.get_context().get_world_rank() == 0
    number = 0
    while (job := ray.get(settings["queue"].get.remote(number))) is not None:
        result = run_worker(WorkerTask(**job))
        if first:
            ray.get(settings["queue"].finish.remote(number, result))
        del result
        _release_memory()
        number += 1


def _release_memory() -> None:
    """Give the last job's memory back to the machine, for engines and graders work until the next one comes."""
    gc.collect()  # model and optimizer refer to each other
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed, unless asked
    if trim is not None:
        trim(0)
