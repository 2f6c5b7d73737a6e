"""What each step trains on, planned from the records of the example parts alone.

In: one `PartShape` per part, in order. Out: batches, passes and global counts of every step. What always holds: all
workers make the same plan without talking, whatever their number; it costs 13 bytes an example, and the order of an
epoch (`schedule.Epoch`) comes on top.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailor_ray.errors import DataError
from tailor_ray.training.schedule import MIN_ROOT, Ints, Schedule, common_prefix, split_batch
from tailor_ray.training.tokens import ID_COLUMNS

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig

PLANNING = "planning"  # where a part's record keeps its shape


@dataclass(frozen=True, slots=True)
class PartShape:
    """Of a part's rows: `questions[i]` numbers row i's question in the part, `lengths` are tokens, (4, rows).

    `start` are the ids that all its prompts begin with.
    """

    questions: Ints
    lengths: Ints
    start: Ints

    @classmethod
    def of(cls, table: pa.Table) -> PartShape:
        """Of a table with TOKEN_SCHEMA."""
        questions = table.column("question_id").combine_chunks().dictionary_encode().indices
        sides = [table.column(name).combine_chunks() for name in ID_COLUMNS]
        prompts = sides[0].to_pylist()
        return cls(
            questions.to_numpy(),
            np.stack([np.diff(side.offsets.to_numpy()) for side in sides]),
            np.array(prompts[0][: common_prefix(prompts)] if prompts else [], np.int32),
        )

    def to_info(self) -> dict[str, str]:
        """For a part's record: as text, for as lists of numbers the records of 10 M rows would take gigabytes."""
        return {name: _packed(getattr(self, name)) for name in ("questions", "lengths", "start")}

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> PartShape:
        questions, lengths, start = (_unpacked(info[PLANNING][name]) for name in ("questions", "lengths", "start"))
        return cls(questions, lengths.reshape(4, -1), start)


@dataclass(frozen=True)
class Plan:
    """Which examples each step trains on, and in which passes. Example i is row i of all parts, one after the other."""

    schedule: Schedule
    sizes: Ints
    targets: Ints
    pairs: NDArray[np.bool_]
    shared: int  # tokens that all prompts begin with
    config: TrainingConfig
    workers: int

    @classmethod
    def of(cls, shapes: Iterable[PartShape], config: TrainingConfig, seed: int, workers: int) -> Plan:
        """Raises DataError when there is no example at all."""
        shapes = [shape for shape in shapes if len(shape.questions)]
        if not shapes:
            raise DataError(
                "no example is left to train on: every prompt is longer than training.max_length, or the teacher's "
                "lessons were all rejected; raise training.max_length or look at the teach stage's rejects"
            )
        ends = np.cumsum([shape.questions.max() + 1 for shape in shapes])
        questions = np.concatenate(
            [shape.questions + (end - shape.questions.max() - 1) for shape, end in zip(shapes, ends, strict=True)]
        ).astype(np.int32)
        # one token of each prompt stays its own: its hidden state starts the rationale
        shared = min(
            common_prefix([s.start.tolist() for s in shapes]), min(int(s.lengths[0].min()) for s in shapes) - 1
        )
        return cls(
            Schedule(questions, config.batch_size, config.epochs, seed, config.steps),
            np.concatenate([shape.lengths.sum(0, dtype=np.int32) for shape in shapes]),
            np.concatenate([shape.lengths[0] + shape.lengths[1] - 1 for shape in shapes]),
            np.concatenate([shape.lengths[3] > 0 for shape in shapes]),
            shared if shared >= MIN_ROOT else 0,
            config,
            workers,
        )

    @property
    def steps(self) -> int:
        return self.schedule.steps

    def passes(self, step: int) -> list[list[list[int]]]:
        """Each worker's passes, each a list of examples."""
        batch, config = self.schedule.batch(step), self.config
        sizes = dict(zip(batch, self.sizes[batch].tolist(), strict=True))
        return split_batch(batch, sizes, self.workers, config.accumulation, config.micro_batch_tokens, self.shared)

    def counts(self, step: int) -> tuple[int, int]:
        """The step's valid targets (`packing.target_count`) and pairs, over all workers."""
        batch = self.schedule.batch(step)
        return int(self.targets[batch].sum()), int(self.pairs[batch].sum())


def _packed(values: Ints) -> str:
    return base64.b64encode(zlib.compress(values.astype("<i4").tobytes(), 1)).decode()


def _unpacked(text: str) -> Ints:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").astype(np.int32, copy=False)
