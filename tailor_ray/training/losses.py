"""The two terms as pure functions: sums out, never means.

A step's loss is `mle_sum / targets + weight · reflection / pairs`. Targets and pairs are counted over the whole step:
all passes, all workers. Dividing local sums by global counts makes the result independent of how the step was split.

Axes: K targets, V vocabulary, P pairs, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class _CrossEntropy(torch.autograd.Function):
    """Keeps the logits and one number a target; torch's own keeps the log-probabilities besides, as large again."""

    @staticmethod
    def forward(ctx: Any, logits_KV: Tensor, targets_K: Tensor) -> Tensor:
        scores_KV = logits_KV.float()
        lse_K = scores_KV.logsumexp(dim=-1)
        ctx.save_for_backward(logits_KV, targets_K, lse_K)
        return lse_K - scores_KV.gather(1, targets_K[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor | None, ...]:
        logits_KV, targets_K, lse_K = ctx.saved_tensors
        found_KV = (logits_KV.float() - lse_K[:, None]).exp_()  # the probabilities; less 1 at the target
        found_KV.scatter_add_(1, targets_K[:, None], found_KV.new_full((len(targets_K), 1), -1.0))
        return found_KV.mul_(grad_K[:, None]).to(logits_KV.dtype), None


def token_nll(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Each target's negative log-likelihood. Returns (K), in nats, in float32."""
    return _CrossEntropy.apply(logits_KV, targets_K)


def mle_sum(logits_KV: Tensor, targets_K: Tensor, weights_K: Tensor) -> Tensor:
    """Token cross-entropy, each target times its weight. Returns the sum in float32."""
    return (token_nll(logits_KV, targets_K) * weights_K).sum()


def triplet_sum(
    rationale_PH: Tensor, positive_PH: Tensor, negative_PH: Tensor, margin: float, weights_P: Tensor
) -> Tensor:
    """relu(margin − cos(h, h⁺) + cos(h, h⁻)), each pair times its weight in `weights_P`.

    Returns the sum in float32; 0 for no pairs.
    """
    rationale = rationale_PH.float()
    to_positive = F.cosine_similarity(rationale, positive_PH.float(), dim=-1)
    to_negative = F.cosine_similarity(rationale, negative_PH.float(), dim=-1)
    return (torch.relu(margin - to_positive + to_negative) * weights_P).sum()


CERTAIN = 1e-6  # nats per token: a rationale that is likelier has no finite odds


def orpo_sum(rationale_P: Tensor, negative_P: Tensor, weights_P: Tensor) -> Tensor:
    """−log σ(log odds(y⁺) − log odds(y⁻)), each pair times its weight in `weights_P`.

    odds(y) = p / (1 − p) at p = exp(−nll). `rationale_P` and `negative_P` are mean negative log-likelihoods in nats per
    token. Returns the sum; 0 for no pairs.
    """
    return (F.softplus(_log_odds(negative_P) - _log_odds(rationale_P)) * weights_P).sum()


def _log_odds(nll_P: Tensor) -> Tensor:
    nll_P = nll_P.clamp(min=CERTAIN)
    return -nll_P - (-torch.expm1(-nll_P)).log()


def redi_sum(negative_P: Tensor, floor: float, weights_P: Tensor) -> Tensor:
    """Mean log-likelihoods of the negatives, none below −`floor`, each times its weight in `weights_P`.

    `negative_P` are mean negative log-likelihoods in nats per token. One that has reached the floor sends no gradient.
    Returns the sum; 0 for no pairs.
    """
    return -(negative_P.clamp(max=floor) * weights_P).sum()
