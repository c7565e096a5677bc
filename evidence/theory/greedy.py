"""Greedy answers under masks, as in the authors' runs: the distance of the expected gradient from grad J.

A greedy answer is a function of mask and weights, a = a(theta, m). Its score does not have mean zero, so the proof of
unbiasedness does not apply: E g is (K-1)/K times the covariance of r and the score over masks, not grad J. Without
masks all K answers of a group are the same, and nothing is learned.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import acos, degrees
from statistics import median

import torch
from torch import Tensor

from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from evidence.theory.check import Check, Row
from evidence.theory.sums import EXACT, from_patterns, moments, relative
from evidence.theory.toy import (
    QUESTIONS,
    Masks,
    Toy,
    all_masks,
    answer_index,
    answer_logprobs,
    build_toy,
    expected_reward_gradients,
    flat_gradients,
    objective_gradient,
    sample,
)

_SEEN = 0.01  # a deviation from 1 that is no rounding error
_ALONG = 8  # degrees
RATES = (0.05, 0.1, 0.2, 0.3, 0.5)


def greedy_atoms(toy: Toy, masks: Masks, question: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probability [M], reward [M] and score [M, P] of one greedy answer per mask, decoded by the library."""
    rollouts = sample(toy, torch.tensor([question]), masks.seeds[None], temperature=0.0)
    answers = answer_index(toy.answers, rollouts.answers.token_ids)
    return masks.weights, rollouts.rewards[0], _scores(toy, masks, question, answers)


def _scores(toy: Toy, masks: Masks, question: int, answers: Tensor) -> Tensor:
    """grad log pi(a | x, m) of one answer [M] per mask, [M, P]."""
    logprobs = answer_logprobs(toy, masks, question).sum(-1)  # [M, A]
    return flat_gradients(logprobs.gather(1, answers[:, None])[:, 0], toy.model)


def check_greedy(toy: Toy, *, rates: Sequence[float] = RATES) -> Check:
    """Angle and length of the expected gradient with greedy answers, relative to grad J, over p, by exact sums.

    The expected gradient of the library's rollouts is compared with the covariance of reward and score over masks,
    whose answers are read off the enumerated probabilities.
    """
    rows: list[Row] = []
    error = 0.0
    for p in rates:
        at_p = toy.at_rate(p)
        masks = all_masks(at_p)
        gradient = expected_reward_gradients(at_p, masks).mean(0)
        mean, reward = _expected(at_p, masks)
        covariance = torch.stack([_covariance(at_p, masks, q) for q in range(QUESTIONS)]).mean(0)
        error = max(error, relative(mean - covariance, covariance))
        cosine, length = _cosine(mean, gradient), float(mean.norm() / gradient.norm())
        rows.append([p, reward, length, cosine, _degrees(cosine), length * cosine])
    return Check(
        id="greedy.bias",
        claim="With greedy answers the expected gradient is the covariance of reward and score over masks, not grad J.",
        quantity="|E g - covariance| / |covariance|, largest over p",
        expected=0.0,
        value=error,
        holds=error < EXACT and min(1 - row[3] for row in rows) > _SEEN,
        columns=[
            "p",
            "mean reward of greedy answers",
            "|E g| / |grad J|",
            "cosine",
            "angle, degrees",
            "length of E g along grad J",
        ],
        rows=rows,
    )


def check_other_weights(*, seeds: Sequence[int] = range(30), rates: Sequence[float] = (0.1, 0.2)) -> Check:
    """The same angle for toys with other weights.

    Args:
        seeds: seeds of the weights.
        rates: values of p.
    """
    angles: dict[float, list[float]] = {p: [] for p in rates}
    for seed in seeds:
        toy = build_toy(seed)
        for p, at_rate in angles.items():
            masks = all_masks(toy.at_rate(p))
            mean, _ = _expected(toy.at_rate(p), masks)
            if float(mean.norm()) > EXACT:
                at_rate.append(_degrees(_cosine(mean, expected_reward_gradients(toy.at_rate(p), masks).mean(0))))
    rows = [
        [p, len(seeds) - len(values), min(values), median(values), max(values), sum(angle > 90 for angle in values)]
        for p, values in angles.items()
    ]
    along = sum(angle < _ALONG for values in angles.values() for angle in values)
    return Check(
        id="greedy.weights",
        claim="The angle depends on the weights: for other seeds E g is 0, or is not along grad J.",
        quantity=f"cases of {len(seeds) * len(rates)} in which E g is within {_ALONG} degrees of grad J",
        expected=0.0,
        value=float(along),
        holds=along == 0,
        columns=["p", "seeds with E g = 0", "least angle, degrees", "median", "greatest", "seeds above 90"],
        rows=rows,
    )


def _expected(toy: Toy, masks: Masks) -> tuple[Tensor, float]:
    """E g, averaged over the questions, and the mean reward."""
    one_out = partial(group_advantages, leave_one_out=True)  # E g is the same for every K, and grad J if unbiased
    means, rewards = [], []
    for question in range(QUESTIONS):
        probability, reward, score = greedy_atoms(toy, masks, question)
        means.append(from_patterns(moments(probability, reward, score), 2, one_out).mean)
        rewards.append(float(probability @ reward))
    return torch.stack(means).mean(0), sum(rewards) / len(rewards)


def _covariance(toy: Toy, masks: Masks, question: int) -> Tensor:
    """Cov_m(R(a(m)), grad log pi(a(m) | m)), with the greedy answers a(m) of the enumerated probabilities, [P]."""
    logprobs = answer_logprobs(toy, masks, question).detach()  # [M, A, L]
    first = logprobs[..., 0]  # equal for all answers with the same first token
    likeliest = first >= first.amax(1, keepdim=True) - EXACT
    second = torch.where(likeliest, logprobs[..., 1], -torch.inf)
    best = second.argmax(1)  # an answer that has ended has 0 there, and no other answer its first token
    reward = toy.rewards[question, best]
    return (masks.weights * (reward - masks.weights @ reward)) @ _scores(toy, masks, question, best)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


def _degrees(cosine: float) -> float:
    return degrees(acos(min(1.0, max(-1.0, cosine))))


def check_collapse(toy: Toy, *, seed: int) -> Check:
    """Advantages and gradient of 64 groups of 8 for each question, without masks and with greedy answers.

    The other rows show that either source of randomness suffices.
    """
    plain = replace(toy, exploration=NoExploration())
    rows: list[Row] = []
    for name, policy, options in (
        ("no mask, greedy", plain, {"temperature": 0.0}),
        ("held mask, greedy", toy, {"temperature": 0.0}),
        ("no mask, sampled", plain, {}),
        ("held mask, sampled", toy, {}),
    ):
        questions = torch.arange(QUESTIONS).repeat(64)
        seeds = rollout_seeds(seed, 0, torch.arange(len(questions)), 8)
        rollouts = sample(policy, questions, seeds, **options)
        gains = group_advantages(rollouts.rewards)
        gradient = objective_gradient(policy, rollouts).gradient
        mixed = float((~zero_variance(rollouts.rewards)).double().mean())
        rows.append([name, mixed, float(gains.abs().max()), float(gradient.abs().max())])
    largest = max(rows[0][2:])
    return Check(
        id="collapse.greedy",
        claim="Without a mask and with greedy decoding every advantage is 0 and the gradient is 0.",
        quantity="largest |A| or entry of g; exactly 0, not 0 up to rounding",
        expected=0.0,
        value=largest,
        holds=largest == 0.0,
        columns=["rollouts", "mixed groups", "largest |A|", "largest entry of g"],
        rows=rows,
    )
