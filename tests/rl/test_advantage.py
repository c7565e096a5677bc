"""Group-relative advantages against values worked out by hand, and against TRL's formulas."""

import pytest
import torch
from torch import Tensor

from dropout_grpo.rl.advantage import all_correct, all_wrong, group_advantages, zero_variance

REWARDS = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],  # one of K right: mean 1/4
        [1.0, 1.0, 1.0, 1.0],  # all right
        [0.0, 0.0, 0.0, 0.0],  # all wrong
        [1.0, 1.0, 0.0, 0.0],  # mean 1/2
        [2.0, 0.0, 1.0, -3.0],  # mean 0
    ]
)


def test_reward_minus_the_mean_of_the_group() -> None:
    expected = torch.tensor(
        [
            [0.75, -0.25, -0.25, -0.25],
            [0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.5, 0.5, -0.5, -0.5],
            [2.0, 0.0, 1.0, -3.0],
        ]
    )
    assert torch.equal(group_advantages(REWARDS), expected)


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others() -> None:
    # [1, 0, 0, 0]: the right one against 0, a wrong one against (1 + 0 + 0) / 3.
    # [2, 0, 1, -3]: 2 - (-2/3), 0 - 0, 1 - (-1/3), -3 - 1.
    found = group_advantages(REWARDS, leave_one_out=True)
    assert found[0].tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert found[4].tolist() == pytest.approx([8 / 3, 0.0, 4 / 3, -4.0])
    for k in (2, 3, 8):
        rewards = torch.randn(6, k, dtype=torch.float64)
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / (k - 1)
        torch.testing.assert_close(group_advantages(rewards, leave_one_out=True), rewards - others)


def test_scaled_by_hand() -> None:
    # [1, 0, 0, 0]: variance (9 + 1 + 1 + 1) / 16 / 3 = 1/4, standard deviation 0.5, and TRL's 1e-4 on top.
    grouped = group_advantages(REWARDS[:1], scale_rewards="group")
    assert grouped[0].tolist() == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3)
    # Two groups together, [1, 0, 0, 0] and [1, 1, 1, 1]: mean 5/8, sum of squares 5 - 25/8 = 15/8, over 7.
    batch = group_advantages(REWARDS[:2], scale_rewards="batch")
    std = (15 / 8 / 7) ** 0.5
    assert batch[0].tolist() == pytest.approx([0.75 / (std + 1e-4)] + [-0.25 / (std + 1e-4)] * 3)
    assert batch[1].tolist() == [0.0] * 4


def trl_advantages(rewards: Tensor, num_generations: int, scale_rewards: str) -> Tensor:
    """As ``GRPOTrainer._generate_and_score_completions`` of TRL writes it, on flat rewards."""
    mean_grouped = rewards.view(-1, num_generations).mean(dim=1).repeat_interleave(num_generations, dim=0)
    advantages = rewards - mean_grouped
    if scale_rewards == "group":
        std = rewards.view(-1, num_generations).std(dim=1).repeat_interleave(num_generations, dim=0)
    else:
        std = rewards.std().expand_as(rewards)
    return advantages / (std + 1e-4)


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
def test_scaled_as_trl_does(scale_rewards: str) -> None:
    rewards = torch.randn(5, 6, dtype=torch.float64)
    expected = trl_advantages(rewards.flatten(), 6, scale_rewards).view(5, 6)
    torch.testing.assert_close(group_advantages(rewards, scale_rewards=scale_rewards), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale_rewards", ["none", "group", "batch"])
def test_without_variance_exactly_zero_even_for_awkward_floats(scale_rewards: str) -> None:
    left_over = False
    for value in (0.1, 0.7, 1 / 3, 1e-30, 12345.678, -0.3):
        for k in (2, 3, 5, 6, 7, 9, 10, 31):
            rewards = torch.full((2, k), value)
            found = group_advantages(rewards, scale_rewards=scale_rewards)  # type: ignore[arg-type]
            assert torch.equal(found, torch.zeros(2, k)), (value, k)
            left_over |= bool((rewards - rewards.mean(dim=1, keepdim=True)).any())
    assert left_over, "plain subtraction would do as well: this test proves nothing"


def test_zero_variance() -> None:
    assert zero_variance(REWARDS).tolist() == [False, True, True, False, False]
    one = torch.tensor(1.0)
    almost = torch.stack([one, one, torch.nextafter(one, one + 1)])[None]
    assert zero_variance(almost).tolist() == [False]  # a difference of one bit is a difference
    assert zero_variance(torch.full((1, 7), 0.1)).tolist() == [True]


def test_groups_without_variance_are_correct_or_wrong_by_the_sign_of_their_reward() -> None:
    assert all_correct(REWARDS).tolist() == [False, True, False, False, False]
    assert all_wrong(REWARDS).tolist() == [False, False, True, False, False]
    nan = float("nan")
    partly = torch.tensor([[nan, 0.1, 0.1], [-0.5, -0.5, nan], [nan, nan, 1.0], [nan, nan, nan], [nan, 1.0, 0.0]])
    assert all_correct(partly).tolist() == [True, False, True, False, False]
    assert all_wrong(partly).tolist() == [False, True, False, False, False]
