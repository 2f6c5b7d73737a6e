"""The student's forward pass as sums of both terms.

In: a `Pack`. Out: `Sums`, to be divided by the step's global counts. The decoder runs once; logits are made only at
targets, in slices whose memory is bounded whatever the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tailor_ray.training.losses import TripletSums, mle_sum, triplet_sums
from tailor_ray.training.packing import Pack
from tailor_ray.training.tree import TreeAttention

LOGITS_AT_ONCE = 1 << 25  # logits kept for the backward pass: 128 MiB in float32, as much again for their gradient


class Sums(NamedTuple):
    """Unnormalized terms of one pass; a tuple, for DeepSpeed looks for the tensors in it."""

    mle: Tensor
    triplet: TripletSums


class StudentLoss(nn.Module):
    """A student with its two loss terms; this is what DeepSpeed wraps, so that one forward call is one pass."""

    def __init__(self, student: Any, attention: TreeAttention | None, margin: float) -> None:
        super().__init__()
        self.student = student
        self.attention = attention
        self.margin = margin

    def forward(self, pack: Pack) -> Sums:
        hidden_TH = hidden_states(self.student, self.attention, pack)
        mle = self._mle(hidden_TH, pack)
        reps = hidden_TH.new_zeros((3 * pack.pairs, hidden_TH.shape[1]), dtype=torch.float32)
        weighted = hidden_TH.index_select(0, pack.rep_token).float() * pack.rep_weight[:, None]
        reps = reps.index_add(0, pack.rep_row, weighted)
        rationale, positive, negative = reps.view(3, pack.pairs, hidden_TH.shape[1])
        return Sums(mle, triplet_sums(rationale, positive, negative, self.margin))

    def _mle(self, hidden_TH: Tensor, pack: Pack) -> Tensor:
        head: Callable[[Tensor], Tensor] = self.student.get_output_embeddings()

        def part(hidden_KH: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return mle_sum(head(hidden_KH), target, weight)

        size = max(1, LOGITS_AT_ONCE // self.student.config.get_text_config().vocab_size)
        total = hidden_TH.new_zeros((), dtype=torch.float32)
        slices = range(0, len(pack.source), size)
        for start in slices:
            taken = slice(start, start + size)
            hidden_KH = hidden_TH.index_select(0, pack.source[taken])
            arguments = (hidden_KH, pack.target[taken], pack.weight[taken])
            total = total + (part(*arguments) if len(slices) == 1 else _recomputed(part, arguments))
        return total


def _recomputed(part: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Tensor:
    return checkpoint(part, *arguments, use_reentrant=False)


def hidden_states(student: Any, attention: TreeAttention | None, pack: Pack) -> Tensor:
    """Last hidden states after the final norm, (T, H) over all rows of the pack."""
    if pack.tree is not None:
        assert attention is not None, "a tree needs the tree's attention"
        attention.tree = pack.tree
    # rows of their own begin at position 0, as models take it by themselves; not all take it from outside
    where = {"attention_mask": pack.attention_mask} if pack.tree is None else {"position_ids": pack.positions}
    output = decoder_of(student)(input_ids=pack.ids, use_cache=False, **where)
    return output.last_hidden_state.flatten(0, 1)


def decoder_of(student: Any) -> Any:
    """What makes the hidden states: the model less its output layer. Of some (Llama 4) `base_model` is the whole."""
    inside = (student.base_model, student.get_decoder(), getattr(student, "model", None))
    return next((part for part in inside if part is not None and part is not student), student)
