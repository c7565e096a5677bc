"""Attention with a shared prompt: the K rollouts of a group attend to one copy of the prompt's keys and values.

Without noise in the prompt phase, the K rollouts of a group have the same prompt cache. It is not repeated K times.
Instead, the queries of a group are multiplied with the one copy in a single matrix product. One softmax covers the
prompt and the rollout's own positions (thoughts, answer). The result and its gradients equal those of ordinary
attention over the concatenation.

transformers lets a model take its attention from a registry and passes unknown keyword arguments to it. This is how
``prefix`` and ``key_factors`` reach every layer of any model that supports the registry, without changes to its code.

Shapes: G groups, K rollouts per group, H query heads, N key heads (R = H / N queries per key head), L new positions, S
prompt positions, T own positions, E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, DynamicLayer, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from dropout_grpo.latent.attention_choice import Choice, attention_in_use
from dropout_grpo.latent.packing import Packing

SHARED_PREFIX = "shared_prefix"
"""The name of this attention in transformers' registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The prompt's cache, one copy per group.

    ``padding`` is added to attention scores: 0 for tokens, the lowest number for padding; None if there is no padding.
    """

    keys: tuple[Tensor, ...]  # one per layer, [G, N, S, E]
    values: tuple[Tensor, ...]  # one per layer, [G, N, S, E]
    padding: Tensor | None  # [G, 1, 1, S]
    groups: int  # G

    def select(self, groups: Tensor) -> "Prefix":
        """The groups with these indices."""
        return Prefix(
            keys=tuple(key[groups] for key in self.keys),
            values=tuple(value[groups] for value in self.values),
            padding=None if self.padding is None else self.padding[groups],
            groups=len(groups),
        )


class OwnLayer(DynamicLayer):
    """One layer's keys and values, stored contiguously from the start.

    Models slice keys and values from a wider projection. Matrix products copy such non-contiguous views, those of a
    prompt at every thought and again in the backward pass. This took an eighth of the time of a curriculum step.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, N, L, E] each; returns all, [B, N, T, E] each."""
        if self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        return self.keys, self.values


class ComputedCache(Cache):
    """Holds keys and values in the dtype in which the attention computes, and in padded rows.

    Under autocast rotary positions make keys float32. They would take twice the memory, and a cast in every later step.
    """

    packing: Packing | None = None
    """How the positions of the next forward pass are packed."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of one layer, [B, N, L, E] each, or packed; returns all of it."""
        dtype = kernel_dtype(key_states)
        new = key_states.to(dtype), value_states.to(dtype)
        if self.packing is not None:
            new = self.packing.pad_heads(new[0]), self.packing.pad_heads(new[1])
        return super().update(*new, *args, **kwargs)


class CopiedCache(ComputedCache, DynamicCache):
    """The cache of a model that keeps its own attention; its layers are those of the model's config."""


def own_cache(layers: Sequence[CacheLayerMixin] = (), packing: Packing | None = None) -> Cache:
    """A cache for a row's own positions, empty if no layers are given."""
    cache = ComputedCache(layers=list(layers)) if layers else ComputedCache(layer_class_to_replicate=OwnLayer)
    cache.packing = packing
    return cache


def prefix_of(cache: Cache, attention_mask: Tensor) -> Prefix:
    """The shared prefix, from the cache of G prompts and their mask [G, S]."""
    keys, values = zip(*cache_tensors(cache), strict=True)
    dtype = keys[0].dtype
    padded = not bool(attention_mask.all())
    lowest = torch.finfo(dtype).min
    return Prefix(
        keys=keys,
        values=values,
        padding=(attention_mask == 0).to(dtype)[:, None, None] * lowest if padded else None,
        groups=len(attention_mask),
    )


def cache_tensors(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer, [B, N, S, E] each."""
    return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr, misc]


def shares_prefix(model: PreTrainedModel) -> bool:
    """True if this model's rollouts can share a prompt.

    It must take its attention from the registry and attend to all positions with a plain softmax: a sliding window
    shorter than its positions, a soft cap or attention sinks need the model's own attention. transformers marks models
    that use the registry with the private attribute ``_supports_attention_backend``; in versions without it, prompts
    are copied.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    own = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size")
    reach = getattr(config, "sliding_window", None) or 0
    windowed = getattr(config, "use_sliding_window", True) and reach < getattr(config, "max_position_embeddings", 0)
    special = [name for name in own if getattr(config, name, None) and (name != "sliding_window" or windowed)]
    return bool(getattr(model, "_supports_attention_backend", False)) and kinds == {"full_attention"} and not special


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
    key_factors: Sequence[Tensor] | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query [B, H, L, E], key and value [B, N, T, E] -> [B, L, H, E].

    Args:
        module: the attention module; its ``layer_idx`` selects the layer of the prefix.
        query: queries of the new positions.
        key: keys of each row's own positions.
        value: values of the same positions.
        attention_mask: added to the scores of own positions, [B or 1, 1, L, T], or None.
        scaling: factor of the scores; 1 / sqrt(E) when None.
        dropout: must be 0; the model's own dropout is never used.
        prefix: the prompt that the rows of a group share, or None.
        key_factors: for each layer the factors of the attention weights, [B, H, S + T] or longer, applied after the
            softmax. The prefix's keys come first.
        packing: how the new positions are packed, if they are: then query and result are.
        **kwargs: other arguments that a model passes; not used.
    """
    if packing is not None:
        query, more = packing.pad_heads(query), {"prefix": prefix, "key_factors": key_factors, **kwargs}
        output, _ = shared_prefix_attention(module, query, key, value, attention_mask, scaling, dropout, **more)
        return packing.pack(output), None
    assert dropout == 0.0, "the model's own dropout is on"
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if prefix is None and key_factors is None and attention_in_use(query.device.type) == "sdpa":
        mask = _of_dtype(attention_mask, kernel_dtype(query))
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)
    layer = int(module.layer_idx) if prefix is not None or key_factors is not None else 0  # type: ignore[arg-type]
    rows, heads, length, size = query.shape
    kv, repeat = key.shape[1], heads // key.shape[1]
    own_query = (query * scaling).reshape(rows, kv, repeat * length, size)  # [B, N, R * L, E]
    own = (own_query @ key.transpose(-1, -2)).view(rows, kv, repeat, length, -1)
    if attention_mask is not None:
        own = own + attention_mask[:, :, None]
    if prefix is None:
        weights = _softmax(own)  # [B, N, R, L, T]
        if key_factors is not None:
            weights = weights * key_factors[layer][..., : key.shape[2]].reshape(rows, kv, repeat, 1, -1)
        weights = weights.to(value.dtype)
        return _output(weights.view(rows, kv, repeat * length, -1) @ value, heads, length), None
    groups, k = prefix.groups, rows // prefix.groups
    shared_query = _by_group(own_query, groups, k)  # [G, N, K * R * L, E]
    shared = shared_query @ prefix.keys[layer].transpose(-1, -2)  # [G, N, K * R * L, S]
    if prefix.padding is not None:
        shared = shared + prefix.padding
    split = [shared.shape[-1], key.shape[2]]
    both = torch.cat([shared, _by_group(own.flatten(2, 3), groups, k)], dim=-1)
    weights = _softmax(both)
    if key_factors is not None:
        factors = key_factors[layer][..., : sum(split)].reshape(groups, k, kv, repeat, 1, -1).transpose(1, 2)
        weights = (weights.view(groups, kv, k, repeat, length, -1) * factors).flatten(2, 4)
    to_shared, to_own = weights.to(value.dtype).split(split, dim=-1)
    from_shared = _by_row(to_shared @ prefix.values[layer], groups, k)
    from_own = _by_row(to_own, groups, k) @ value
    return _output(from_shared + from_own, heads, length), None


def attention_choices() -> dict[str, Choice]:
    """The attention that reads a prompt, by type of device, to record with a run."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return {device: attention_in_use(device) for device in devices}


def kernel_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a matrix product or SDPA takes a floating-point tensor; autocast casts all but float64."""
    device = tensor.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the device meta has none
    if on and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def _of_dtype(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask in the kernel's dtype, with a lowest number that is still finite; autocast would give minus infinity."""
    return mask if mask is None or mask.dtype == dtype else mask.clamp(min=torch.finfo(dtype).min).to(dtype)


def _by_group(rows: Tensor, groups: int, k: int) -> Tensor:
    """[G * K, N, Q, X] -> [G, N, K * Q, X]."""
    if k == 1:
        return rows
    _, kv, q, x = rows.shape
    return rows.view(groups, k, kv, q, x).transpose(1, 2).reshape(groups, kv, k * q, x)


def _by_row(grouped: Tensor, groups: int, k: int) -> Tensor:
    """[G, N, K * Q, X] -> [G * K, N, Q, X], the inverse of ``_by_group``."""
    if k == 1:
        return grouped
    _, kv, kq, x = grouped.shape
    return grouped.reshape(groups, kv, k, kq // k, x).transpose(1, 2).reshape(groups * k, kv, kq // k, x)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis, in float32 or wider."""
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def _output(heads_first: Tensor, heads: int, length: int) -> Tensor:
    """[B, N, R * L, E] -> [B, L, H, E]."""
    rows, _, _, size = heads_first.shape
    return heads_first.reshape(rows, heads, length, size).transpose(1, 2)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, eager_mask)
