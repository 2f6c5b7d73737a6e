"""What the training benchmark compares with: the reference's procedure, and the floor.

See training.py beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tailor_ray.training.forward import StudentLoss
from tailor_ray.training.losses import mle_sum, triplet_sums
from tailor_ray.training.packing import PackSettings, pack_tree, target_count
from tailor_ray.training.tokens import TokenExample

SETTINGS = PackSettings(prompt_weight=0.1, representation="last", rationale_cap=192)
TRIPLET_MARGIN, TRIPLET_WEIGHT = 1.0, 0.5


def naive(model: Any, batch: Sequence[TokenExample]) -> float:
    """The reference procedure on one micro-batch; returns the loss."""
    device = model.device
    targets = sum(target_count(e) for e in batch)
    ids, mask = _padded([e.prompt + e.rationale for e in batch], device)
    weights = torch.zeros_like(ids, dtype=torch.float32)
    for row, e in enumerate(batch):
        weights[row, : len(e.prompt)] = SETTINGS.prompt_weight
        weights[row, len(e.prompt) : len(e.prompt) + len(e.rationale)] = 1.0
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    mle = mle_sum(logits.flatten(0, 1), ids[:, 1:].flatten(), weights[:, 1:].flatten()) / targets
    mle.backward()
    prompt, prompt_mask = _padded([e.prompt for e in batch], device, left=True)
    positions = (prompt_mask.cumsum(-1) - 1).clamp(min=0)
    reps: list[Tensor] = []
    for side in ("rationale", "positive", "negative"):
        if not reps:
            with torch.no_grad():
                cache = model.base_model(
                    input_ids=prompt, attention_mask=prompt_mask, position_ids=positions, use_cache=True
                ).past_key_values
        width = prompt.shape[1]
        tokens, own = _padded([getattr(e, side)[: SETTINGS.rationale_cap] for e in batch], device)
        starts = torch.tensor([[len(e.prompt)] for e in batch], device=device)
        hidden = model.base_model(
            input_ids=tokens,
            attention_mask=torch.cat([prompt_mask, own], 1),
            position_ids=starts + torch.arange(tokens.shape[1], device=device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        cache.crop(width - cache.get_seq_length())
        reps.append(hidden[torch.arange(len(batch), device=device), own.sum(-1) - 1])
    triplet = triplet_sums(reps[0], reps[1], reps[2], TRIPLET_MARGIN).loss / len(batch)
    (TRIPLET_WEIGHT * triplet).backward()
    return float(mle.detach() + TRIPLET_WEIGHT * triplet.detach())


def floor(model: Any, batch: Sequence[TokenExample]) -> float:
    """As many tokens and targets as the tree's, without demo sharing, in plain causal rows of equal length."""
    tokens = sum(e.tokens for e in batch)
    targets = sum(target_count(e) for e in batch)
    width = tokens // len(batch)
    flat = [token for e in batch for token in (*e.prompt, *e.rationale, *e.positive, *e.negative)]
    ids = torch.tensor(flat[: width * len(batch)], device=model.device).view(len(batch), width)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    logits = model.get_output_embeddings()(hidden[:targets])
    weights = torch.ones(targets, device=model.device)
    total = mle_sum(logits, ids.flatten()[:targets], weights) / targets + hidden[-6:].float().square().mean()
    total.backward()
    return float(total.detach())


def packed(loss: StudentLoss, batch: Sequence[TokenExample]) -> float:
    """Every sequence by itself, one behind the other without padding: what packed FlashAttention trainers compute."""
    student, targets, pairs = loss.student, sum(target_count(e) for e in batch), len(batch)
    kinds = ("rationale", "positive", "negative")
    alone = [TokenExample(e.question_id, e.prompt, getattr(e, kind)) for kind in kinds for e in batch]
    pack = pack_tree(alone, SETTINGS, share_root=False)
    ends = torch.tensor([len(e.prompt) + len(e.rationale) for e in alone]).cumsum(0)
    learnt = pack.source < ends[pairs - 1]  # the MLE term reads the rationales' sequences alone
    pack = replace(
        pack,
        **{name: getattr(pack, name)[learnt] for name in ("source", "target", "weight")},
        rep_token=ends - 1,
        rep_row=torch.arange(3 * pairs),
        rep_weight=torch.ones(3 * pairs),
        pairs=pairs,
    ).to(student.device, student.dtype)
    sums = loss(pack)
    total = sums.mle / targets + TRIPLET_WEIGHT * sums.reflection / pairs
    total.backward()
    return float(total.detach())


def _padded(rows: Sequence[Sequence[int]], device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)
