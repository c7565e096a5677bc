"""Attention to one copy of a prompt, against torch's own attention to as many copies as there are rollouts.

G groups of K rollouts, H query heads on N key heads, L new positions, S prompt positions, T own ones, E head size.
"""

import pytest
import torch
from torch import Tensor, nn

from dropout_grpo.latent.shared_prompt import Prefix, shared_prefix_attention, shares_prefix
from helpers.engine import difference, latent_model
from helpers.tiny import EXTRA_KINDS, KINDS, VARIANTS, WINDOWED_KINDS, tiny_model

G, H, S, T, E = 3, 4, 5, 3, 8
REAL = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)  # the rest is padding


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def lowest_unless(seen: Tensor) -> Tensor:
    """What is added to scores: 0 where seen."""
    return (~seen).double() * torch.finfo(torch.float64).min


def causal(length: int) -> Tensor:
    """[1, 1, L, T]: the last L of T positions are new, and see what is not after them."""
    new = torch.arange(T - length, T)[:, None]
    return lowest_unless(torch.arange(T) <= new)[None, None]


def module(layer: int) -> nn.Module:
    holder = nn.Module()
    holder.layer_idx = layer
    return holder


@pytest.mark.parametrize(
    ("k", "kv", "length", "padded"), [(1, 4, 3, False), (4, 4, 1, True), (4, 2, 3, True), (4, 1, 3, False)]
)
def test_shared_is_copied(k: int, kv: int, length: int, padded: bool) -> None:
    query, key, value, prefix_key, prefix_value = inputs = tensors(
        (G * k, H, length, E), (G * k, kv, T, E), (G * k, kv, T, E), (G, kv, S, E), (G, kv, S, E)
    )
    own_mask = causal(length)
    padding = lowest_unless(REAL | (not padded))[:, None, None]  # [G, 1, 1, S]
    unused = torch.full_like(prefix_key, torch.nan)  # another layer's
    prefix = Prefix(
        keys=(unused, prefix_key), values=(unused, prefix_value), padding=padding if padded else None, groups=G
    )
    actual, weights = shared_prefix_attention(module(1), query, key, value, own_mask, scaling=0.3, prefix=prefix)
    assert weights is None

    keys = torch.cat([prefix_key.repeat_interleave(k, 0), key], dim=2).repeat_interleave(H // kv, 1)
    values = torch.cat([prefix_value.repeat_interleave(k, 0), value], dim=2).repeat_interleave(H // kv, 1)
    mask = torch.cat(
        [padding.repeat_interleave(k, 0).expand(-1, 1, length, S), own_mask.expand(G * k, 1, length, T)], dim=-1
    )
    expected = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.3)
    assert difference(actual.detach(), expected.transpose(1, 2).detach()) < 1e-12

    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad((actual * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected.transpose(1, 2) * weight).sum(), inputs)
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-12


def test_which_models_share_a_prompt() -> None:
    """All but those whose attention is not a plain softmax over all positions."""
    assert {kind: shares_prefix(tiny_model(kind)) for kind in KINDS + EXTRA_KINDS} == {
        **dict.fromkeys(KINDS + EXTRA_KINDS, True),
        **dict.fromkeys(WINDOWED_KINDS, False),
    }
    assert {kind: shares_prefix(tiny_model(kind)) for kind in VARIANTS} == {
        **dict.fromkeys(VARIANTS, True),
        **dict.fromkeys(("mistral", "qwen2_window"), False),
    }


def test_a_window_that_cannot_act_is_none() -> None:
    """Phi-3.5's window is longer than its positions. Fault: each rollout had a copy of the prompt."""
    model = tiny_model("mistral")
    positions = model.config.max_position_embeddings
    for window, shared in ((positions - 1, False), (positions, True)):
        model.config.sliding_window = window
        assert shares_prefix(model) is shared


def test_a_prompt_is_never_copied() -> None:
    """The purpose of sharing: no method copies the tensors of the prompt."""
    model = latent_model("qwen3")
    ids = torch.tensor([[5, 9, 28], [7, 3, 28]])
    state = model.read(ids, torch.ones_like(ids))
    after = model.think(state.repeat(50), 3)
    assert state.prefix is not None
    assert after.prefix is not None
    for read, later in zip(state.prefix.keys, after.prefix.keys, strict=True):
        assert later.shape[0] == 2
        assert later.data_ptr() == read.data_ptr()
    own = {(layer.keys.shape[0], layer.keys.shape[2]) for layer in after.cache.layers}
    assert own == {(100, 3)}  # of its own a rollout has its thoughts
