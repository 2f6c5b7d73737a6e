"""From token examples to the tensors of one forward pass.

In: the examples of one pass. Out: a `Pack`. It has ids and positions, and where each target's logits come from. It says
which hidden states, or which targets' likelihoods, stand for which rationale.

Two layouts give the same losses. `pack_tree` puts all into one row in which a prompt is computed once. The part that
all prompts share is computed once for all. `pack_separate` gives each sequence a row of its own, for models whose
attention cannot do the former.

Axes: T tokens (all rows flattened), K targets, E entries of representations, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from tailor_ray.training.plan import MIN_ROOT, common_prefix
from tailor_ray.training.tokens import TokenExample
from tailor_ray.training.tree import Tree


@dataclass(frozen=True, slots=True)
class PackSettings:
    prompt_weight: float
    representation: str  # "last" or "mean"
    rationale_cap: int
    detached: bool = False
    likelihood: bool = False  # rationale and mistake are compared by likelihood, not by hidden states


@dataclass(frozen=True, slots=True)
class Pack:
    """One forward pass. `rep_row` numbers 3·P representations: all rationales, all positives, all negatives.

    With `likelihood` they are 2·P means over targets, of all rationales and all negatives, and `rep_token` numbers
    targets, among which those of negatives have the weight 0.
    """

    ids: Tensor  # (rows, width)
    positions: Tensor  # (rows, width)
    attention_mask: Tensor | None  # (rows, width), None for a tree
    tree: Tree | None
    source: Tensor  # (K) flat index whose hidden state predicts the target
    target: Tensor  # (K) token id
    weight: Tensor  # (K)
    rep_token: Tensor  # (E) flat index, or number of a target
    rep_row: Tensor  # (E)
    rep_weight: Tensor  # (E)
    pair_weight: Tensor  # (P)
    pairs: int
    tokens: int  # real tokens that are computed
    padding: int  # and padding ones
    likelihood: bool = False

    def to(self, device: torch.device | str) -> Pack:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved, tree=None if self.tree is None else self.tree.to(device))


def target_count(example: TokenExample) -> int:
    """Valid targets of the MLE term: every token of prompt and rationale but the first."""
    return len(example.prompt) + len(example.rationale) - 1


def pair_count(examples: Sequence[TokenExample]) -> int:
    """How many of the examples the self-reflection term counts."""
    return sum(example.has_pair for example in examples)


@dataclass(slots=True)
class _Targets:
    """Targets and representations under construction."""

    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    rep_token: list[int] = field(default_factory=list)
    rep_row: list[int] = field(default_factory=list)
    rep_weight: list[float] = field(default_factory=list)
    pair_weight: list[float] = field(default_factory=list)

    def predict(self, source: Sequence[int] | range, target: Sequence[int], weight: float) -> range:
        """Returns the targets' numbers."""
        first = len(self.target)
        if weight:
            self.source += source
            self.target += target
            self.weight += [weight] * len(target)
        return range(first, len(self.target))

    def compare(self, row: int, source: Sequence[int] | range, target: Sequence[int]) -> None:
        """The mean likelihood of these targets stands as row `row`; they count for nothing else."""
        first = len(self.target)
        self.source += source
        self.target += target
        self.weight += [0.0] * len(target)
        self.stand(row, range(first, len(self.target)))

    def stand(self, row: int, targets: range) -> None:
        """The mean likelihood of targets that are there already stands as row `row`."""
        self.rep_token += targets
        self.rep_row += [row] * len(targets)
        self.rep_weight += [1.0 / len(targets)] * len(targets)

    def represent(self, row: int, start: int, length: int, settings: PackSettings) -> None:
        """The rationale at flat indices start … start + length - 1 stands as row `row`."""
        length = min(length, settings.rationale_cap)
        if settings.representation == "last":
            start, length = start + length - 1, 1
        self.rep_token += range(start, start + length)
        self.rep_row += [row] * length
        self.rep_weight += [1.0 / length] * length

    def tensors(self) -> dict[str, Tensor]:
        names = ("source", "target", "weight", "rep_token", "rep_row", "rep_weight", "pair_weight")
        kinds = {name: torch.float32 for name in names if name.endswith("weight")}
        return {name: torch.tensor(getattr(self, name), dtype=kinds.get(name, torch.long)) for name in names}


def pack_tree(examples: Sequence[TokenExample], settings: PackSettings, share_root: bool = True) -> Pack:
    """All examples as one row without padding: root | trunk, rationale, trunk, rationale, … | sides.

    With `share_root` what all prompts begin with is computed once.
    """
    root = _root_length(examples) if share_root else 0
    ids: list[int] = list(examples[0].prompt[:root])
    positions: list[int] = list(range(root))
    out = _Targets(pair_weight=_pair_weights(examples))
    # one root serves all examples: its targets count once for each
    out.predict(range(root - 1), ids[1:], settings.prompt_weight * sum(example.weight for example in examples))
    trunks, rationales, learnt = [], [], []
    for example in examples:
        start, trunk, rationale = len(ids), example.prompt[root:], example.rationale
        trunks.append((start, len(trunk)))
        rationales.append((start + len(trunk), len(rationale)))
        ids += [*trunk, *rationale]
        positions += range(root, root + len(trunk) + len(rationale))
        prompt_weight = settings.prompt_weight * example.weight
        if root:
            out.predict([root - 1], trunk[:1], prompt_weight)
        out.predict(range(start, start + len(trunk) - 1), trunk[1:], prompt_weight)
        learnt.append(out.predict(range(start + len(trunk) - 1, len(ids) - 1), rationale, example.weight))
    if settings.likelihood:
        sides = _place_negatives(examples, rationales, learnt, ids, positions, out)
    else:
        sides = _place_sides(examples, rationales, settings, ids, positions, out)
    return Pack(
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        attention_mask=None,
        tree=Tree.of(root, trunks, rationales, sides, settings.detached),
        pairs=pair_count(examples),
        tokens=len(ids),
        padding=0,
        likelihood=settings.likelihood,
        **out.tensors(),
    )


def _place_sides(
    examples: Sequence[TokenExample],
    rationales: list[tuple[int, int]],
    settings: PackSettings,
    ids: list[int],
    positions: list[int],
    out: _Targets,
) -> list[list[tuple[int, int]]]:
    """Append positives and negatives to the row; their spans by example.

    Detached, the triplet term must not see the rationale that the MLE term's gradient flows through: it gets a copy.
    """
    pairs = pair_count(examples)
    sides: list[list[tuple[int, int]]] = []
    pair = 0
    for example, (start, length) in zip(examples, rationales, strict=True):
        spans: list[tuple[int, int]] = []
        if example.has_pair:
            copies = [example.rationale[: settings.rationale_cap]] if settings.detached else []
            for side in (*copies, example.positive, example.negative):
                spans.append((len(ids), len(side)))
                ids += side
                positions += range(len(example.prompt), len(example.prompt) + len(side))
            first = spans[0] if settings.detached else (start, length)
            positive, (start, length) = spans[-2:]
            negative = (start + example.shared, length - example.shared)
            for row, span in enumerate((first, positive, negative)):
                out.represent(row * pairs + pair, *span, settings)
            pair += 1
        sides.append(spans)
    return sides


def _place_negatives(
    examples: Sequence[TokenExample],
    rationales: list[tuple[int, int]],
    learnt: list[range],
    ids: list[int],
    positions: list[int],
    out: _Targets,
) -> list[list[tuple[int, int]]]:
    """Append the mistakes, whose likelihood is wanted beside the rationale's; their spans by example."""
    pairs = pair_count(examples)
    sides: list[list[tuple[int, int]]] = []
    pair = 0
    for example, (start, _), targets in zip(examples, rationales, learnt, strict=True):
        side, spans = example.negative, []
        if side:
            spans.append((len(ids), len(side)))
            source = [start - 1, *range(len(ids), len(ids) + len(side) - 1)]
            out.stand(pair, targets[example.shared :])
            out.compare(pairs + pair, source[example.shared :], side[example.shared :])
            ids += side
            positions += range(len(example.prompt), len(example.prompt) + len(side))
            pair += 1
        sides.append(spans)
    return sides


def _pair_weights(examples: Sequence[TokenExample]) -> list[float]:
    return [example.weight for example in examples if example.has_pair]


def _root_length(examples: Sequence[TokenExample]) -> int:
    """Tokens that all prompts begin with; each keeps one token at least, whose hidden state starts its rationale."""
    if len(examples) < 2:
        return 0
    length = min(common_prefix([e.prompt for e in examples]), min(len(e.prompt) for e in examples) - 1)
    return length if length >= MIN_ROOT else 0


def pack_separate(examples: Sequence[TokenExample], settings: PackSettings, pad: int) -> Pack:
    """Prompt with rationale, with positive, with negative: each a row, filled up to the longest with `pad`."""
    pairs = pair_count(examples)
    sequences: list[tuple[TokenExample, tuple[int, ...], int, int]] = []  # example, continuation, kind, pair
    pair = 0
    for example in examples:
        sequences.append((example, example.rationale, 0, pair))
        if example.has_pair:
            sequences += [(example, example.positive, 1, pair)] if not settings.likelihood else []
            sequences += [(example, example.negative, 2, pair)]
            pair += 1
    width = max(len(example.prompt) + len(side) for example, side, _, _ in sequences)
    out = _Targets(pair_weight=_pair_weights(examples))
    rows = []
    for row, (example, side, kind, pair) in enumerate(sequences):
        start, prompt = row * width, len(example.prompt)
        tokens = [*example.prompt, *side]
        rows.append(tokens + [pad] * (width - len(tokens)))
        source = range(start + prompt - 1, start + len(tokens) - 1)
        if kind == 0:
            prompt_weight = settings.prompt_weight * example.weight
            out.predict(range(start, start + prompt - 1), example.prompt[1:], prompt_weight)
            learnt = out.predict(source, side, example.weight)
        shared = example.shared
        if settings.likelihood and kind == 2:
            out.compare(pairs + pair, source[shared:], side[shared:])
        elif settings.likelihood and example.has_pair:
            out.stand(pair, learnt[shared:])
        elif example.has_pair:
            before = shared if kind == 2 else 0
            out.represent(kind * pairs + pair, start + prompt + before, len(side) - before, settings)
    lengths = torch.tensor([len(example.prompt) + len(side) for example, side, _, _ in sequences])
    column = torch.arange(width)
    return Pack(
        ids=torch.tensor(rows),
        positions=column.expand(len(rows), -1).contiguous(),
        attention_mask=(column[None, :] < lengths[:, None]).long(),
        tree=None,
        pairs=pairs,
        tokens=int(lengths.sum()),
        padding=len(rows) * width - int(lengths.sum()),
        likelihood=settings.likelihood,
        **out.tensors(),
    )
