"""What each step does, as pure functions: which examples it trains on, how they are shared out, at what learning rate.

In: the examples' questions by number, sizes in tokens, settings, seed. Out: index lists and rates; there is nothing to
checkpoint. What always holds: the order depends on seed and epoch alone; every example is in exactly one batch of an
epoch; no batch holds a question twice; batch sizes differ by at most one; the split of a batch into passes changes
neither its content nor, through global counts, its loss. An epoch costs 4 bytes an example, and 24 more while it is
made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tailor_ray.config.training import TrainingConfig

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
    """The passes of each worker: `result[worker][pass]` is a list of example indices, empty where there are too few.

    `sizes[i]` is example i's tokens, of which `shared` are computed once a pass. Examples of similar size go together,
    cut so that the passes have about equal tokens; the number of passes is the least multiple of `workers`, at least
    `accumulation` for each, at which no pass with two examples or more exceeds `budget`. All workers get the same
    number of passes, for each pass communicates.
    """
    order = sorted(batch, key=lambda index: (-sizes[index], index))
    passes = accumulation
    while True:
        cuts = _cut(order, sizes, passes * workers, shared)
        if all(len(cut) < 2 or _tokens(cut, sizes, shared) <= budget for cut in cuts):
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


def _tokens(cut: list[int], sizes: Mapping[int, int] | Sequence[int], shared: int) -> int:
    return shared + sum(sizes[index] - shared for index in cut)


def common_prefix(rows: Sequence[Sequence[int]] | Sequence[str]) -> int:
    """Length of the longest common prefix of token rows, or of texts; 0 for no rows."""
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
    """Of step 0 … steps-1 in round 1, 2, …: linear warm-up, then constant, linear or cosine.

    A warm-up longer than a tenth of the round is shortened to that, or short rounds would never reach the peak.
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
