"""The tree: one row of tokens in which each prompt is computed once for all its continuations.

    root (the demos, once a pass) ─┬─ trunk 0 ─┬─ rationale 0
                                   │           ├─ positive 0
                                   │           └─ negative 0
                                   └─ trunk 1 ─┬─ rationale 1 …

In: `Tree`, the shape of one pass's row. It is laid out as root | trunk 0, rationale 0 | trunk 1, rationale 1 | … |
sides. Sides are the positives and negatives and, detached, a second copy of the rationales.

Out: attention in which every token sees its ancestors and itself. That is what it would see if its sequence were alone,
so no value changes. The row holds no padding. Only the attention kernels see padded blocks, and skip what no token may
see.

On CPUs blocks.py computes it. On GPUs `VarlenAttention` does so by the same algorithm: no copied keys, padding or
masks. It calls torch's FlashAttention kernels for rows of varying length. One causal call is over all spans, one is of
sides on their trunks, one of everything on the root. Outputs are merged by log-sum-exp. The backward pass is handed the
merged output and sums. Grouped keys are taken as they are. What these kernels do not take is computed by masks.

Axes: T tokens of the row, M main rows (trunk + rationale), N side rows, L Q S padded lengths of main rows, trunks and
sides, D tokens of the root, H heads (of queries), K heads of keys, E size of a head. The kernels of varying length have
(T, H, E), and sums (H, T).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tailor_ray.training.blocks import BlockAttention, Layout, Spans

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Tree:
    """How one pass's row is laid out."""

    root: int  # D
    main: Spans
    trunks: Spans  # of the examples that have sides
    sides: Spans
    sides_per_trunk: int
    detached: bool  # sides send no gradient into root and trunks
    families: tuple[tuple[slice, slice], ...]  # where each trunk that has sides lies, and all of its sides
    lengths: Lengths | None = None  # where kernels for rows of varying length compute it
    masks: list[_Masks] = field(default_factory=list)  # where masks do: made by the first layer, for all of them

    @classmethod
    def of(
        cls,
        root: int,
        trunks: list[tuple[int, int]],
        rationales: list[tuple[int, int]],
        sides: list[list[tuple[int, int]]],
        detached: bool = False,
    ) -> Tree:
        """The tree of one pass.

        Spans are (start, length) in the row. `root` is the root's length. `sides[i]` belongs to example i, and is empty
        or as long as the others. `detached` sides send no gradient into root and trunks.
        """
        main = Spans.of([(start, length + more) for (start, length), (_, more) in zip(trunks, rationales, strict=True)])
        owners = [index for index, spans in enumerate(sides) if spans]
        side_rows = Spans.of([span for index in owners for span in sides[index]])
        trunk_rows = Spans.of([trunks[index] for index in owners])
        per_trunk = len(sides[owners[0]]) if owners else 0
        families = tuple((_span(trunks[index : index + 1]), _span(sides[index])) for index in owners)
        return cls(root, main, trunk_rows, side_rows, per_trunk, detached, families)

    def to(self, device: torch.device | str) -> Tree:
        lengths = Lengths.of(self, device) if torch.device(device).type == "cuda" else None
        main, trunks, sides = (one.to(device) for one in (self.main, self.trunks, self.sides))
        return replace(self, main=main, trunks=trunks, sides=sides, lengths=lengths, masks=[])

    def attend(self, q_HTE: Tensor, k_HTE: Tensor, v_HTE: Tensor, scale: float | None) -> Tensor:
        """The attention of one layer, where the kernels of varying length are not used.

        Queries, keys and values are (H, T, E). Returns (T, H, E).
        """
        if q_HTE.device.type == "cpu":
            scale = q_HTE.shape[-1] ** -0.5 if scale is None else scale
            return BlockAttention.apply(q_HTE, k_HTE, v_HTE, self, scale)
        return self.attend_masked(q_HTE, k_HTE, v_HTE, scale)

    def attend_masked(self, q_HTE: Tensor, k_HTE: Tensor, v_HTE: Tensor, scale: float | None) -> Tensor:
        """The same by masks over copied keys: any device's attention kernel can do it."""
        if not self.masks:
            self.masks.append(_Masks.of(self, q_HTE))
        (masks,) = self.masks
        outs = []
        if self.root:
            q, k, v = (x[None, :, : self.root] for x in (q_HTE, k_HTE, v_HTE))
            outs.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[0].transpose(0, 1))
        q, k, v = (self.main.pick(x) for x in (q_HTE, k_HTE, v_HTE))
        if self.root:  # its keys and values, which all rows share, before a row's own
            k, v = (
                torch.cat([x[None, :, : self.root].expand(block.shape[0], -1, -1, -1), block], dim=2)
                for block, x in ((k, k_HTE), (v, v_HTE))
            )
        out = scaled_dot_product_attention(q, k, v, attn_mask=masks.main, is_causal=masks.main is None, scale=scale)
        outs.append(self.main.put_back(out))
        if self.sides.count:
            q, k, v = self.sides.pick(q_HTE), self._side_keys(k_HTE), self._side_keys(v_HTE)
            out = scaled_dot_product_attention(q, k, v, attn_mask=masks.sides, scale=scale)
            outs.append(self.sides.put_back(out))
        return torch.cat(outs)

    def _side_keys(self, x_HTE: Tensor) -> Tensor:
        """Keys or values that the sides see: (N, H, D + Q + S, E)."""
        above = x_HTE.detach() if self.detached else x_HTE
        trunk = self.trunks.pick(above)
        heads, width, size = trunk.shape[1:]
        trunk = trunk[:, None].expand(-1, self.sides_per_trunk, -1, -1, -1).reshape(-1, heads, width, size)
        below = [trunk, self.sides.pick(x_HTE)]
        if self.root:
            below.insert(0, above[None, :, : self.root].expand(self.sides.count, -1, -1, -1))
        return torch.cat(below, dim=2)


def _span(spans: list[tuple[int, int]]) -> slice:
    """Neighbouring spans as one slice of the row."""
    return slice(spans[0][0], sum(spans[-1]))


class _Masks(NamedTuple):
    """Additive masks, for all heads."""

    main: Tensor | None  # (1, 1, L, D + L), None without a root: plain causal
    sides: Tensor | None  # (N, 1, S, D + Q + S)

    @classmethod
    def of(cls, tree: Tree, like: Tensor) -> _Masks:
        """Of the device and dtype of `like`."""

        def causal(width: int, before: int) -> Tensor:
            """All of what lies before, and causal among themselves: (width, before + width)."""
            return like.new_full((width, before + width), float("-inf")).triu(before + 1)

        main = causal(tree.main.width, tree.root)[None, None] if tree.root else None
        if not tree.sides.count:
            return cls(main, None)
        rows, width = tree.sides.count, tree.sides.width
        lengths = torch.tensor([span.stop - span.start for span in tree.trunks.slices], device=like.device)
        hidden = torch.arange(tree.trunks.width, device=like.device) >= lengths[:, None]  # behind a trunk's end
        trunks = like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        trunks = trunks.repeat_interleave(tree.sides_per_trunk, dim=0)[:, None, None].expand(-1, -1, width, -1)
        before = [like.new_zeros(rows, 1, width, tree.root), trunks]
        return cls(main, torch.cat([*before, causal(width, 0).expand(rows, 1, -1, -1)], dim=3))


class TreeAttention:
    """The attention of one model, switched to the tree of the pass at hand.

    `tree` is set before the forward pass and stays until the next, for gradient checkpointing runs the attention again
    in the backward pass.
    """

    def __init__(self) -> None:
        self.tree: Tree | None = None

    @torch.compiler.disable  # its shapes change with every pass; what lies between two attentions is compiled
    def __call__(
        self,
        module: torch.nn.Module | None,  # noqa: ARG002 — likewise
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002 — the interface passes it; the tree is the mask
        scaling: float | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        """The attention interface of transformers: (1, H, T, E) → (1, T, H, E)."""
        assert self.tree is not None, "the tree of this pass was not set"
        unknown = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
        if unknown:
            raise NotImplementedError(f"its attention takes {', '.join(unknown)}")
        size, more_than = value.shape[-1], key.shape[-1] - value.shape[-1]
        if more_than > 0:  # latent attention has smaller values than keys, which no kernel takes: zeros change nothing
            value = pad(value, (0, more_than))
        groups = query.shape[1] // key.shape[1]
        if self.tree.lengths is not None and takes(query):
            scale = key.shape[-1] ** -0.5 if scaling is None else scaling
            rows = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
            return VarlenAttention.apply(*rows, self.tree.lengths, scale)[None, ..., :size], None
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return self.tree.attend(query[0], key[0], value[0], scaling)[None, ..., :size], None

    def install(self, model: Any) -> None:
        """Make the layers of `model` call this; models without the interface keep theirs (GPT-J is taught)."""
        from transformers import AttentionInterface

        name = f"tailor_ray_tree_{next(_numbers)}"  # one a model: the registry is global, the tree is not
        AttentionInterface.register(name, self)
        model.config._attn_implementation = name
        for module in model.modules():
            if type(module).__name__ == "GPTJAttention":
                module._attn = _GptjAttention(self, module)

    @contextmanager
    def installed(self, model: Any) -> Iterator[None]:
        """`install`, and undo it at the end."""
        before = model.config._attn_implementation
        self.install(model)
        try:
            yield
        finally:
            model.config._attn_implementation = before
            for module in model.modules():
                if type(module).__name__ == "GPTJAttention":
                    del module._attn


class _GptjAttention:
    """GPT-J predates the interface; its `_attn` takes the same tensors and returns (1, H, T, E)."""

    def __init__(self, attention: TreeAttention, module: Any) -> None:
        self.attention = attention
        self.scale = 1.0 / float(module.scale_attn)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None) -> tuple[Tensor, None]:
        out, weights = self.attention(None, query, key, value, attention_mask, self.scale)
        return out.transpose(1, 2), weights


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
        return cls(root, tokens - sides, own, trunk, families, detached=tree.detached, **found)


def takes(query: Tensor) -> bool:
    """Whether the kernels of varying length take tensors like `query`: (…, E) in half precision on a GPU."""
    size = query.shape[-1]
    halves = (torch.bfloat16, torch.float16)
    return query.is_cuda and query.dtype in halves and size % 8 == 0 and size <= WIDEST


def kernel_forward(
    q: Tensor, k: Tensor, v: Tensor, queries: Cut, keys: Cut, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Any]:
    """One call of the kernel: `queries` on `keys`, each a cut of the row.

    Returns the output, the log-sum-exp, and what the backward pass wants besides.
    """
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
