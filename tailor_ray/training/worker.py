"""What one Ray Train worker does: read the examples, take its share of every step, leave the trained student.

In: a `WorkerTask`. Out: on worker 0 a dict of figures, after `<out>/student/` and `<out>/steps.parquet` were written.
What always holds: all workers compute the same plan from the same files, so they agree on every step's batch and
counts without talking; steps before the last whole checkpoint are not done again; an error of ours ends all workers
alike and is returned, for what is raised here would be retried by Ray.
"""

from __future__ import annotations

import io
import logging
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from tailor_ray.config.training import TrainingConfig
from tailor_ray.errors import Stopped, TailorError
from tailor_ray.observe import metrics
from tailor_ray.records import TrainExample, from_table
from tailor_ray.storage import FileEntry, Store, committed_parts, read_part
from tailor_ray.training.agreement import HeldOut
from tailor_ray.training.checkpoint import Checkpoints
from tailor_ray.training.engine import Engine, choose_dtype
from tailor_ray.training.model import Student, load_student
from tailor_ray.training.selection import Selection
from tailor_ray.training.steps import Plan, Stepper
from tailor_ray.training.tokens import TokenData, tokenize_examples

log = logging.getLogger(__name__)

STEP_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float64()),
        ("mle", pa.float64()),
        ("triplet", pa.float64()),
        ("learning_rate", pa.float64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("validation", pa.float64()),
    ]
)
PROGRESS, STOP = "progress.json", "stop"  # below <out>/checkpoints: how far we are; the driver asks us to stop


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker needs to know; picklable."""

    config: TrainingConfig
    student_in: str
    examples: Store
    out: Store
    seed: int
    round: int
    fingerprint: str
    started: float  # time.time() when the job was given
    special_tokens: bool
    held_out: HeldOut | None


def run_worker(task: WorkerTask) -> dict[str, Any] | None:
    """Do one job's share."""
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
        self.task, self.config, self.scratch = task, task.config, scratch
        self.device = _device(task.config, context.get_local_world_size())
        self.history: list[dict[str, Any]] = []
        self.times = {"started": time.time() - task.started}
        self.signals = task.out.child("checkpoints")
        self.next_signal = 0.0

    def run(self) -> dict[str, Any] | None:
        dtype = choose_dtype(self.config.precision, self.device)
        student = load_student(student_folder(self.task.student_in), self.config, dtype, self.task.seed)
        data = self._data(student)
        plan = Plan.of(data.examples, self.config, self.task.seed + self.task.round, self.workers)
        engine = Engine(student.loss_module(self.config.triplet_margin), self.config, self.workers, dtype)
        checkpoints = Checkpoints(self.task.out, self.task.fingerprint, self.config.keep_checkpoints)
        self._resume(checkpoints, engine)
        stepper = Stepper(plan, engine, student, self.config, self.task.round, self.rank, self.device, dtype)
        selection = Selection(stepper, self.task.held_out, self.task.out, self.scratch)
        self.times["ready"] = time.time() - self.task.started
        resumed = len(self.history)
        self._steps(stepper, plan, checkpoints, engine, selection)
        self.times["stepping"] = time.time() - self.task.started - self.times["ready"]
        self.times["in_steps"] = sum(row["seconds"] for row in self.history[resumed:])
        return self._finish(student, data, engine, selection)

    def _data(self, student: Student) -> TokenData:
        parts = committed_parts(self.task.examples, "examples")
        examples = [row for part in parts for row in from_table(read_part(self.task.examples, part), TrainExample)]
        return tokenize_examples(
            examples,
            student.tokenizer,
            student.max_length,
            self.config.rationale_cap,
            pairs=self.config.triplet_weight > 0,
            special_tokens=self.task.special_tokens,
        )

    def _resume(self, checkpoints: Checkpoints, engine: Engine) -> None:
        found = checkpoints.latest() if self.rank == 0 else None
        chosen = _broadcast(None if found is None else (found.name, found.history))
        if chosen is not None:
            name, self.history = chosen
            checkpoints.load(name, engine.inner, partial=self.config.lora is not None)
            log.info("training goes on after %s", name)

    def _steps(
        self, stepper: Stepper, plan: Plan, checkpoints: Checkpoints, engine: Engine, selection: Selection
    ) -> None:
        saved_at, saved_step = time.monotonic(), len(self.history)
        for step in range(len(self.history), plan.steps):
            row = stepper.step(step)
            row["validation"] = selection.consider(step + 1) if selection.due(step + 1) else None
            self.history.append(row)
            if self.rank == 0:
                _observe(row)
            every = self.config.checkpoint_every_steps
            # by worker 0's clock, for all must save and stop at the same step
            overdue, stop = self._agreed(
                (time.monotonic() - saved_at >= self.config.checkpoint_every_s, self._signal(plan))
            )
            due = step + 1 - saved_step >= every if every else overdue
            if (due and step + 1 < plan.steps) or stop:
                self._save(checkpoints, engine)
                saved_at, saved_step = time.monotonic(), step + 1
            if stop:
                raise Stopped(f"training was stopped after step {step + 1} of {plan.steps}; its checkpoint is kept")
        if self.history:
            self.next_signal = 0.0
            self._signal(plan)  # the last step is told as well

    def _agreed(self, flags: tuple[bool, bool]) -> tuple[bool, bool]:
        """Worker 0's two flags on every worker."""
        if self.workers == 1:
            return flags
        shared = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.broadcast(shared, src=0)
        overdue, stop = shared.bool().tolist()
        return overdue, stop

    def _save(self, checkpoints: Checkpoints, engine: Engine) -> None:
        partial = self.config.lora is not None
        arguments = (engine.inner, self.scratch, self.rank, partial, _gather)
        checkpoints.save(len(self.history), self.history, *arguments)

    def _signal(self, plan: Plan) -> bool:
        """Say how far we are, and ask whether to stop: every two seconds, for on an object store both take time."""
        stop = False
        if self.rank == 0 and time.monotonic() >= self.next_signal:
            self.next_signal = time.monotonic() + 2.0
            figures = {"done": len(self.history), "steps": plan.steps, "pid": os.getpid(), **self.history[-1]}
            self.signals.write_json(PROGRESS, figures)
            stop = self.signals.exists(STOP)
        return stop

    def _finish(self, student: Student, data: TokenData, engine: Engine, selection: Selection) -> dict[str, Any] | None:
        weights = engine.state_dict()
        if self.rank != 0:
            return None
        out = self.task.out
        kept, files = selection.keep(weights, self.history)
        table = pa.Table.from_pylist(self.history, schema=STEP_SCHEMA)
        files.append(_write_table(out, "steps.parquet", table))
        files.append(out.write_json("left_out.json", {"truncated": data.truncated, "skipped": data.skipped}))
        self.times["finished"] = time.time() - self.task.started
        return {
            "steps": len(self.history),
            "step_kept": kept,
            "tokens": sum(row["tokens"] for row in self.history),
            "loss_first": self.history[0]["loss"] if self.history else math.nan,
            "loss_last": self.history[-1]["loss"] if self.history else math.nan,
            "truncated": data.truncated,
            "skipped": data.skipped,
            "files": files,
            "with_pair_trained": sum(example.has_pair for example in data.examples),
            "layout": student.layout_note,
            "times": self.times,
            "peak_memory_bytes": _peak_memory(self.device),
        }


def _observe(row: dict[str, Any]) -> None:
    """The step's figures as Ray metrics: microseconds, where `ray.train.report` takes 1.7 s."""
    for term, name in (("total", "loss"), ("mle", "mle"), ("triplet", "triplet")):
        metrics.gauge("training_loss", row[name], term=term)
    metrics.count("training_tokens", row["tokens"])
    metrics.count("training_steps")


def student_folder(where: str) -> Path:
    """A local folder as it is; a storage URI copied to this node."""
    return Store.open(where).local_folder("") if "://" in where else Path(where)


def _device(config: TrainingConfig, local_workers: int) -> torch.device:
    if torch.cuda.is_available():
        import ray.train.torch

        return ray.train.torch.get_device()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // local_workers) if config.threads == "auto" else config.threads)
    return torch.device("cpu")


def _broadcast(value: Any) -> Any:
    """Worker 0's value on every worker."""
    if dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _gather(entries: list[FileEntry]) -> list[FileEntry]:
    """All workers' entries on worker 0, once each, after all workers got here."""
    if dist.get_world_size() == 1:
        return entries
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, [asdict(entry) for entry in entries])
    return [FileEntry(**entry) for box in boxes for entry in box]


def _write_table(store: Store, name: str, table: pa.Table) -> FileEntry:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    entry = store.write_bytes(name, buffer.getvalue())
    return FileEntry(entry.path, entry.sha256, entry.bytes, table.num_rows)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
