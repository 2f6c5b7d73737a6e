"""One optimizer step: the batch in passes, global counts, both terms, the update.

In: a `Plan`, and the rows that it numbers. Out: a row of figures per step.

Always holds. A step's loss and gradient are those of its whole batch, however it is split into passes and over workers.
A step that yields NaN or Inf raises `Diverged` with the step and its examples before anything is saved.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from tailor_ray.errors import StageError
from tailor_ray.training.deepspeed_engine import TrainingEngine
from tailor_ray.training.example_parts import NodeRows
from tailor_ray.training.forward import Sums
from tailor_ray.training.model import Student
from tailor_ray.training.packing import Pack, PackSettings, pack_separate, pack_tree
from tailor_ray.training.plan import Plan, learning_rate, split_batch
from tailor_ray.training.tokens import TokenExample

T = TypeVar("T")
SCALING_STEPS = 20  # halvings of a loss scale of 2^16, which DeepSpeed begins after some patience
STEP_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float64()),
        ("mle", pa.float64()),
        ("reflection", pa.float64()),
        ("learning_rate", pa.float64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("validation", pa.float64()),  # null where no candidate was tried
    ]
)


class Diverged(StageError):
    """NaN or Inf in a loss or gradient, or too many skipped steps; such weights are never exported."""


class History:
    """The figures of each step that was done, in order: 64 bytes a step in memory, a table of STEP_SCHEMA in files.

    `validation` is NaN where the table has null.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        table = STEP_SCHEMA.empty_table() if table is None else table
        self._columns = {
            field.name: array("d" if pa.types.is_floating(field.type) else "q", table.column(field.name).to_numpy())
            for field in STEP_SCHEMA
        }

    def __len__(self) -> int:
        return len(self._columns["step"])

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a `row` with the schema's names; `validation` may be missing or None."""
        row = {"validation": None, **row}
        for name, column in self._columns.items():
            column.append(math.nan if row[name] is None else row[name])

    def column(self, name: str) -> NDArray[Any]:
        return np.array(self._columns[name])

    def table(self) -> pa.Table:
        columns = [pa.array(self.column(f.name), f.type, from_pandas=True) for f in STEP_SCHEMA]
        return pa.Table.from_arrays(columns, schema=STEP_SCHEMA)


class _Pass(NamedTuple):
    """One pass of a step, laid out, and the step's counts; `counted` is off where this worker has no share of it."""

    targets: int
    pairs: int
    pack: Pack
    counted: bool
    last: bool


class Stepper:
    """Runs one worker's share of steps; the next pass is laid out while one is computed."""

    def __init__(
        self,
        plan: Plan,
        rows: NodeRows,
        engine: TrainingEngine,
        student: Student,
        round: int,
        rank: int,
        device: torch.device,
    ) -> None:
        config = plan.config
        self.plan, self.rows, self.config = plan, rows, config
        self.engine, self.student = engine, student
        self.round, self.rank, self.device = round, rank, device
        self.skipped, self.scaled = 0, False  # scaled: a step has counted, so the scale is found
        self.pack_settings = PackSettings(
            config.prompt_weight,
            config.triplet_representation,
            config.rationale_cap,
            config.detached,
            config.pairs == "likelihood",
        )
        self._passes: Iterator[_Pass] = iter(())
        self._next = -1  # the step that `_passes` goes on with
        engine.inner.train()

    def step(self, step: int) -> dict[str, Any]:
        """Do step `step`. Returns its row of STEP_SCHEMA; raises Diverged."""
        begun = time.perf_counter()
        rate = learning_rate(step, self.plan.steps, self.config, self.round)
        self.engine.set_learning_rate(rate)
        weight = self.config.reflection_weight
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # mle, reflection, tokens
        if step != self._next:
            self._passes = prefetched(self._from(step))
        self._next = step + 1
        for targets, pairs, pack, counted, last in self._passes:
            sums: Sums = self.engine.inner(pack)
            loss = sums.mle / targets + weight * sums.reflection / max(1, pairs)
            self.engine.backward(loss if counted else loss * 0.0, last_pass=last)
            if counted:
                totals += torch.stack(
                    [sums.mle.detach(), sums.reflection.detach(), sums.mle.new_tensor(pack.tokens)]
                ).double()
            if last:
                break
        norm, skipped = self.engine.step()
        if self.plan.workers > 1:
            dist.all_reduce(totals)
        mle_total, reflection_total, tokens = totals.tolist()
        mle, reflection = mle_total / targets, reflection_total / max(1, pairs)
        loss_value = mle + weight * reflection
        self._check(step, loss_value, norm, skipped)
        return {
            "step": step,
            "loss": loss_value,
            "mle": mle,
            "reflection": reflection,
            "learning_rate": rate,
            "tokens": round(tokens),
            "seconds": time.perf_counter() - begun,
        }

    def held_out_loss(self, examples: Sequence[TokenExample]) -> float:
        """The loss of `examples` without a step, shared out over the workers, who all must call this.

        Returns the mean over their rationales' tokens.
        """
        settings = replace(self.pack_settings, prompt_weight=0.0)
        sizes = [example.tokens for example in examples]
        split = split_batch(range(len(examples)), sizes, self.plan.workers, 1, self.config.micro_batch_tokens)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.engine.inner.eval()
        with torch.no_grad():
            for indices in split[self.rank]:
                sums: Sums = self.engine.inner(self._pack([examples[index] for index in indices or [0]], settings))
                total += sums.mle.double() if indices else 0.0
        self.engine.inner.train()
        if self.plan.workers > 1:
            dist.all_reduce(total)
        return total.item() / sum(len(example.rationale) for example in examples)

    def _from(self, first: int) -> Iterator[_Pass]:
        """All passes of this worker from a step on; without a share of one it computes any example."""
        for step in range(first, self.plan.steps):
            targets, pairs = self.plan.counts(step)
            passes = self.plan.passes(step)[self.rank]
            for number, indices in enumerate(passes):
                rows = self.rows.take(indices or self.plan.schedule.batch(step)[:1])
                pack = self._pack(rows, self.pack_settings)
                yield _Pass(targets, pairs, pack, bool(indices), number == len(passes) - 1)

    def _pack(self, examples: Sequence[TokenExample], settings: PackSettings) -> Pack:
        if self.student.attention is None:
            pack = pack_separate(examples, settings, self.student.pad_id)
        else:
            pack = pack_tree(examples, settings)
        return pack.to(self.device)

    def _check(self, step: int, loss: float, norm: float, skipped: bool) -> None:
        """Raises Diverged. Only loss scaling may skip steps, and only some in a row.

        More of them at the start, where it comes down from 2^16 to what the student needs.
        """
        self.skipped = self.skipped + 1 if skipped else 0
        self.scaled = self.scaled or not skipped
        finite = math.isfinite(loss) and (skipped or math.isfinite(norm))
        if finite and self.skipped < self.config.max_skipped_steps + (0 if self.scaled else SCALING_STEPS):
            return
        ids = [example.question_id for example in self.rows.take(self.plan.schedule.batch(step))]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        what = f"a loss of {loss} and a gradient norm of {norm}" if not finite else f"{self.skipped} skipped steps"
        raise Diverged(
            f"training step {step} gave {what} on the examples of {shown}; nothing of it is kept: lower "
            "training.learning_rate, or look at these examples"
        )


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, the next made in a thread while one is in use; raises what making it raised."""
    with ThreadPoolExecutor(1, thread_name_prefix="tailor-ray-prefetch") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
