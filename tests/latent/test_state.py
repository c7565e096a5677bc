"""The state of a latent model: repetition, selection, and equal group sizes when rows finish."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.shared_prompt import own_cache, prefix_of
from dropout_grpo.latent.state import LatentState, map_cache, rectangle, share_cache
from helpers.fixed_shape import fixed_shapes
from helpers.tiny_latent import tiny_latent


def a_cache(layers: int = 2) -> DynamicCache:
    """Keys of layer l, row b are 100 l + b, values their negatives; [3, 1, 2, 1]."""
    cache = DynamicCache()
    for layer in range(layers):
        keys = (100.0 * layer + torch.arange(3.0)).view(3, 1, 1, 1).expand(3, 1, 2, 1).clone()
        cache.update(keys, -keys, layer)
    return cache


def a_state(shares_prefix: bool) -> LatentState:
    """Three rows, two positions, the first row padded by one; ``shares_prefix`` as ``read`` leaves it."""
    mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    return LatentState(
        cache=own_cache() if shares_prefix else a_cache(),
        hidden=torch.arange(3.0).view(3, 1, 1),
        attention_mask=mask[:, :0] if shares_prefix else mask,
        next_position=torch.tensor([[1], [2], [2]]),
        prefix=prefix_of(a_cache(), mask) if shares_prefix else None,
    )


def test_repeat_copies_where_the_model_cannot_share() -> None:
    state = a_state(shares_prefix=False)
    repeated = state.repeat(2)
    assert (repeated.rows, repeated.group_size) == (6, 1)
    assert repeated.hidden.flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert repeated.next_position.flatten().tolist() == [1, 1, 2, 2, 2, 2]
    assert repeated.attention_mask.tolist() == [[0, 1]] * 2 + [[1, 1]] * 4
    for i, layer in enumerate(repeated.cache.layers):
        assert layer.keys[:, 0, 0, 0].tolist() == [100 * i + b for b in (0, 0, 1, 1, 2, 2)]
        assert torch.equal(layer.values, -layer.keys)
    assert state.cache.layers[0].keys.shape == (3, 1, 2, 1)  # the old state is as it was


def test_repeat_shares_the_prompt_where_the_model_can() -> None:
    state = a_state(shares_prefix=True)
    assert (state.rows, state.group_size) == (3, 1)
    repeated = state.repeat(2)
    assert (repeated.rows, repeated.group_size) == (6, 2)
    assert repeated.hidden.flatten().tolist() == [0, 0, 1, 1, 2, 2]
    assert repeated.next_position.flatten().tolist() == [1, 1, 2, 2, 2, 2]
    assert repeated.attention_mask.shape == (6, 0)  # a row has no position of its own yet
    assert repeated.cache.get_seq_length() == 0
    assert repeated.prefix is state.prefix  # one copy, not K


def test_positions_of_ones_own_are_repeated() -> None:
    state = replace(a_state(shares_prefix=True), cache=a_cache(), attention_mask=torch.ones(3, 2, dtype=torch.int64))
    repeated = state.repeat(2)
    assert (repeated.rows, repeated.group_size) == (6, 2)
    assert repeated.cache.layers[1].keys[:, 0, 1, 0].tolist() == [100, 100, 101, 101, 102, 102]
    assert repeated.attention_mask.shape == (6, 2)


def test_the_prefix_is_every_layers_cache_and_what_padding_adds_to_scores() -> None:
    prefix = a_state(shares_prefix=True).prefix
    assert prefix is not None
    assert prefix.groups == 3
    for i, keys in enumerate(prefix.keys):
        assert keys[:, 0, 0, 0].tolist() == [100 * i + b for b in range(3)]
        assert torch.equal(prefix.values[i], -keys)
    lowest = torch.finfo(torch.float32).min
    assert prefix.padding is not None
    assert prefix.padding[:, 0, 0].tolist() == [[lowest, 0], [0, 0], [0, 0]]
    assert prefix_of(a_cache(), torch.ones(3, 2, dtype=torch.int64)).padding is None


def test_gradients_of_all_repetitions_add_up() -> None:
    state = a_state(shares_prefix=False)
    state.hidden.requires_grad_()
    weights = torch.tensor([1.0, 10.0, 2.0, 20.0, 3.0, 30.0]).view(6, 1, 1)
    (state.repeat(2).hidden * weights).sum().backward()
    assert state.hidden.grad is not None
    assert state.hidden.grad.flatten().tolist() == [11.0, 22.0, 33.0]


def test_select_takes_rows_in_the_order_asked_for() -> None:
    state = a_state(shares_prefix=False)
    chosen = state.select(torch.tensor([2, 0]))
    assert chosen.hidden.flatten().tolist() == [2, 0]
    assert chosen.attention_mask.tolist() == [[1, 1], [0, 1]]
    assert chosen.next_position.flatten().tolist() == [2, 1]
    assert chosen.cache.layers[1].keys[:, 0, 0, 0].tolist() == [102, 100]
    assert state.rows == 3


def test_select_of_shared_prompts_drops_whole_groups_and_keeps_rectangles() -> None:
    repeated = a_state(shares_prefix=True).repeat(3)  # rows 0-2, 3-5, 6-8
    chosen = repeated.select(torch.tensor([0, 2, 7, 8]))
    assert chosen.prefix is not None
    assert (chosen.rows, chosen.group_size, chosen.prefix.groups) == (4, 2, 2)
    assert chosen.hidden.flatten().tolist() == [0, 0, 2, 2]
    assert chosen.prefix.keys[1][:, 0, 0, 0].tolist() == [100, 102]
    assert chosen.prefix.padding is not None
    assert chosen.prefix.padding.shape == (2, 1, 1, 2)
    with pytest.raises(AssertionError, match="unequal numbers of rows"):
        repeated.select(torch.tensor([0, 2, 7]))


@pytest.mark.parametrize(
    ("alive", "group_size", "expected"),
    [
        ([1, 1, 1, 1], 2, [0, 1, 2, 3]),
        ([1, 0, 1, 0], 1, [0, 2]),  # nothing shared: exactly the living
        ([0, 1, 1, 0], 2, [1, 2]),  # one a group, each its own
        ([0, 0, 0, 1, 1, 0], 3, [3, 4]),  # a group without a living row goes
        ([1, 0, 0, 0, 0, 0, 1, 1, 0], 3, [0, 1, 6, 7]),  # row 1 is dead and fills up its group
        ([0, 1, 0, 1, 0, 1], 3, [0, 1, 3, 5]),  # the living first, in their old order
    ],
)
def test_rectangle_by_hand(alive: list[int], group_size: int, expected: list[int]) -> None:
    assert rectangle(torch.tensor(alive, dtype=torch.bool), group_size).tolist() == expected


def test_rectangle_keeps_every_living_row_and_no_more_than_it_must() -> None:
    for groups, k in ((1, 1), (4, 3), (5, 8)):
        for _ in range(20):
            alive = torch.rand(groups * k) < 0.3
            if not alive.any():
                continue
            rows = rectangle(alive, k)
            assert set(alive.nonzero().flatten().tolist()) <= set(rows.tolist())
            assert rows.tolist() == sorted(set(rows.tolist()))
            counts = torch.bincount(rows // k, minlength=groups)
            most = int(alive.view(groups, k).sum(1).max())
            assert counts.tolist() == [most if row.any() else 0 for row in alive.view(groups, k)]


def test_a_shared_cache_grows_alone() -> None:
    old = a_cache()
    new = share_cache(old)
    assert new.layers[0].keys is old.layers[0].keys  # no copy
    new.update(torch.ones(3, 1, 1, 1), torch.ones(3, 1, 1, 1), 0)
    assert (new.get_seq_length(), old.get_seq_length()) == (3, 2)


def test_map_cache_maps_keys_and_values_of_every_layer() -> None:
    old = a_cache()
    doubled = map_cache(old, lambda tensor: 2 * tensor)
    for new, layer in zip(doubled.layers, old.layers, strict=True):
        assert torch.equal(new.keys, 2 * layer.keys)
        assert torch.equal(new.values, 2 * layer.values)
    assert map_cache(DynamicCache(), lambda tensor: 2 * tensor).get_seq_length() == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])  # gemma2 copies its prompt, the others share it
def test_verbs_leave_the_old_state_as_it_was(kind: str) -> None:
    model = tiny_latent(kind)
    with torch.no_grad():
        read = model.read(*model.encode(["Ann has 3", "Bob has 4 ? ?"]))
        hidden, length = read.hidden.clone(), read.cache.get_seq_length()
        assert length == (7 if kind == "gemma2" else 0)  # a shared prompt is not the rows' own
        first = model.think(read, 2)
        model.generate(first, 3)
        model.score(first.repeat(2), torch.ones(4, 3, dtype=torch.int64))
        assert read.cache.get_seq_length() == length
        assert torch.equal(read.hidden, hidden)
        assert read.latent_step == 0
        assert read.next_position.flatten().tolist() == [5, 7]  # Ann has 3 \n start; Bob has 4 ? ? \n start
        assert first.latent_step == 2
        assert first.next_position.flatten().tolist() == [7, 9]
        assert first.cache.get_seq_length() == length + 2
        again = model.think(read, 2)  # thinking again from the same state is thinking the same
    assert torch.equal(again.hidden, first.hidden)
    assert read.repeat(2).group_size == (1 if kind == "gemma2" else 2)


@pytest.mark.parametrize("copies", [False, True])
def test_the_attention_mask_has_an_entry_for_every_position(copies: bool) -> None:
    """Int64 [B, S] after every verb; in work of a fixed shape too, where it once was a float [1, 1, 1, 1]."""
    model, seen = tiny_latent(), []
    model.shares_prefix = not copies
    ids = torch.tensor([[0, 5, 28], [9, 3, 28]])
    after = Recurrence.logits

    def logits(self: Recurrence, state: LatentState, *args: Any) -> Any:
        seen.append(state.attention_mask)
        return after(self, state, *args)

    with pytest.MonkeyPatch.context() as patch, fixed_shapes() as played, torch.no_grad():
        patch.setattr(Recurrence, "logits", logits)
        for _ in range(2):
            state = model.think(model.read(ids, (ids > 0).long()).repeat(2), 2)
            seen.append(state.attention_mask)
            model.generate(state, 3)
    assert bool(played) is not copies
    prompt = [[0, 1, 1]] * 2 + [[1, 1, 1]] * 2 if copies else [[]] * 4
    for mask in seen:
        own = mask.shape[1] - len(prompt[0])
        assert mask.dtype == torch.int64
        assert mask.tolist() == [row + [1] * own for row in prompt]
    assert {mask.shape[1] for mask in seen} > {2 + len(prompt[0]), 3 + len(prompt[0])}
