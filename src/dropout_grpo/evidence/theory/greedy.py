"""Greedy answers under masks, as in the authors' runs: the distance of the expected gradient from grad J.

A greedy answer is a function of mask and weights, a = a(theta, m). Its score does not have mean zero, so the proof of
unbiasedness does not apply: E g is (K-1)/K times the covariance of r and the score over masks, not grad J.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import acos, degrees

import torch
from torch import Tensor

from dropout_grpo.evidence.theory.check import Check, Row, holds_if
from dropout_grpo.evidence.theory.estimator import from_all_groups
from dropout_grpo.evidence.theory.gradients import flat_gradients
from dropout_grpo.evidence.theory.law import objective_gradients
from dropout_grpo.evidence.theory.setting import sample
from dropout_grpo.evidence.theory.toy import QUESTIONS, Masks, Toy, all_masks, with_rate
from dropout_grpo.evidence.theory.unbiased import EXACT
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.rollout import replay

RATES = (0.05, 0.1, 0.2, 0.3, 0.5)

Atoms = Callable[[Toy, Masks, SharedDropout, int], tuple[Tensor, Tensor, Tensor]]
"""Probability [n], reward [n] and score [n, P] of every rollout of a question."""


def greedy_atoms(toy: Toy, masks: Masks, exploration: SharedDropout, question: int) -> tuple[Tensor, Tensor, Tensor]:
    """One greedy answer per mask, decoded and scored by the library's own functions."""
    setting, seeds = toy.setting, masks.seeds[None]
    asked = torch.tensor([question])
    drawn = sample(setting, asked, seeds, exploration=exploration, temperature=0.0)
    logprobs = replay(
        setting.model,
        setting.prompts.select(asked),
        seeds,
        drawn.answers.token_ids,
        exploration,
        temperature=setting.temperature,
    )
    scores = flat_gradients((logprobs * drawn.answers.mask).sum(-1), setting.model)
    return masks.weights, drawn.rewards.flatten(), scores


def check_greedy(toy: Toy, *, rates: Sequence[float] = RATES, atoms: Atoms = greedy_atoms) -> Check:
    """Angle and length of the expected gradient with greedy answers, relative to grad J, over p, by exact sums.

    Args:
        toy: the toy.
        rates: values of p.
        atoms: the function that makes the rollouts, under test.
    """
    loo = partial(group_advantages, leave_one_out=True)  # E g is then the same for every K, and grad J if unbiased
    rows: list[Row] = []
    for p in rates:
        exploration = with_rate(p)
        masks = all_masks(toy, exploration)
        gradient = objective_gradients(toy, masks, exploration).mean(0)
        expected, rewards = [], []
        for question in range(QUESTIONS):
            probability, reward, score = atoms(toy, masks, exploration, question)
            expected.append(from_all_groups(probability, reward, score, 2, loo))
            rewards.append(float(probability @ reward))
        mean = torch.stack(expected).mean(0)
        cosine = float(mean @ gradient / (mean.norm() * gradient.norm()))
        length = float(mean.norm() / gradient.norm())
        angle = degrees(acos(min(1.0, max(-1.0, cosine))))
        rows.append([p, sum(rewards) / len(rewards), length, cosine, angle, length * cosine])
    worst = min(1 - row[3] for row in rows)
    return Check(
        id="greedy.bias",
        claim="With greedy answers the expected gradient is not parallel to grad J, at any p.",
        quantity="1 - cosine between E g and grad J, smallest over p (0 would be unbiased up to scale)",
        estimate=worst,
        verdict=holds_if(worst > EXACT),
        detail={
            "columns": [
                "p",
                "mean reward of greedy answers",
                "|E g| / |grad J|",
                "cosine",
                "angle, degrees",
                "length of E g along grad J",
            ],
            "rows": rows,
        },
    )
