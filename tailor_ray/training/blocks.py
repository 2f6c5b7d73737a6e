"""The tree's attention on CPU, block by block, each block computed once and no key copied.

In: queries, keys and values of a tree's row. Out: what `Tree.attend` gives, and its gradient. The row is cut into
blocks in which all queries see all keys, or are causal. These are demos among themselves, everything on the demos, main
rows among themselves, sides on their trunk, sides among themselves.

Torch's CPU kernel gives each block's output and its log-sum-exp. Outputs are merged by the latter. In the backward pass
the kernel is handed the merged output and log-sum-exp. Softmax probabilities are exp(score − log-sum-exp), so each
block then yields its share of the exact gradient (as in ring attention).

No block is masked, for a mask makes the kernel's forward pass 16 times slower at 85 keys. A causal block is cut in
halves, for the kernel computes squares of up to 512 keys whole.

`Spans` are ragged spans of a row as padded blocks and back. `Layout` is what the kernels know of a row's layout.

Axes as in tree.py. Blocks are (rows, H, length, E), flat tensors (T, H, E).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class _Pick(torch.autograd.Function):
    """`x.index_select(1, index)` for an index whose real entries differ.

    The gradient of entry `slots[i]` goes to `sources[i]`; padding entries get none, for nothing that counts depends
    on them. This replaces index_add, which is slow and, on GPUs, not deterministic.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, sources: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(sources, slots)
        ctx.length = x.shape[1]
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sources, slots = ctx.saved_tensors
        out = grad.new_zeros((grad.shape[0], ctx.length, *grad.shape[2:]))
        out.index_copy_(1, sources, grad.index_select(1, slots))
        return out, None, None, None


@dataclass(frozen=True, slots=True)
class Spans:
    """A ragged set of spans of the row as a padded block of shape (count, width)."""

    count: int
    width: int
    index: Tensor  # (count · width) where each entry lies in the row; padding points at token 0
    sources: Tensor  # (real entries) positions in the row …
    slots: Tensor  # … and where they went in the block
    slices: tuple[slice, ...] = ()

    @classmethod
    def of(cls, spans: list[tuple[int, int]]) -> Spans:
        """`spans` are (start, length) in the row."""
        width = max((length for _, length in spans), default=0)
        starts = torch.tensor([start for start, _ in spans], dtype=torch.long)
        lengths = torch.tensor([length for _, length in spans], dtype=torch.long)
        column = torch.arange(width)
        real = column[None, :] < lengths[:, None]
        index = torch.where(real, starts[:, None] + column[None, :], 0).flatten()
        slots = real.flatten().nonzero().flatten()
        own = tuple(slice(start, start + length) for start, length in spans)
        return cls(len(spans), width, index, index[slots], slots, own)

    def to(self, device: torch.device | str) -> Spans:
        names = ("index", "sources", "slots")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def pick(self, x_HTE: Tensor) -> Tensor:
        """(H, T, E) → (count, H, width, E)."""
        picked = _Pick.apply(x_HTE, self.index, self.sources, self.slots)
        return picked.view(x_HTE.shape[0], self.count, self.width, x_HTE.shape[2]).transpose(0, 1)

    def put_back(self, block: Tensor) -> Tensor:
        """(count, H, width, E) → (real entries, H, E), in the order of the spans."""
        flat = block.transpose(1, 2).reshape(1, self.count * self.width, block.shape[1], block.shape[3])
        return _Pick.apply(flat, self.slots, self.slots, torch.arange(len(self.slots), device=flat.device))[0]


class Layout(Protocol):
    """How one pass's row is laid out; see `tree.Tree`, which is one."""

    @property
    def root(self) -> int: ...
    @property
    def main(self) -> Spans: ...
    @property
    def sides(self) -> Spans: ...
    @property
    def families(self) -> tuple[tuple[slice, slice], ...]: ...
    @property
    def detached(self) -> bool: ...


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
LONG = 64  # tokens: spans of this mean length go through the kernel one by one
WHOLE = 192  # tokens: a longer causal span is cut in halves
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


def _join(parts: list[_Part]) -> _Part:
    """Parts of neighbouring queries."""
    return _Part(torch.cat([part.out for part in parts]), torch.cat([part.lse for part in parts]))


# The index work: spans of the row as padded blocks and back, whole tokens at a time.


def _one_by_one(spans: Spans) -> bool:
    """Whether the spans are so long that a call of the kernel for each costs less than padding and copies."""
    return len(spans.slots) >= LONG * spans.count


def _pick(spans: Spans, x_THE: Tensor) -> Tensor:
    """(T, H, E) → (count, H, width, E)."""
    return x_THE.index_select(0, spans.index).view(spans.count, spans.width, *x_THE.shape[1:]).transpose(1, 2)


def _pick_out(spans: Spans, x_THE: Tensor) -> Tensor:
    """The same, with 0 at padding."""
    block = x_THE.new_zeros((spans.count * spans.width, *x_THE.shape[1:]))
    block.index_copy_(0, spans.slots, x_THE.index_select(0, spans.sources))
    return block.view(spans.count, spans.width, *x_THE.shape[1:]).transpose(1, 2)


def _pick_lse(spans: Spans, lse_TH: Tensor) -> Tensor:
    """(T, H) → (count, H, width), huge at padding."""
    block = lse_TH.new_full((spans.count * spans.width, lse_TH.shape[1]), HUGE)
    block.index_copy_(0, spans.slots, lse_TH.index_select(0, spans.sources))
    return block.view(spans.count, spans.width, -1).transpose(1, 2)


def _flat(spans: Spans, out: Tensor, lse: Tensor) -> _Part:
    """A block's result at its real entries, in the row's order."""
    heads, size = out.shape[1], out.shape[3]
    return _Part(
        out.transpose(1, 2).reshape(-1, heads, size).index_select(0, spans.slots),
        lse.transpose(1, 2).reshape(-1, heads).index_select(0, spans.slots),
    )


def _add(spans: Spans, grad_THE: Tensor, block: Tensor) -> None:
    """Add a block's gradient to the row's, whose spans do not overlap."""
    real = block.transpose(1, 2).reshape(-1, *grad_THE.shape[1:]).index_select(0, spans.slots)
    grad_THE.index_add_(0, spans.sources, real)


def _halves(span: slice) -> tuple[slice | None, slice]:
    """A causal span in halves while that saves work: the kernel computes whole squares of up to 512 keys."""
    middle = (span.start + span.stop) // 2
    if span.stop - span.start < WHOLE:
        return None, span
    return slice(span.start, middle), slice(middle, span.stop)


def _heads_first(x_THE: Tensor) -> Tensor:
    return x_THE.transpose(0, 1)[None]


class BlockAttention(torch.autograd.Function):
    """`apply(q_HTE, k_HTE, v_HTE, tree, scale)` → (T, H, E).

    Models make queries, keys and values token by token, so their memory is (T, H, E), and so is all work here: whole
    tokens are copied at a time, and the projections' backward passes find gradients in the order that they want.
    """

    @staticmethod
    def forward(ctx: Any, q_HTE: Tensor, k_HTE: Tensor, v_HTE: Tensor, tree: Layout, scale: float) -> Tensor:
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q_HTE, k_HTE, v_HTE))
        demos = slice(0, tree.root)

        def whole(queries: slice, keys: slice, causal: bool = False) -> _Part:
            spans = (_heads_first(x) for x in (q[queries], k[keys], v[keys]))
            part, sums = _forward(*spans, 0.0, causal, scale=scale)
            return _Part(part[0].transpose(0, 1), sums[0].transpose(0, 1))

        def itself(span: slice) -> _Part:
            first, second = _halves(span)
            if first is None:
                return whole(span, span, causal=True)
            return _join([itself(first), _merge([whole(second, first), itself(second)])])

        def among(spans: Spans) -> _Part:
            """Each span on itself."""
            if _one_by_one(spans):
                return _join([itself(span) for span in spans.slices])
            return _flat(spans, *_forward(*(_pick(spans, x) for x in (q, k, v)), 0.0, True, scale=scale))

        done = [among(tree.main)]
        if tree.sides.count:
            on_trunk = _join([whole(own, trunk) for trunk, own in tree.families])
            done.append(_merge([on_trunk, among(tree.sides)]))
        if tree.root:
            after = slice(demos.stop, len(q))
            done = [itself(demos), _merge([whole(after, demos), _join(done)])]
        out_THE, lse_TH = _join(done)
        ctx.save_for_backward(q, k, v, out_THE, lse_TH)
        ctx.tree, ctx.scale = tree, scale
        return out_THE

    @staticmethod
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        tree, scale = ctx.tree, ctx.scale
        end = tree.root + len(tree.main.slots)
        demos, main, sides = slice(0, tree.root), slice(tree.root, end), slice(end, len(q))
        dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))

        def whole(queries: slice, keys: slice, causal: bool = False, keep: bool = True) -> None:
            found = _backward(
                *(_heads_first(x) for x in (grad_THE[queries], q[queries], k[keys], v[keys], out[queries])),
                lse[queries].transpose(0, 1)[None], 0.0, causal, scale=scale,
            )  # fmt: skip
            dq[queries] += found[0][0].transpose(0, 1)
            if keep:
                dk[keys] += found[1][0].transpose(0, 1)
                dv[keys] += found[2][0].transpose(0, 1)

        def itself(span: slice) -> None:
            first, second = _halves(span)
            if first is None:
                whole(span, span, causal=True)
            else:
                itself(first)
                whole(second, first)
                itself(second)

        def among(spans: Spans) -> None:
            if _one_by_one(spans):
                for span in spans.slices:
                    itself(span)
                return
            grads = _backward(
                _pick_out(spans, grad_THE), *(_pick(spans, x) for x in (q, k, v)),
                _pick_out(spans, out), _pick_lse(spans, lse), 0.0, True, scale=scale,
            )  # fmt: skip
            for total, grad in zip((dq, dk, dv), grads, strict=True):
                _add(spans, total, grad)

        if tree.root:
            itself(demos)
            for span in (main, sides) if tree.detached else (slice(main.start, sides.stop),):
                whole(span, demos, keep=span is not sides)
        among(tree.main)
        if tree.sides.count:
            among(tree.sides)
            for trunk, own in tree.families:
                whole(own, trunk, keep=not tree.detached)
        return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1), None, None
