"""Coupled updates and greedy answers on the trained model, by Monte Carlo."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.coupling import log_slope
from evidence.theory.draws import Draws, K
from evidence.theory.interval import inside, jackknife_interval, ratio_interval
from evidence.theory.perturbed import flat_weights, moved
from evidence.theory.setting import Setting, estimator_gradient, objective_gradient, sample
from evidence.theory.surrogate_gradient import FRESH

STEPS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
_FITTED = 4  # steps, from the first: three decades
_SLOPE_ERROR = 0.1


def in_float64(setting: Setting) -> Setting:
    """The same policy in float64, so that differences over small steps are not lost to rounding."""
    model = setting.model
    double = LatentModel(copy.deepcopy(model.model).double(), model.tokenizer, latent_steps=model.latent_steps)
    return replace(setting, model=double)


def check_coupling_measured(
    setting: Setting,
    questions: Tensor,
    *,
    seed: int,
    batches: int = 16,
    steps: Sequence[float] = STEPS,
    reused: bool = True,
) -> Check:
    """tr Var[g(theta + d) - g(theta)] of batches of one group of 8 per question; d follows the mean gradient.

    Args:
        setting: the policy, in float64.
        questions: the questions of every batch, [G].
        seed: seed of the rollouts.
        batches: number of independent batches.
        steps: |d| / |theta|; the first four span the decades of the fit.
        reused: keep mask and answer at theta + d; under test.
    """
    model = setting.model
    drawn = [sample(setting, questions, rollout_seeds(seed, batch, questions, K)) for batch in range(batches)]
    before = torch.stack([estimator_gradient(setting, rollouts, group_advantages) for rollouts in drawn])
    mean = before.mean(0)
    direction = mean / mean.norm() * flat_weights(model).norm()
    variances: dict[str, list[list[float]]] = {"reused": [], "fresh": []}  # way -> step -> |D - mean D|^2 of a batch
    for size in steps:
        found: dict[str, list[Tensor]] = {"reused": [], "fresh": []}
        with moved(model, size * direction):
            for batch, (rollouts, gradient) in enumerate(zip(drawn, before, strict=True)):
                fresh = sample(setting, questions, rollout_seeds(seed + FRESH, batch, questions, K))
                found["fresh"].append(estimator_gradient(setting, fresh, group_advantages) - gradient)
                again = rollouts if reused else fresh
                found["reused"].append(estimator_gradient(setting, again, group_advantages) - gradient)
        for way, differences in found.items():
            variances[way].append(_squares(torch.stack(differences)))
    at_start = _squares(before)

    def slope(kept: Sequence[int]) -> float:
        points = [
            (size, fmean(values[i] for i in kept))
            for size, values in zip(steps[:_FITTED], variances["reused"], strict=False)
        ]
        return log_slope(points)

    estimate, interval = jackknife_interval(batches, slope)
    rows: list[Row] = []
    for size, coupled, fresh_squares in zip(steps, variances["reused"], variances["fresh"], strict=True):
        ratio, bounds = ratio_interval(fresh_squares, at_start)
        rows.append([size, fmean(coupled) / (2 * fmean(at_start)), ratio / 2, *(bound / 2 for bound in bounds)])
    near_two = abs(estimate - 2) < _SLOPE_ERROR
    return Check(
        id="coupling.measured",
        claim="On the trained model: reused, the variance falls as |d|^2; fresh, it stays at about 2 Var g.",
        quantity="slope of log Var over log |d| for |d| / |theta| from 1e-7 to 1e-4, mask and answer reused",
        exact=2.0,
        estimate=estimate,
        interval=interval,
        verdict=holds_if(near_two and inside(1.0, (rows[0][3], rows[0][4]))),
        detail={
            "columns": ["|d| / |theta|", "reused, Var / 2 Var g", "fresh, Var / 2 Var g", "from", "to"],
            "rows": rows,
        },
    )


def check_greedy_measured(setting: Setting, questions: Tensor, draws: Draws, *, seed: int) -> Check:
    """Length of the mean gradient with greedy answers along the mean gradient with sampled answers.

    The direction comes from the first half of the drawn batches, the lengths from the second half.

    Args:
        setting: the policy.
        questions: the questions of every batch, [G].
        draws: sampled batches over the same questions.
        seed: the seed of the draws, so that the greedy rollouts have their masks.
    """
    sampled = draws.gradients["held"]
    half = len(sampled) // 2
    along = torch.stack(sampled[:half]).mean(0)
    along = along / along.norm()
    greedy, rewards = [], []
    for batch in range(half, len(sampled)):
        drawn = sample(setting, questions, rollout_seeds(seed, batch, questions, K), temperature=0.0)
        greedy.append(float(objective_gradient(setting, drawn, group_advantages).gradient @ along))
        rewards.append(float(drawn.rewards.mean()))
    reference = [float(gradient @ along) for gradient in sampled[half:]]
    ratio, interval = ratio_interval(greedy, reference)
    return Check(
        id="greedy.measured",
        claim="On the trained model greedy answers shorten the gradient; by how much is measured.",
        quantity="length of E g along the sampled gradient, greedy answers over sampled ones, K = 8",
        estimate=ratio,
        interval=interval,
        verdict="measured",
        detail={
            "columns": ["answers", "mean reward", "length along the sampled gradient"],
            "rows": [["sampled", draws.success, fmean(reference)], ["greedy", fmean(rewards), fmean(greedy)]],
        },
    )


def _squares(differences: Tensor) -> list[float]:
    """|D - mean D|^2 n / (n - 1) of each of n rows: their mean estimates the trace of the covariance."""
    n = len(differences)
    return ((differences - differences.mean(0)).square().sum(1) * (n / (n - 1))).tolist()
