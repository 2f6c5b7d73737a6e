"""Ragged spans of a row as padded blocks and back, and what the tree's attention kernels know of a row's layout.

Axes as in tree.py: T tokens of the row, H heads, E entries of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

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
