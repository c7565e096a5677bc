"""What a latent model carries from verb to verb. Verbs return new states and leave the old one as it was."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from dropout_grpo.latent.fast.attention import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentState:
    """Shapes: B rows, S positions in the cache, D width.

    ``attention_mask`` is 1 where a cached position counts and 0 on left padding; ``next_position`` is the position id
    that the next input of each row gets, so padding never shifts a row's positions. Where the model can share it, the
    prompt stands once a group in ``prefix``, and cache and mask hold what each row has of its own.
    """

    cache: Cache
    hidden: Tensor  # [B, 1, D], the last hidden state: what the next thought is made of
    attention_mask: Tensor  # [B, S] int64
    next_position: Tensor  # [B, 1] int64
    latent_step: int = 0
    prefix: Prefix | None = None

    @property
    def rows(self) -> int:
        """B."""
        return self.hidden.shape[0]

    @property
    def group_size(self) -> int:
        """Adjacent rows that share a prompt: K after ``repeat(K)`` where the model can share, else 1."""
        return 1 if self.prefix is None else self.rows // self.prefix.groups

    def repeat(self, times: int) -> "LatentState":
        """Each row ``times`` times in a row, [B * times]: row i becomes rows i * times to (i + 1) * times - 1.

        The prompt is shared where the model can, copied where not. Differentiable: the gradients of all repetitions add
        up in the row they were made of.
        """
        return self if times == 1 else self._rows(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def select(self, rows: Tensor) -> "LatentState":
        """The rows of an index tensor, in its order.

        Rows that share prompts must stay rectangular: the same number of each group that stays, side by side.
        """
        state = self._rows(lambda tensor: tensor[rows])
        if self.prefix is None:
            return state
        groups = torch.unique_consecutive(rows // self.group_size)
        assert len(rows) % len(groups) == 0, "rows of a group left unevenly"
        return replace(state, prefix=self.prefix.select(groups))

    def _rows(self, rows: Callable[[Tensor], Tensor]) -> "LatentState":
        return replace(
            self,
            cache=map_cache(self.cache, rows),
            hidden=rows(self.hidden),
            attention_mask=rows(self.attention_mask),
            next_position=rows(self.next_position),
        )


def rectangle(alive: Tensor, group_size: int) -> Tensor:
    """Rows to keep so that groups stay rectangular: int64 indices from ``alive``, bool [groups * group_size].

    Groups without a living row go; of the others each keeps as many rows as the liveliest has, its living rows first
    chosen, in their old order.
    """
    grid = alive.view(-1, group_size)
    most = int(grid.sum(1).max())
    chosen = grid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most].sort(dim=1).values
    groups = grid.any(1).nonzero()  # [groups that stay, 1]
    return (groups * group_size + chosen[groups[:, 0]]).flatten()


def map_cache(cache: Cache, function: Callable[[Tensor], Tensor]) -> Cache:
    """A new cache with ``function`` of every key and value tensor, [B, heads, S, head size]; the old one stays."""
    mapped = copy.copy(cache)
    mapped.layers = []
    for layer in cache.layers:
        copied: Any = copy.copy(layer)  # transformers has a dozen kinds; those with attention have keys and values
        if copied.keys is not None:
            copied.keys, copied.values = function(copied.keys), function(copied.values)
        mapped.layers.append(copied)
    return mapped


def share_cache(cache: Cache) -> Cache:
    """A cache over the same tensors that can grow without the old one growing."""
    return map_cache(cache, lambda tensor: tensor)


def extended(mask: Tensor, by: int) -> Tensor:
    """A mask [B, S] with ``by`` more positions that count, [B, S + by]."""
    return torch.cat([mask, mask.new_ones(mask.shape[0], by)], dim=1)
