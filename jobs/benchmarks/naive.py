"""The method as the text says it, with nothing shared: every sequence alone, no cache, no packing, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tailor_ray.training.tokens import TokenExample


def naive_loss(
    model: Any,
    examples: Sequence[TokenExample],
    prompt_weight: float = 0.1,
    triplet_weight: float = 0.5,
    margin: float = 1.0,
    representation: str = "last",
    cap: int = 192,
    detached: bool = False,
    reflection: str = "triplet",
    floor: float = 2.0,
) -> Tensor:
    """Sum of weighted token losses over valid targets, plus the weighted mean over examples with a pair.

    For reflections other than triplet `triplet_weight` is theirs, and a negative makes a pair.
    """
    nll, targets, hinges = [], 0, []
    for e in examples:
        ids = torch.tensor([e.prompt + e.rationale])
        log_probabilities = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
        for place in range(1, ids.shape[1]):
            weight = e.weight * (prompt_weight if place < len(e.prompt) else 1.0)
            nll.append(-weight * log_probabilities[place - 1, ids[0, place]])
            targets += 1
        if reflection != "triplet" and e.negative:
            right, wrong = (_log_likelihood(model, e.prompt, side, e.shared) for side in (e.rationale, e.negative))
            hinges.append(e.weight * (_orpo(right, wrong) if reflection == "orpo" else torch.clamp(wrong, min=-floor)))
        elif e.positive:
            h, plus, minus = (
                _represent(model, e.prompt, side[:cap], representation, detached, before)
                for side, before in ((e.rationale, 0), (e.positive, 0), (e.negative, e.shared))
            )
            hinges.append(e.weight * torch.clamp(margin - _cosine(h, plus) + _cosine(h, minus), min=0.0))
    loss = torch.stack(nll).sum() / targets
    if hinges:
        loss = loss + triplet_weight * torch.stack(hinges).mean()
    return loss


def _log_likelihood(model: Any, prompt: tuple[int, ...], side: tuple[int, ...], before: int) -> Tensor:
    """Mean over the side's tokens from `before` on."""
    log_probabilities = torch.log_softmax(model(input_ids=torch.tensor([prompt + side])).logits[0], dim=-1)
    each = [log_probabilities[len(prompt) + i - 1, token] for i, token in enumerate(side)]
    return torch.stack(each[before:]).mean()


def _orpo(right: Tensor, wrong: Tensor) -> Tensor:
    odds = [torch.exp(one) / (1 - torch.exp(one)) for one in (right, wrong)]
    return -torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))


def _represent(
    model: Any, prompt: tuple[int, ...], side: tuple[int, ...], representation: str, detached: bool, before: int
) -> Tensor:
    if detached:
        with torch.no_grad():
            cache = model(input_ids=torch.tensor([prompt]), use_cache=True).past_key_values
        output = model(
            input_ids=torch.tensor([side]),
            past_key_values=cache,
            position_ids=torch.arange(len(prompt), len(prompt) + len(side))[None],
            output_hidden_states=True,
        )
        states = output.hidden_states[-1][0]
    else:
        states = model(input_ids=torch.tensor([prompt + side]), output_hidden_states=True).hidden_states[-1][0]
        states = states[len(prompt) :]
    return states[-1] if representation == "last" else states[before:].mean(dim=0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())
