"""The tree's attention on GPUs: no copied keys, no padding, no masks.

In: queries, keys and values of a tree's row, and the row's `Lengths`. Out: what `Tree.attend` gives, and its
gradient. It is the algorithm of blocks.py with torch's own FlashAttention kernels for rows of varying length: one
causal call over all spans, one of sides on their trunks, one of everything on the root; outputs are merged by log-
sum-exp, and the backward pass is handed the merged output and sums. Grouped keys are taken as they are.

Axes: T tokens of the row, H heads of queries, K of keys, E entries of a head; (T, H, E) and sums (H, T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tailor_ray.training.spans import Layout

WIDEST = 256  # entries of a head that the kernels take, in eights


class Cut(NamedTuple):
    """Queries or keys of a call: where each of its rows begins and the last ends, and the longest row."""

    ends: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> Cut:
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(ends.to(device, non_blocking=True), max(lengths))


@dataclass(frozen=True, slots=True)
class Lengths:
    """A tree's row as the kernels want it; made once a pass."""

    root: int
    side_at: int  # where the sides begin
    tokens: int
    own: Cut  # every span on itself
    trunk: Tensor | None  # flat places of the trunks' tokens; None without sides
    families: tuple[Cut, Cut] | None  # sides on trunks
    whole_root: Cut | None  # the root as keys …
    after: Cut | None  # … of everything behind it,
    main: Cut | None  # of the main rows alone,
    sides: Cut | None  # and of the sides alone
    detached: bool

    @classmethod
    def of(cls, tree: Layout, device: torch.device | str) -> Lengths:
        spans = [*([slice(0, tree.root)] if tree.root else []), *tree.main.slices, *tree.sides.slices]
        lengths = [span.stop - span.start for span in spans]
        tokens, sides = sum(lengths), len(tree.sides.slots)
        trunk, families = None, None
        if tree.families:
            trunk = torch.cat([torch.arange(one.start, one.stop) for one, _ in tree.families]).to(device)
            cuts = ([span.stop - span.start for span in group] for group in zip(*tree.families, strict=True))
            above, below = (Cut.of(one, device) for one in cuts)
            families = below, above
        root = tree.root
        found = {
            "whole_root": Cut.of([root], device) if root else None,
            "after": Cut.of([tokens - root], device) if root else None,
            "main": Cut.of([tokens - sides - root], device) if root else None,
            "sides": Cut.of([sides], device) if root and sides else None,
        }
        own = Cut.of(lengths, device)
        return cls(root, tokens - sides, tokens, own, trunk, families, detached=tree.detached, **found)


def takes(query: Tensor) -> bool:
    """Whether the kernels take tensors like this one: (…, E) in half precision on a GPU."""
    size = query.shape[-1]
    halves = (torch.bfloat16, torch.float16)
    return query.is_cuda and query.dtype in halves and size % 8 == 0 and size <= WIDEST


def kernel_forward(
    q: Tensor, k: Tensor, v: Tensor, queries: Cut, keys: Cut, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Any]:
    """Output, log-sum-exp, and what the backward pass wants besides."""
    out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, queries.ends, keys.ends, queries.longest, keys.longest, 0.0, causal, False, scale=scale
    )
    return out, lse, (state, unused)


def kernel_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, queries: Cut, keys: Cut, causal: bool,
    scale: float, state: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.ops.aten._flash_attention_backward(
        grad.contiguous(), q, k, v, out, lse.contiguous(), queries.ends, keys.ends, queries.longest, keys.longest,
        0.0, causal, *state, scale=scale,
    )  # fmt: skip


def _merge(out: Tensor, lse: Tensor, start: int, more: Tensor, more_lse: Tensor) -> None:
    """Of the queries from `start` on: add what they find among other keys, in place."""
    before = lse[:, start:]
    both = torch.logaddexp(before, more_lse)
    old, new = (one.sub(both).exp_().T[..., None].to(out.dtype) for one in (before, more_lse))
    out[start:] = out[start:] * old + more * new
    lse[:, start:] = both


class VarlenAttention(torch.autograd.Function):
    """`apply(q_THE, k_TKE, v_TKE, lengths, scale)` → (T, H, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, row: Lengths, scale: float) -> Tensor:
        out, lse, own = kernel_forward(q, k, v, row.own, row.own, True, scale)
        on_trunk = on_root = None
        if row.families is not None:
            assert row.trunk is not None
            keys, values = k.index_select(0, row.trunk), v.index_select(0, row.trunk)
            more, sums, on_trunk = kernel_forward(q[row.side_at :], keys, values, *row.families, False, scale)
            _merge(out, lse, row.side_at, more, sums)
        if row.after is not None and row.whole_root is not None:
            keys, values = k[: row.root], v[: row.root]
            more, sums, on_root = kernel_forward(q[row.root :], keys, values, row.after, row.whole_root, False, scale)
            _merge(out, lse, row.root, more, sums)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.row, ctx.scale, ctx.states = row, scale, (own, on_trunk, on_root)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        row, scale = ctx.row, ctx.scale
        own, on_trunk, on_root = ctx.states
        dq, dk, dv = kernel_backward(grad, q, k, v, out, lse, row.own, row.own, True, scale, own)

        def add(part: slice, keys: Tensor, values: Tensor, cuts: tuple[Cut, Cut], state: Any) -> tuple[Tensor, Tensor]:
            found = kernel_backward(
                grad[part], q[part], keys, values, out[part], lse[:, part], *cuts, False, scale, state
            )
            dq[part] += found[0]
            return found[1], found[2]

        if row.families is not None:
            keys, values = k.index_select(0, row.trunk), v.index_select(0, row.trunk)
            of_keys, of_values = add(slice(row.side_at, None), keys, values, row.families, on_trunk)
            if not row.detached:
                dk.index_add_(0, row.trunk, of_keys)
                dv.index_add_(0, row.trunk, of_values)
        if row.after is not None:
            parts = [(slice(row.root, None), row.after, True)]
            if row.detached:
                parts = [(slice(row.root, row.side_at), row.main, True)]
                parts += [(slice(row.side_at, None), row.sides, False)] if row.sides is not None else []
            for part, queries, keep in parts:
                above = slice(0, row.root)
                of_keys, of_values = add(part, k[above], v[above], (queries, row.whole_root), on_root)
                if keep:
                    dk[above] += of_keys
                    dv[above] += of_values
        return dq, dk, dv, None, None
