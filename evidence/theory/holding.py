"""One mask held over all latent steps against a fresh mask at each step, at equal p: measured, not claimed."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row
from evidence.theory.estimator import from_patterns, over_questions
from evidence.theory.law import Law
from evidence.theory.unbiased import score_moments

_K = 8


def check_holding(held: Sequence[Law], stepped: Sequence[Law]) -> Check:
    """Mixed groups, spread of the policies, and variance of the unbiased gradient on the toy, by exact sums.

    Args:
        held: the law of each question under held masks.
        stepped: the law of each question under per-step masks.
    """
    rows: list[Row] = []
    variances = []
    for name, laws in (("held", held), ("per step", stepped)):
        loo = partial(group_advantages, leave_one_out=True)
        estimates = [from_patterns(score_moments(law), _K, loo) for law in laws]
        total = over_questions(estimates)
        variances.append(total.variance / float(total.mean.square().sum()))
        rows.append(
            [
                name,
                len(laws[0].weights),
                fmean(law.expected_reward for law in laws),
                fmean(_spread(law) for law in laws),
                fmean(_mixed(law.expected_reward) for law in laws),
                fmean(_mixed(_greedy_reward(law)) for law in laws),
                variances[-1],
            ]
        )
    return Check(
        id="holding.exact",
        claim="Held and per-step masks at equal p differ in variance and in how many groups are mixed; which is better "
        "is not claimed.",
        quantity="tr Cov g / |grad J|^2 with per-step masks over that with held masks, K = 8",
        estimate=variances[1] / variances[0],
        verdict="measured",
        detail={
            "columns": [
                "masks",
                "number of masks",
                "J",
                "distance of a mask's policy from the average",
                "mixed groups, sampled",
                "mixed groups, greedy",
                "tr Cov g / |grad J|^2",
            ],
            "rows": rows,
        },
    )


def _mixed(right: float) -> float:
    """Probability that K independent rollouts are neither all right nor all wrong."""
    return 1 - right**_K - (1 - right) ** _K


def _greedy_reward(law: Law) -> float:
    """Mean over masks of the reward of the most probable whole answer. The toy's greedy decoding agrees with it except
    for ties, and no claim depends on it."""
    return float(law.weights @ law.rewards[law.policy.argmax(1)])


def _spread(law: Law) -> float:
    """Mean over masks of the total variation between pi(. | x, m) and pibar(. | x)."""
    average = law.weights @ law.policy
    return float(law.weights @ (law.policy - average).abs().sum(1)) / 2
