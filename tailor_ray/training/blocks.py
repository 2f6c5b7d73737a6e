"""The tree's attention on CPU, block by block, each block computed once and no key copied.

In: queries, keys and values of a tree's row. Out: what `Tree.attend` gives, and its gradient. The row is cut into
blocks in which all queries see all keys, or are causal: demos among themselves, everything on the demos, main rows
among themselves, sides on their trunk, sides among themselves. Torch's CPU kernel gives each block's output and its
log-sum-exp; outputs are merged by the latter. In the backward pass, the kernel is handed the merged output and
log-sum-exp: softmax probabilities are exp(score − log-sum-exp), so each block then yields its share of the exact
gradient (as in ring attention). Against masks over copied keys this saves 12 to 18 % of the attention's time at
few-shot lengths and 8 examples a pass.

Axes as in tree.py. Blocks are (rows, H, length, E), flat tensors (H, T, E) or, for outputs, (T, H, E).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tailor_ray.training.tree import Rows, Tree

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
HUGE = 1e30  # log-sum-exp of padding queries: their probabilities become 0


class _Part(NamedTuple):
    """Output and log-sum-exp of the same queries on some of their keys: (t, H, E) and (t, H)."""

    out: Tensor
    lse: Tensor


def _merge(parts: list[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]
    lse = torch.logsumexp(torch.stack([part.lse for part in parts]), dim=0)
    out = sum(part.out * (part.lse - lse).exp()[..., None].to(part.out.dtype) for part in parts)
    assert isinstance(out, Tensor)
    return _Part(out, lse)


class _Blocks:
    """The tree's index work: spans of the row as padded blocks and back."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.main_end = tree.root + len(tree.main.slots)

    def pick(self, rows: Rows, x_HTE: Tensor, grouped: int = 1) -> Tensor:
        """(H, T, E) → (count / grouped, H, grouped · width, E)."""
        picked = x_HTE.index_select(1, rows.index)
        return picked.view(x_HTE.shape[0], rows.count // grouped, grouped * rows.width, -1).transpose(0, 1)

    def pick_out(self, rows: Rows, x_THE: Tensor, grouped: int = 1) -> Tensor:
        """(T, H, E) → (count / grouped, H, grouped · width, E), 0 at padding."""
        block = x_THE.new_zeros((rows.count * rows.width, *x_THE.shape[1:]))
        block[rows.slots] = x_THE[rows.sources]
        return block.view(rows.count // grouped, grouped * rows.width, *x_THE.shape[1:]).transpose(1, 2)

    def pick_lse(self, rows: Rows, lse_TH: Tensor, grouped: int = 1) -> Tensor:
        """(T, H) → (count / grouped, H, grouped · width), huge at padding."""
        block = lse_TH.new_full((rows.count * rows.width, lse_TH.shape[1]), HUGE)
        block[rows.slots] = lse_TH[rows.sources]
        return block.view(rows.count // grouped, grouped * rows.width, -1).transpose(1, 2)

    def flat(self, rows: Rows, out: Tensor, lse: Tensor) -> _Part:
        """A block's result at its real entries, in the row's order."""
        heads, size = out.shape[1], out.shape[3]
        return _Part(
            out.transpose(1, 2).reshape(-1, heads, size).index_select(0, rows.slots),
            lse.transpose(1, 2).reshape(-1, heads).index_select(0, rows.slots),
        )

    def add(self, rows: Rows, grad_HTE: Tensor, block: Tensor) -> None:
        """Add a block's gradient to the row's."""
        heads, size = block.shape[1], block.shape[3]
        real = block.transpose(0, 1).reshape(heads, -1, size).index_select(1, rows.slots)
        grad_HTE.index_add_(1, rows.sources, real)


class BlockAttention(torch.autograd.Function):
    """`apply(q_HTE, k_HTE, v_HTE, tree, scale)` → (T, H, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tree: Tree, scale: float) -> Tensor:
        blocks, root = _Blocks(tree), tree.root
        done: list[_Part] = []

        def on_root(start: int, end: int) -> list[_Part]:
            if not root:
                return []
            out, lse = _forward(q[None, :, start:end], k[None, :, :root], v[None, :, :root], scale=scale)
            return [_Part(out[0].transpose(0, 1), lse[0].transpose(0, 1))]

        if root:
            out, lse = _forward(q[None, :, :root], k[None, :, :root], v[None, :, :root], 0.0, True, scale=scale)
            done.append(_Part(out[0].transpose(0, 1), lse[0].transpose(0, 1)))
        among = _forward(*(blocks.pick(tree.main, x) for x in (q, k, v)), 0.0, True, scale=scale)
        done.append(_merge([*on_root(root, blocks.main_end), blocks.flat(tree.main, *among)]))
        if tree.sides.count:
            above = [blocks.pick(tree.trunks, x) for x in (k, v)]
            grouped = blocks.pick(tree.sides, q, tree.sides_per_trunk)
            on_trunk = _forward(grouped, *above, attn_mask=tree.trunk_mask, scale=scale)
            among = _forward(*(blocks.pick(tree.sides, x) for x in (q, k, v)), 0.0, True, scale=scale)
            parts = [blocks.flat(tree.sides, *on_trunk), blocks.flat(tree.sides, *among)]
            done.append(_merge([*on_root(blocks.main_end, q.shape[1]), *parts]))
        out_THE = torch.cat([part.out for part in done])
        lse_TH = torch.cat([part.lse for part in done])
        ctx.save_for_backward(q, k, v, out_THE, lse_TH)
        ctx.tree, ctx.scale = tree, scale
        return out_THE

    @staticmethod
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        tree, scale = ctx.tree, ctx.scale
        blocks = _Blocks(tree)
        dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        root, main_end, end = tree.root, blocks.main_end, q.shape[1]

        def on_root(start: int, stop: int, causal: bool, keep: bool) -> None:
            span = slice(start, stop)
            flat = (x[span].transpose(0, 1)[None] for x in (grad_THE, out))
            grad, merged = flat
            found = _backward(
                grad, q[None, :, span], k[None, :, :root], v[None, :, :root], merged,
                lse[span].transpose(0, 1)[None], 0.0, causal, scale=scale,
            )  # fmt: skip
            dq[:, span] += found[0][0]
            if keep:
                dk[:, :root] += found[1][0]
                dv[:, :root] += found[2][0]

        def among(rows: Rows) -> None:
            grads = _backward(
                blocks.pick_out(rows, grad_THE), *(blocks.pick(rows, x) for x in (q, k, v)),
                blocks.pick_out(rows, out), blocks.pick_lse(rows, lse), 0.0, True, scale=scale,
            )  # fmt: skip
            for total, grad in zip((dq, dk, dv), grads, strict=True):
                blocks.add(rows, total, grad)

        if root:
            on_root(0, root, causal=True, keep=True)
            on_root(root, main_end, causal=False, keep=True)
        among(tree.main)
        if tree.sides.count:
            if root:
                on_root(main_end, end, causal=False, keep=not tree.detached)
            among(tree.sides)
            _on_trunk(blocks, (q, k, v, out, lse), grad_THE, (dq, dk, dv), scale)
        return dq, dk, dv, None, None


def _on_trunk(
    blocks: _Blocks, saved: tuple[Tensor, ...], grad_THE: Tensor, totals: tuple[Tensor, ...], scale: float
) -> None:
    """Sides' gradient through their trunk's keys and values."""
    tree, per_trunk = blocks.tree, blocks.tree.sides_per_trunk
    q, k, v, out, lse = saved
    grads = _backward(
        blocks.pick_out(tree.sides, grad_THE, per_trunk),
        blocks.pick(tree.sides, q, per_trunk),
        blocks.pick(tree.trunks, k),
        blocks.pick(tree.trunks, v),
        blocks.pick_out(tree.sides, out, per_trunk),
        blocks.pick_lse(tree.sides, lse, per_trunk),
        0.0,
        False,
        attn_mask=tree.trunk_mask,
        scale=scale,
    )
    blocks.add(tree.sides, totals[0], grads[0])
    if not tree.detached:
        for total, grad in zip(totals[1:], grads[1:], strict=True):
            blocks.add(tree.trunks, total, grad)
