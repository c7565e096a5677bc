"""The state that is passed between the methods of a latent model. They return new states and never change old ones."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from dropout_grpo.latent.shared_prompt import Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentState:
    """Shapes: B rows, S positions in the cache, D width.

    ``attention_mask`` is 1 for cached tokens and thoughts and 0 for left padding. ``next_position`` is the position id
    of each row's next input, so padding does not shift positions. If the model can share prompts, ``prefix`` holds one
    copy per group, and cache and mask hold each row's own positions only.
    """

    cache: Cache
    hidden: Tensor  # [B, 1, D], the last hidden state, from which the next thought is made
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
        """Number of adjacent rows that share a prompt: K after ``repeat(K)`` if the model can share, else 1."""
        return 1 if self.prefix is None else self.rows // self.prefix.groups

    def repeat(self, times: int) -> "LatentState":
        """Repeat each row: row i becomes rows i * times to (i + 1) * times - 1.

        The prompt is shared if the model can share prompts, else copied. Differentiable: the gradients of all
        repetitions of a row add up.
        """
        return self if times == 1 else self._rows(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def select(self, rows: Tensor) -> "LatentState":
        """The rows with these indices, in this order.

        If rows share prompts, every remaining group must keep the same number of rows, and they must be adjacent.
        """
        state = self._rows(lambda tensor: tensor[rows])
        if self.prefix is None:
            return state
        groups = torch.unique_consecutive(rows // self.group_size)
        assert len(rows) % len(groups) == 0, "groups keep unequal numbers of rows"
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
    """Rows to keep so that all groups keep the same number: int64 indices from ``alive``, bool [groups * group_size].

    Groups without an active row are dropped. Every other group keeps as many rows as the group with the most active
    rows, its own active rows first. The order of rows does not change.
    """
    grid = alive.view(-1, group_size)
    most = int(grid.sum(1).max())
    chosen = grid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most].sort(dim=1).values
    groups = grid.any(1).nonzero()  # [groups that stay, 1]
    return (groups * group_size + chosen[groups[:, 0]]).flatten()


def map_cache(cache: Cache, function: Callable[[Tensor], Tensor]) -> Cache:
    """A new cache with ``function`` applied to every key and value tensor [B, heads, S, head size]."""
    mapped = copy.copy(cache)
    mapped.layers = []
    for layer in cache.layers:
        copied: Any = copy.copy(layer)  # transformers has a dozen kinds; those with attention have keys and values
        if copied.keys is not None:
            copied.keys, copied.values = function(copied.keys), function(copied.values)
        mapped.layers.append(copied)
    return mapped


def share_cache(cache: Cache) -> Cache:
    """A cache over the same tensors. When it grows, the original does not."""
    return map_cache(cache, lambda tensor: tensor)


def extended(mask: Tensor, by: int) -> Tensor:
    """A mask [B, S] with ``by`` more positions set to 1, [B, S + by]."""
    return torch.cat([mask, mask.new_ones(mask.shape[0], by)], dim=1)
