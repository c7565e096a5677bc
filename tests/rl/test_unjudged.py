"""Rollouts that no reward function judged: they count in no mean and have no part in the update."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.rl.advantage import (
    MovingAverage,
    baseline_advantages,
    counted_rollouts,
    group_advantages,
    group_means,
    standard_deviations,
    zero_variance,
)
from helpers.grpo_run import CONFIG, Replays, trainer
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, weights_of

NAN = float("nan")
REWARDS = torch.tensor(
    [
        [1.0, 0.0, NAN, NAN],  # mean 1/2
        [1.0, NAN, NAN, NAN],  # one alone has nothing to differ from
        [NAN, NAN, NAN, NAN],
        [1.0, 1.0, NAN, 1.0],
        [2.0, 0.0, 1.0, NAN],  # mean 1, standard deviation 1
    ]
)


def test_means_and_advantages_by_hand() -> None:
    expected = [[0.5, -0.5, 0, 0], [0] * 4, [0] * 4, [0] * 4, [1, -1, 0, 0]]
    assert group_advantages(REWARDS).tolist() == expected
    means = group_means(REWARDS)
    assert means[[0, 1, 3, 4]].tolist() == [0.5, 1.0, 1.0, 1.0]
    assert means[2].isnan()
    assert zero_variance(REWARDS).tolist() == [False, True, True, True, False]
    assert standard_deviations(REWARDS).tolist() == pytest.approx([0.5**0.5, 0.0, 0.0, 0.0, 1.0])
    assert counted_rollouts(REWARDS).sum(dim=1).tolist() == [2, 0, 0, 3, 3]
    assert counted_rollouts(REWARDS, at_least=1).sum(dim=1).tolist() == [2, 1, 0, 3, 3]


def test_leave_one_out_counts_those_judged() -> None:
    found = group_advantages(REWARDS, leave_one_out=True)
    assert found[0].tolist() == [1.0, -1.0, 0.0, 0.0]  # each against the other one
    assert found[4].tolist() == pytest.approx([1.5, -1.5, 0.0, 0.0])  # 2 - 1/2, 0 - 3/2, 1 - 1
    assert found[1:4].tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
def test_scaled_advantages_are_those_of_the_judged_alone(scale_rewards: Any) -> None:
    scaled = group_advantages(REWARDS[[0, 4]], scale_rewards=scale_rewards)
    std = torch.tensor([0.5**0.5, 1.0]) if scale_rewards == "group" else torch.tensor([1.0, 0, 2, 0, 1]).std()
    expected = group_advantages(REWARDS[[0, 4]]) / (std.expand(2)[:, None] + 1e-4)
    torch.testing.assert_close(scaled, expected)


def test_the_moving_average_is_of_the_judged_alone() -> None:
    average = MovingAverage().after(REWARDS[:1], 0.75)
    assert average.value == 0.5
    assert average.after(REWARDS[2:3], 0.75) == average
    # 3/4 of 1/4 x 1/2 and 1/4 x 1, over 3/4 x 1/4 + 1/4
    assert average.after(REWARDS[3:4], 0.75).value == pytest.approx((3 / 32 + 1 / 4) / (7 / 16))
    assert baseline_advantages(REWARDS[:1], 0.25).tolist() == [[0.75, -0.25, 0.0, 0.0]]


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
    assert update["batch"].rollouts == 6
    counted = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.bool)
    assert update["batch"].tokens == int((groups.answers.mask * counted[:, None]).sum())
    assert int(update["mask"].any(-1).sum()) == 6
    assert sorted(update["advantages"].tolist())[:3] == [-0.5] * 3


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_step_that_nobody_judges_changes_nothing(tmp_path: Path, beta: float) -> None:
    model = tiny_latent()
    before = weights_of(model)
    config = replace(CONFIG, beta=beta, weight_decay=0.1)
    trainer(tmp_path, config, model=model, reward_funcs=[scripted([[None] * 4] * 3)]).train()
    assert_same_weights(weights_of(model), before)
    assert [(line["completions/unjudged"], line["grad_norm"]) for line in read_metrics(tmp_path)] == [(12, 0.0)] * 3
