"""Group-relative advantages by hand and by TRL's formulas; rollouts that no reward function judged are left out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.rl.advantage import (
    MovingAverage,
    all_correct,
    all_wrong,
    baseline_advantages,
    counted_rollouts,
    group_advantages,
    group_means,
    standard_deviations,
    zero_variance,
)
from helpers.grpo_run import CONFIG, Replays, trainer
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, weights_of

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


NAN = float("nan")
UNJUDGED = torch.tensor(
    [
        [1.0, 0.0, NAN, NAN],  # mean 1/2
        [1.0, NAN, NAN, NAN],  # one alone has nothing to differ from
        [NAN, NAN, NAN, NAN],
        [1.0, 1.0, NAN, 1.0],
        [2.0, 0.0, 1.0, NAN],  # mean 1, standard deviation 1
    ]
)


def test_means_and_advantages_of_the_judged_by_hand() -> None:
    expected = [[0.5, -0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4, [1, -1, 0, 0]]
    assert group_advantages(UNJUDGED).tolist() == expected
    means = group_means(UNJUDGED)
    assert means[[0, 1, 3, 4]].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert means[2].isnan()
    assert zero_variance(UNJUDGED).tolist() == [False, True, True, True, False]
    assert standard_deviations(UNJUDGED).tolist() == pytest.approx([0.5**0.5, 0.0, 0.0, 0.0, 1.0])
    assert counted_rollouts(UNJUDGED).sum(dim=1).tolist() == [2, 0, 0, 3, 3]
    assert counted_rollouts(UNJUDGED, at_least=1).sum(dim=1).tolist() == [2, 1, 0, 3, 3]


def test_leave_one_out_counts_those_judged() -> None:
    found = group_advantages(UNJUDGED, leave_one_out=True)
    assert found[0].tolist() == [1.0, -1.0, 0.0, 0.0]  # each against the other one
    assert found[4].tolist() == pytest.approx([1.5, -1.5, 0.0, 0.0])  # 2 - 1/2, 0 - 3/2, 1 - 1
    assert found[1:4].tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
def test_scaled_advantages_are_those_of_the_judged_alone(scale_rewards: Any) -> None:
    scaled = group_advantages(UNJUDGED[[0, 4]], scale_rewards=scale_rewards)
    std = torch.tensor([0.5**0.5, 1.0]) if scale_rewards == "group" else torch.tensor([1.0, 0, 2, 0, 1]).std()
    expected = group_advantages(UNJUDGED[[0, 4]]) / (std.expand(2)[:, None] + 1e-4)
    torch.testing.assert_close(scaled, expected)


def test_the_moving_average_is_of_the_judged_alone() -> None:
    average = MovingAverage().after(UNJUDGED[:1], 0.75)
    assert average.value == 0.5
    assert average.after(UNJUDGED[2:3], 0.75) == average
    # 3/4 of 1/4 x 1/2 and 1/4 x 1, over 3/4 x 1/4 + 1/4
    assert average.after(UNJUDGED[3:4], 0.75).value == pytest.approx((3 / 32 + 1 / 4) / (7 / 16))
    assert baseline_advantages(UNJUDGED[:1], 0.25).tolist() == [[0.75, -0.25, 0.0, 0.0]]


def scripted(values: Sequence[Sequence[float | None]]) -> Any:
    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [value for group in values for value in group]

    return reward


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_update_leaves_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beta: float) -> None:
    replays = Replays(monkeypatch)
    config = replace(CONFIG, max_steps=1, micro_batch_size=12, beta=beta)
    reward = scripted([[1.0, 0.0, None, None], [1.0, None, None, None], [0.0, 1.0, 1.0, 0.0]])
    made = trainer(tmp_path, config, reward_funcs=[reward])
    groups, _ = made.sampler.sample(1)
    made.train()
    (line,), (update,) = read_metrics(tmp_path), replays.surrogates
    assert line["completions/unjudged"] == 5
    assert line["reward"] == pytest.approx(4 / 7)
    # 6 rollouts count: 2 of the first group, none of the second, 4 of the third.
    assert update["totals"].rollouts == 6
    counted = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    assert update["totals"].tokens == int((groups.answers.mask * counted[:, None]).sum())
    assert int(update["mask"].any(-1).sum()) == 6
    assert sorted(update["advantages"].tolist())[:3] == [-0.5] * 3


def test_metrics_of_groups_leave_out_those_in_which_nobody_is_judged(tmp_path: Path) -> None:
    """Fault: they counted as groups without a difference, of standard deviation 0."""
    reward = scripted([[None] * 4, [1.0, 0.0, 0.0, 1.0], [0.0] * 4])
    trainer(tmp_path, replace(CONFIG, max_steps=1, micro_batch_size=12), reward_funcs=[reward]).train()
    (line,) = read_metrics(tmp_path)
    names = ("frac_reward_zero_std", "frac_groups_all_correct", "frac_groups_all_wrong")
    assert [line[name] for name in names] == [0.5, 0.0, 0.5]
    assert line["reward_std"] == pytest.approx((1 / 3) ** 0.5 / 2)  # unbiased, of 1, 0, 0, 1; and 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_step_that_nobody_judges_changes_nothing(tmp_path: Path, beta: float) -> None:
    model = tiny_latent()
    before = weights_of(model)
    config = replace(CONFIG, beta=beta, weight_decay=0.1)
    trainer(tmp_path, config, model=model, reward_funcs=[scripted([[None] * 4] * 3)]).train()
    assert_same_weights(weights_of(model), before)
    assert [(line["completions/unjudged"], line["grad_norm"]) for line in read_metrics(tmp_path)] == [(12, 0.0)] * 3
