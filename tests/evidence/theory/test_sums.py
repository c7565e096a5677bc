"""The two exact sums against brute force in plain Python, and the intervals against hand-worked numbers."""

import itertools
from functools import partial
from statistics import NormalDist

import pytest
import torch

from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.sums import (
    CONFIDENCE,
    Estimate,
    from_patterns,
    inside,
    mean_interval,
    moments,
    over_questions,
)

PROBABILITY = torch.tensor([0.1, 0.25, 0.3, 0.05, 0.3], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
VECTORS = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25], [4.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
RULES = {
    "group mean": group_advantages,
    "leave one out": partial(group_advantages, leave_one_out=True),
    "divided": partial(group_advantages, scale_rewards="group"),
    "none": torch.clone,
}


def brute_force(k, advantages):
    """Mean and trace of the covariance of g over all 5^K groups, one at a time."""
    mean, second = torch.zeros(2).double(), 0.0
    for group in itertools.product(range(5), repeat=k):
        probability = PROBABILITY[list(group)].prod()
        gains = advantages(REWARDS[list(group)][None])[0]
        g = sum(gains[i] * VECTORS[atom] for i, atom in enumerate(group)) / k
        mean, second = mean + probability * g, second + probability * g.square().sum()
    return mean, float(second - mean.square().sum())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [2, 3])
def test_sums_are_brute_force(rule, k):
    mean, variance = brute_force(k, RULES[rule])
    estimate = from_patterns(moments(PROBABILITY, REWARDS, VECTORS), k, RULES[rule])
    torch.testing.assert_close(estimate.mean, mean)
    assert estimate.variance == pytest.approx(variance, rel=1e-12)
    assert mean.norm() > 0.01


def test_moments_by_hand():
    of_rollout = moments(PROBABILITY, REWARDS, VECTORS)
    assert of_rollout.right == pytest.approx(0.4)
    # right: atoms 0 and 2 with weights 1/4 and 3/4; wrong: atoms 1, 3, 4 with weights 5/12, 1/12, 6/12
    torch.testing.assert_close(of_rollout.mean[1], torch.tensor([-0.5, -0.3125]).double())
    assert of_rollout.square[1].item() == pytest.approx((5 + 3 * 1.0625) / 4)
    assert of_rollout.square[0].item() == pytest.approx((5 * 9.25 + 17 + 6) / 12)


def test_questions_average_and_their_variances_add():
    one = Estimate(mean=torch.tensor([1.0, 0.0]).double(), variance=4.0)
    two = Estimate(mean=torch.tensor([3.0, 2.0]).double(), variance=8.0)
    both = over_questions([one, two])
    assert both.mean.tolist() == [2.0, 1.0]
    assert both.variance == 3.0  # (4 + 8) / 2^2


def test_mean_interval_by_hand():
    z = NormalDist().inv_cdf(0.9995)
    assert CONFIDENCE == 0.999
    mean, (low, high) = mean_interval([1.0, 2.0, 3.0, 6.0])  # variance 14/3, standard error sqrt(14/12)
    assert mean == 3.0
    assert low == pytest.approx(3 - z * (14 / 12) ** 0.5)
    assert high == pytest.approx(3 + z * (14 / 12) ** 0.5)
    assert inside(3.0, (low, high))
    assert not inside(high + 1e-9, (low, high))
