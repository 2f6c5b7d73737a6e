"""What the training benchmarks time: the students, our pass, and what it is compared with.

See training.py beside this file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tailor_ray.training.forward import StudentLoss
from tailor_ray.training.losses import mle_sum, triplet_sum
from tailor_ray.training.packing import Pack, PackSettings, pack_separate, pack_tree, target_count
from tailor_ray.training.tokens import TokenExample
from tailor_ray.training.tree import Tree

SETTINGS = PackSettings(prompt_weight=0.1, representation="last", rationale_cap=192)
TRIPLET_MARGIN, TRIPLET_WEIGHT = 1.0, 0.5
SIZES = {  # hidden, intermediate, layers, heads, key/value heads, vocabulary, whether the output layer is the embedding
    "tiny": (64, 128, 2, 4, 2, 2048, True),
    "3m": (256, 512, 4, 8, 8, 2048, True),
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "8b": (4096, 12288, 36, 32, 8, 151936, False),
}


def make_model(size: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Random weights of the shape of SIZES."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    hidden, inner, layers, heads, kv_heads, vocabulary, tied = SIZES[size]
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
    }
    config = LlamaConfig(**shape) if size == "3m" else Qwen2Config(**shape)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.train()


def measure(variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each repeat; the variants take turns, after a warm-up of each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, work in variants.items():
            begun = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def learn(loss: StudentLoss, batch: Sequence[TokenExample], pack: Pack) -> float:
    """Forward and backward of both terms; all of the batch's examples have a pair."""
    sums = loss(pack.to(loss.student.device))
    total = sums.mle / sum(map(target_count, batch)) + TRIPLET_WEIGHT * sums.reflection / len(batch)
    total.backward()
    return float(total.detach())


def ours(loss: StudentLoss, batch: Sequence[TokenExample], share_root: bool) -> float:
    return learn(loss, batch, pack_tree(batch, SETTINGS, share_root))


def masked(loss: StudentLoss, batch: Sequence[TokenExample]) -> float:
    """Ours by the kernel of other devices: masks over copied keys."""
    with mock.patch.object(Tree, "attend", Tree.attend_masked):
        return ours(loss, batch, share_root=False)


def separate(loss: StudentLoss, batch: Sequence[TokenExample]) -> float:
    """Every sequence by itself in a padded row; `loss` has no tree."""
    return learn(loss, batch, pack_separate(batch, SETTINGS, pad=0))


def packed(loss: StudentLoss, batch: Sequence[TokenExample]) -> float:
    return learn(loss, batch, pack_packed(batch))


def pack_packed(batch: Sequence[TokenExample]) -> Pack:
    """Every sequence by itself, one behind the other without padding: what packed FlashAttention trainers compute."""
    kinds, pairs = ("rationale", "positive", "negative"), len(batch)
    alone = [TokenExample(e.question_id, e.prompt, getattr(e, kind)) for kind in kinds for e in batch]
    pack = pack_tree(alone, SETTINGS, share_root=False)
    ends = torch.tensor([len(e.prompt) + len(e.rationale) for e in alone]).cumsum(0)
    learnt = pack.source < ends[pairs - 1]  # the MLE term reads the rationales' sequences alone
    return replace(
        pack,
        **{name: getattr(pack, name)[learnt] for name in ("source", "target", "weight")},
        rep_token=ends - 1,
        rep_row=torch.arange(3 * pairs),
        rep_weight=torch.ones(3 * pairs),
        pair_weight=torch.ones(pairs),
        pairs=pairs,
    )


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
    rationale, positive, negative = reps
    weights = torch.ones(len(batch), device=device)
    triplet = triplet_sum(rationale, positive, negative, TRIPLET_MARGIN, weights) / len(batch)
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


def _padded(rows: Sequence[Sequence[int]], device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)
