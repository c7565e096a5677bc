"""Greedy answers under masks, as in the authors' runs: the distance of the expected gradient from grad J.

A greedy answer is a function of mask and weights, a = a(theta, m). Its score does not have mean zero, so the proof of
unbiasedness does not apply: E g is (K-1)/K times the covariance of r and the score over masks, not grad J.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import acos, degrees
from statistics import median

import torch
from torch import Tensor

from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.latent.rollout import replay
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.estimator import from_all_groups
from evidence.theory.gradients import flat_gradients, relative
from evidence.theory.law import answer_logprobs, objective_gradients
from evidence.theory.setting import sample
from evidence.theory.toy import QUESTIONS, Masks, Toy, all_masks, build_toy, with_rate
from evidence.theory.unbiased import EXACT

_SEEN = 0.01  # a deviation from 1 that is no rounding error
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

    The expected gradient of the library's rollouts is compared with the covariance of reward and score over masks,
    whose answers are read off the enumerated probabilities.

    Args:
        toy: the toy.
        rates: values of p.
        atoms: the function that makes the rollouts, under test.
    """
    rows: list[Row] = []
    error = 0.0
    for p in rates:
        exploration = with_rate(p)
        masks = all_masks(toy, exploration)
        gradient = objective_gradients(toy, masks, exploration).mean(0)
        mean, reward = _expected(toy, masks, exploration, atoms)
        formula = torch.stack([_covariance(toy, masks, exploration, q) for q in range(QUESTIONS)]).mean(0)
        error = max(error, relative(mean - formula, formula))
        cosine = _cosine(mean, gradient)
        length = float(mean.norm() / gradient.norm())
        rows.append([p, reward, length, cosine, _degrees(cosine), length * cosine])
    worst = min(1 - row[3] for row in rows)
    return Check(
        id="greedy.bias",
        claim="With greedy answers the expected gradient is the covariance of reward and score over masks, not grad J.",
        quantity="|E g - covariance| / |covariance|, largest over p",
        exact=0.0,
        estimate=error,
        error=error,
        verdict=holds_if(error < EXACT and worst > _SEEN),
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


def check_greedy_seeds(*, seeds: Sequence[int] = range(30), rates: Sequence[float] = (0.1, 0.2)) -> Check:
    """The same angle for toys with other weights, for which nothing is claimed.

    Args:
        seeds: seeds of the weights.
        rates: values of p.
    """
    angles: dict[float, list[float]] = {p: [] for p in rates}
    for seed in seeds:
        toy = build_toy(seed)
        for p, found in angles.items():
            exploration = with_rate(p)
            masks = all_masks(toy, exploration)
            mean, _ = _expected(toy, masks, exploration, greedy_atoms)
            if float(mean.norm()) > EXACT:
                found.append(_degrees(_cosine(mean, objective_gradients(toy, masks, exploration).mean(0))))
    rows = [
        [p, len(seeds) - len(found), min(found), median(found), max(found), sum(angle > 90 for angle in found)]
        for p, found in angles.items()
    ]
    return Check(
        id="greedy.seeds",
        claim="The angle depends on the weights: over 30 seeds of the toy's weights it is measured.",
        quantity=f"weight seeds of {len(seeds)} whose expected gradient is 0, p = {rates[0]}",
        estimate=float(rows[0][1]),
        verdict="measured",
        detail={
            "columns": ["p", "seeds with E g = 0", "least angle, degrees", "median", "greatest", "seeds above 90"],
            "rows": rows,
        },
    )


def _expected(toy: Toy, masks: Masks, exploration: SharedDropout, atoms: Atoms) -> tuple[Tensor, float]:
    """E g, averaged over the questions, and the mean reward."""
    loo = partial(group_advantages, leave_one_out=True)  # E g is then the same for every K, and grad J if unbiased
    expected, rewards = [], []
    for question in range(QUESTIONS):
        probability, reward, score = atoms(toy, masks, exploration, question)
        expected.append(from_all_groups(probability, reward, score, 2, loo))
        rewards.append(float(probability @ reward))
    return torch.stack(expected).mean(0), sum(rewards) / len(rewards)


def _covariance(toy: Toy, masks: Masks, exploration: SharedDropout, question: int) -> Tensor:
    """Cov_m(R(a(m)), grad log pi(a(m) | m)), with the greedy answers a(m) of the enumerated probabilities, [P]."""
    logprobs = answer_logprobs(toy, masks, exploration, question)  # [M, A, L]
    first = logprobs[..., 0].detach()  # equal for all answers with the same first token
    likeliest = first >= first.amax(1, keepdim=True) - EXACT
    second = torch.where(likeliest, logprobs[..., 1].detach(), -torch.inf)
    best = second.argmax(1)  # an answer that has ended has 0 there, and no other answer its first token
    every = torch.arange(len(best))
    score = flat_gradients(logprobs[every, best].sum(-1), toy.setting.model)
    reward = toy.rewards[question, best]
    weights = masks.weights
    return (weights * (reward - weights @ reward)) @ score


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


def _degrees(cosine: float) -> float:
    return degrees(acos(min(1.0, max(-1.0, cosine))))
