"""What each step trains on: which examples, how they are shared out, in which passes, at what learning rate.

In: one `PartShape` per part, in order, the settings and the seed. Out: batches, passes and global counts of every step.
There is nothing to checkpoint.

Always holds. All workers make the same plan without talking, whatever their number. The order depends on seed and epoch
alone. Every example is in exactly one batch of an epoch. No batch holds a question twice. Batch sizes differ by at most
one. The split of a batch into passes changes neither its content nor, through global counts, its loss.

The plan costs 13 bytes an example. An epoch costs 4 more, and 24 while it is made.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tailor_ray.errors import DataError
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
        """The shape of a part, whose `table` has TOKEN_SCHEMA."""
        questions = table.column("question_id").combine_chunks().dictionary_encode().indices
        sides = [table.column(name).combine_chunks() for name in ID_COLUMNS]
        prompts = sides[0].to_pylist()
        return cls(
            questions.to_numpy(),
            np.stack([np.diff(side.offsets.to_numpy()) for side in sides]),
            np.array(prompts[0][: common_prefix(prompts)] if prompts else [], np.int32),
        )

    def to_info(self) -> dict[str, str]:
        """The shape as text, for a part's record.

        As lists of numbers the records of 10 M rows would take gigabytes. Returns what `from_info` reads.
        """
        return {
            name: base64.b64encode(zlib.compress(getattr(self, name).astype("<i4").tobytes(), 1)).decode()
            for name in ("questions", "lengths", "start")
        }

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> PartShape:
        questions, lengths, start = (
            np.frombuffer(zlib.decompress(base64.b64decode(info[PLANNING][name])), "<i4").astype(np.int32, copy=False)
            for name in ("questions", "lengths", "start")
        )
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
        """The plan of a round's training.

        `shapes` are those of all parts, in order, and `workers` how many share each step. Raises DataError when there
        is no example at all.
        """
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
        """Each worker's passes in step `step`: `result[worker][pass]` is a list of example numbers."""
        batch, config = self.schedule.batch(step), self.config
        sizes = dict(zip(batch, self.sizes[batch].tolist(), strict=True))
        return split_batch(batch, sizes, self.workers, config.accumulation, config.micro_batch_tokens, self.shared)

    def counts(self, step: int) -> tuple[int, int]:
        """The step's valid targets (`packing.target_count`) and pairs, over all workers."""
        batch = self.schedule.batch(step)
        return int(self.targets[batch].sum()), int(self.pairs[batch].sum())


Ints = NDArray[np.int32]
MIN_ROOT = 16  # tokens; a shorter common start costs more in extra attention blocks than it saves


class Epoch:
    """An epoch's batches, each a list of example indices; `questions[i]`, 0 or more, is example i's question."""

    def __init__(self, questions: Ints, batch_size: int, seed: int, epoch: int) -> None:
        """The examples are laid out question by question, in random order, and dealt to the batches like cards.

        As there are at least as many batches as a question has examples, no batch is dealt the same question twice,
        and no example has to be dropped or put off.
        """
        # raw bits and stable sorts: the same order on every machine and with every version of numpy
        bits = np.random.PCG64([seed, epoch])
        rank = np.empty(int(questions.max()) + 1, np.uint64)
        rank[_shuffled(bits, len(rank))] = np.arange(len(rank), dtype=np.uint64)
        keys = rank[questions] << np.uint64(32)
        keys |= bits.random_raw(len(questions)) >> np.uint64(32)
        self._cards = np.argsort(keys, kind="stable").astype(np.int32)
        self._order = _shuffled(bits, batch_count(questions, batch_size))

    def __len__(self) -> int:
        return len(self._order)

    def batch(self, number: int) -> list[int]:
        return self._cards[self._order[number] :: len(self)].tolist()


def _shuffled(bits: np.random.PCG64, count: int) -> Ints:
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int32)


def batch_count(questions: Ints, batch_size: int) -> int:
    """As many batches as the examples fill, but at least as many as a question has examples."""
    return max(int(np.bincount(questions).max()), -(-len(questions) // batch_size))


class Schedule:
    """The batch of each step, from 0 to `steps - 1`; an epoch is made when it is first asked for."""

    def __init__(self, questions: Ints, batch_size: int, epochs: float, seed: int, steps: int | None = None) -> None:
        self._questions, self._batch_size, self._seed = questions, batch_size, seed
        self._made: tuple[int, Epoch] | None = None
        self.steps_per_epoch = batch_count(questions, batch_size)
        self.steps = steps or max(1, round(epochs * self.steps_per_epoch))

    def batch(self, step: int) -> list[int]:
        epoch, number = divmod(step, self.steps_per_epoch)
        made = self._made
        if made is None or made[0] != epoch:
            made = self._made = None  # two at a time would double the memory
            made = self._made = epoch, Epoch(self._questions, self._batch_size, self._seed, epoch)
        return made[1].batch(number)


def split_batch(
    batch: Sequence[int],
    sizes: Mapping[int, int] | Sequence[int],
    workers: int,
    accumulation: int,
    budget: int,
    shared: int = 0,
) -> list[list[list[int]]]:
    """Share a batch out over workers and passes.

    `sizes[i]` is example i's tokens, of which `shared` are computed once a pass. Examples of similar size go together,
    cut so that the passes have about equal tokens. The number of passes is the least multiple of `workers`, at least
    `accumulation` for each, at which no pass with two examples or more exceeds `budget` tokens. All workers get the
    same number of passes, for each pass communicates.

    Returns `result[worker][pass]`, a list of example numbers, empty where there are too few.
    """
    order = sorted(batch, key=lambda index: (-sizes[index], index))
    passes = accumulation
    while True:
        cuts = _cut(order, sizes, passes * workers, shared)
        if all(len(cut) < 2 or shared + sum(sizes[index] - shared for index in cut) <= budget for cut in cuts):
            break
        passes += 1
    return [[cuts[number * workers + worker] for number in range(passes)] for worker in range(workers)]


def _cut(order: list[int], sizes: Mapping[int, int] | Sequence[int], parts: int, shared: int) -> list[list[int]]:
    """`order` in `parts` contiguous cuts of about equal tokens, none empty unless there are fewer examples."""
    cuts: list[list[int]] = []
    start = 0
    left = sum(sizes[index] - shared for index in order)
    for part in range(parts, 1, -1):
        goal, taken, end = left / part, 0.0, start
        most = max(start + 1, len(order) - part + 1)  # leave one example for each later cut
        while end < min(most, len(order)):
            size = sizes[order[end]] - shared
            if end > start and taken + size / 2 > goal:
                break
            taken += size
            end += 1
        cuts.append(order[start:end])
        start, left = end, left - round(taken)
    return [*cuts, order[start:]]


def common_prefix(rows: Sequence[Sequence[int]] | Sequence[str]) -> int:
    """Length of the longest common prefix of `rows`, of tokens or of text; 0 for no rows."""
    if not rows:
        return 0
    texts = [tuple(row) for row in rows]
    low, high = min(texts), max(texts)  # what these two share, all between them in lexicographic order share
    length = 0
    for a, b in zip(low, high, strict=False):
        if a != b:
            break
        length += 1
    return length


def learning_rate(step: int, steps: int, config: TrainingConfig, round: int) -> float:
    """The learning rate of step `step` of `steps`, counted from 0, in round `round`, counted from 1.

    Returns a linear warm-up, then a constant, a line or a cosine, as `config.schedule` says. A warm-up longer than a
    tenth of the round is shortened to that, or short rounds would never reach the peak.
    """
    peak = config.learning_rate * config.round_decay ** max(0, round - 1)
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    floor = config.final_learning_rate
    if config.schedule == "linear":
        return peak * (floor + (1 - floor) * (1 - done))
    if config.schedule == "cosine":
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)
    return peak
