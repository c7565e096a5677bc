"""The state of a latent model: repetition, selection, and equal group sizes when rows finish."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.shared_prompt import own_cache, prefix_of
from dropout_grpo.latent.state import LatentState, rectangle, share_cache
from helpers.fake_cuda import fake_cuda
from helpers.tiny_latent import tiny_latent


def a_cache(layers: int = 2) -> DynamicCache:
    """Keys of layer l, row b are 100 l + b, values their negatives; [3, 1, 2, 1]."""
    cache = DynamicCache()
    for layer in range(layers):
        keys = (100.0 * layer + torch.arange(3.0)).view(3, 1, 1, 1).expand(3, 1, 2, 1).clone()
        cache.update(keys, -keys, layer)
    return cache


def a_state() -> LatentState:
    """As ``read`` leaves it: three rows, two positions, the first row padded by one."""
    mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    return LatentState(
        cache=own_cache(),
        hidden=torch.arange(3.0).view(3, 1, 1),
        attention_mask=mask[:, :0],
        next_position=torch.tensor([[1], [2], [2]]),
        prefix=prefix_of(a_cache(), mask),
    )


def test_select_of_shared_prompts_drops_whole_groups_and_keeps_rectangles() -> None:
    repeated = a_state().repeat(3)  # rows 0-2, 3-5, 6-8
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

    with pytest.MonkeyPatch.context() as patch, fake_cuda() as graphs, torch.no_grad():
        patch.setattr(Recurrence, "logits", logits)
        for _ in range(2):
            state = model.think(model.read(ids, (ids > 0).long()).repeat(2), 2)
            seen.append(state.attention_mask)
            model.generate(state, 3)
    assert bool(graphs) is not copies
    prompt = [[0, 1, 1]] * 2 + [[1, 1, 1]] * 2 if copies else [[]] * 4
    for mask in seen:
        own = mask.shape[1] - len(prompt[0])
        assert mask.dtype == torch.int64
        assert mask.tolist() == [row + [1] * own for row in prompt]
    assert {mask.shape[1] for mask in seen} > {2 + len(prompt[0]), 3 + len(prompt[0])}
