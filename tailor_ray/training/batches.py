"""Data order: which examples a step trains on, and how they are shared out.

In: question ids, sizes in tokens, seed. Out: index lists. What always holds: the order depends on seed and epoch
alone; every example is in exactly one batch of an epoch; no batch holds a question twice; batch sizes differ by at
most one; the split of a batch into passes changes neither its content nor, through global counts, its loss.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence


def epoch_batches(question_ids: Sequence[str], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Example indices of an epoch's batches.

    The examples are laid out question by question, in random order, and dealt to the batches like cards. As there
    are at least as many batches as a question has examples, no batch is dealt the same question twice, and no
    example has to be dropped or put off.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, question_id in enumerate(question_ids):
        groups[question_id].append(index)
    if not groups:
        return []
    rng = random.Random(f"{seed}/{epoch}")
    order = sorted(groups)
    rng.shuffle(order)
    most = max(len(group) for group in groups.values())
    batches: list[list[int]] = [[] for _ in range(max(most, -(-len(question_ids) // batch_size)))]
    card = 0
    for question_id in order:
        group = groups[question_id]
        rng.shuffle(group)
        for index in group:
            batches[card % len(batches)].append(index)
            card += 1
    rng.shuffle(batches)
    return batches


class Schedule:
    """The batch of each step, from 0 to `steps - 1`; epochs are made when they are first asked for."""

    def __init__(
        self, question_ids: Sequence[str], batch_size: int, epochs: float, seed: int, steps: int | None = None
    ) -> None:
        self._question_ids = question_ids
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []
        self.steps_per_epoch = len(epoch_batches(question_ids, batch_size, seed, 0))
        self.steps = steps or round(epochs * self.steps_per_epoch)
        if self.steps_per_epoch:
            self.steps = max(1, self.steps)

    def batch(self, step: int) -> list[int]:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches = epoch_batches(self._question_ids, self._batch_size, self._seed, epoch)
            self._epoch = epoch
        return self._batches[index]


def split_batch(
    batch: Sequence[int], sizes: Sequence[int], workers: int, accumulation: int, budget: int, shared: int = 0
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


def _cut(order: list[int], sizes: Sequence[int], parts: int, shared: int) -> list[list[int]]:
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


def _tokens(cut: list[int], sizes: Sequence[int], shared: int) -> int:
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
