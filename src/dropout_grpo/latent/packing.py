"""Rows of different lengths in one line, without their padding.

Norms, projections, MLPs and the head work on each position alone. So they get the tokens of all rows one after another,
[1, N, D], as one row would be. Only attention needs the rows: it gets them padded, and gives back a line.

In batches of GSM8K's problems a third of the positions is padding.

Shapes: B rows, L positions, N tokens, H heads, E head size.
"""

from dataclasses import dataclass

from torch import Tensor

_LEAST = 1 / 8
"""Share of padding from which packing saves more than it costs in a wide model."""

COPIES = 64
"""Width of a model in which the copies of packing take as long as the products of all its positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the tokens of padded rows are."""

    index: Tensor  # int64 [N], of the tokens among the B * L positions
    rows: int  # B
    length: int  # L

    def pack(self, padded: Tensor) -> Tensor:
        """[B, L, ...] -> [1, N, ...]."""
        return padded.flatten(0, 1).index_select(0, self.index)[None]

    def pad(self, packed: Tensor) -> Tensor:
        """[1, N, ...] -> [B, L, ...], with 0 for padding."""
        padded = packed.new_zeros(self.rows * self.length, *packed.shape[2:])
        return padded.index_add_(0, self.index, packed[0]).unflatten(0, (self.rows, self.length))

    def pad_heads(self, packed: Tensor) -> Tensor:
        """[1, H, N, E] -> [B, H, L, E], with 0 for padding."""
        return self.pad(packed.transpose(1, 2)).transpose(1, 2)

    def spread(self, factors: Tensor) -> Tensor:
        """Factors of rows [B, 1, F] -> those of their tokens [1, N, F]."""
        return factors.index_select(0, self.index // self.length).transpose(0, 1)


def packing_of(mask: Tensor, width: int) -> Packing | None:
    """The tokens of a mask [B, L], 0 for padding; None if there is too little padding for the model, or no token.

    A copy of a token costs its width, and its products cost the square of it.

    Args:
        mask: 1 for tokens.
        width: of the model's hidden states.
    """
    index = mask.flatten().nonzero().squeeze(1)
    if len(index) == 0 or len(index) > (1 - max(_LEAST, COPIES / width)) * mask.numel():
        return None
    return Packing(index=index, rows=mask.shape[0], length=mask.shape[1])
