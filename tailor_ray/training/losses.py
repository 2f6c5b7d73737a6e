"""The two terms as pure functions: sums and counts out, never means.

A step's loss is `mle_sum / targets + weight · triplet_sum / pairs`, where targets and pairs are counted over the whole
step: all passes, all workers. Dividing local sums by global counts makes the result independent of how the step was
split. Axes: K targets, V vocabulary, P pairs, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def mle_sum(logits_KV: Tensor, targets_K: Tensor, weights_K: Tensor) -> Tensor:
    """Weighted token cross-entropy, summed, in float32."""
    return (F.cross_entropy(logits_KV.float(), targets_K, reduction="none") * weights_K).sum()


class TripletSums(NamedTuple):
    """Sums over pairs: the loss, pairs whose margin is not yet kept, and both cosines."""

    loss: Tensor
    active: Tensor
    cos_positive: Tensor
    cos_negative: Tensor


def triplet_sums(rationale_PH: Tensor, positive_PH: Tensor, negative_PH: Tensor, margin: float) -> TripletSums:
    """relu(margin − cos(h, h⁺) + cos(h, h⁻)) summed over pairs, in float32; 0 for no pairs."""
    rationale = rationale_PH.float()
    to_positive = F.cosine_similarity(rationale, positive_PH.float(), dim=-1)
    to_negative = F.cosine_similarity(rationale, negative_PH.float(), dim=-1)
    hinge = torch.relu(margin - to_positive + to_negative)
    return TripletSums(hinge.sum(), (hinge.detach() > 0).sum(), to_positive.detach().sum(), to_negative.detach().sum())
