"""Gaussian-V, the control of SVP-V: noise on the entries of the value projections.

    y = x (W_V + sigma E), the entries of E are N(0, 1)

Its scale is not published; here sigma = alpha ||W_V||_F / sqrt(in * out), which gives the noise the expected squared
Frobenius norm of SVP-V.

    --exploration.kind evidence.rivals.gaussian_v:GaussianV --exploration.options '{alpha: 0.6, refresh: 50}'
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import normal_quantiles, random_bits, stream
from evidence.rivals.value_weights import Copies, OnValueWeights, RowChange

MOST_HELD = 2**26
"""Number of entries. The noise E of a batch is kept in memory up to this size; above it, it is drawn at each use."""


class GaussianV(OnValueWeights):
    """sigma E is added to every W_V."""

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        """sigma / alpha, []."""
        return (torch.linalg.matrix_norm(weight) / weight.numel() ** 0.5,)

    def changes(self, seeds: Tensor, copies: Copies) -> Mapping[str, RowChange]:
        """The change of each value projection's output."""
        entries = len(seeds) * sum(weight.numel() for weight in copies.weights.values())
        changes = {
            name: _Added(name=name, seeds=seeds, weight=weight, sigma=self.alpha * copies.prepared[name][0])
            for name, weight in copies.weights.items()
        }
        if entries <= MOST_HELD:
            for change in changes.values():
                change.held = change.matrices(0, len(seeds))
        return changes


def normal_matrix(seeds: Tensor, name: str, size: int, dtype: torch.dtype) -> Tensor:
    """Standard normal [B, size], for a size in the thousands: each word of the named stream gives four numbers.

    Number i is the quantile of 16 bits of word i // 4, lowest bits first. This takes less than half of the time of
    ``dropout_grpo.exploration.seeds.normal``.
    """
    words = random_bits(seeds, stream(name, -(-size // 4), seeds.device))
    # The lowest bits come first in memory on machines that PyTorch has packages for: they are little-endian.
    index = words.view(torch.int16)[:, :size].to(torch.int32).bitwise_and_(0xFFFF)
    return torch.nn.functional.embedding(index, normal_quantiles(dtype, seeds.device)[:, None])[..., 0]


@dataclass(slots=True, kw_only=True)
class _Added:
    """x -> x (sigma E), with one E [I, O] per row."""

    name: str
    seeds: Tensor  # int64 [B]
    weight: Tensor  # [I, O], for its shape and dtype
    sigma: Tensor  # []
    held: Tensor | None = None  # [B, I, O]

    def __call__(self, x: Tensor) -> Tensor:
        if self.held is not None:
            return x @ self.held
        rows = max(1, MOST_HELD // self.weight.numel())
        added: Tensor = _TimesDrawn.apply(x, self.matrices, rows)
        return added

    def matrices(self, begin: int, end: int) -> Tensor:
        """sigma E of the rows ``begin`` to ``end`` - 1, [end - begin, I, O]."""
        drawn = normal_matrix(self.seeds[begin:end], self.name, self.weight.numel(), self.weight.dtype)
        return drawn.view(-1, *self.weight.shape) * self.sigma

    def select(self, rows: Tensor) -> "_Added":
        return replace(self, seeds=self.seeds[rows], held=None if self.held is None else self.held[rows])


class _TimesDrawn(torch.autograd.Function):
    """x @ matrices, some rows at a time. The matrices are not kept for the backward pass but drawn again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Callable[[int, int], Tensor], rows: int) -> Tensor:
        ctx.matrices, ctx.rows = matrices, rows
        return _times(x, matrices, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _times(gradient, lambda begin, end: ctx.matrices(begin, end).transpose(1, 2), ctx.rows), None, None


def _times(x: Tensor, matrices: Callable[[int, int], Tensor], rows: int) -> Tensor:
    begins = range(0, len(x), rows)
    parts = [x[b : b + rows] @ matrices(b, min(b + rows, len(x))).to(x.dtype) for b in begins]
    return torch.cat(parts)
