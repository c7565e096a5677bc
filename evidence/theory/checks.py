"""All checks, in the order of ``docs/theory.md``."""

from collections.abc import Callable

import torch

from dropout_grpo.exploration.dropout import PerStepDropout
from dropout_grpo.training.progress import Bar
from evidence.theory.check import Check
from evidence.theory.collapse import check_collapse
from evidence.theory.coupling import STEPS, check_coupling
from evidence.theory.divided import check_divided
from evidence.theory.draws import draw_gradients
from evidence.theory.filtered import check_filtered
from evidence.theory.fresh_mask import check_fresh, check_ratio
from evidence.theory.greedy import RATES, check_greedy, check_greedy_seeds
from evidence.theory.holding import check_holding
from evidence.theory.kl_pull import check_balance, check_kl_gradient
from evidence.theory.latent_gradient import check_latent_gradient
from evidence.theory.law import enumerate_laws, objective_gradients
from evidence.theory.measured import (
    check_average_measured,
    check_baseline_measured,
    check_holding_measured,
    check_replay_measured,
)
from evidence.theory.measured_updates import check_coupling_measured, check_greedy_measured, in_float64
from evidence.theory.model_average import (
    check_decoding,
    check_objective_is_average,
    check_rollouts_sample_average,
)
from evidence.theory.small_model import P, train_small_model
from evidence.theory.surrogate_gradient import check_surrogate
from evidence.theory.toy import all_masks, build_toy, per_step
from evidence.theory.unbiased import check_objective, check_sampled, check_unbiased
from evidence.theory.variance import check_baseline, check_condition

SECTIONS = {
    "objective": "The objective is the reward of a model average",
    "average": "What is optimised and what is decoded",
    "unbiased": "The estimator is unbiased up to (K-1)/K",
    "divided": "Dividing by the standard deviation biases it",
    "surrogate": "The surrogate's gradient is the estimator",
    "coupling": "Variance reduction: common random numbers",
    "greedy": "Greedy answers",
    "filtered": "Filtered groups",
    "kl": "The KL and an annealed beta",
    "baseline": "The group mean as a baseline",
    "replay": "Replaying the mask",
    "holding": "Holding the mask",
    "latent_gradient": "The latent gradient is well defined",
    "collapse": "Without exploration nothing is learned",
}
"""The part of a check's id before the dot, and its heading."""


def run(seed: int = 0, quick: bool = False) -> list[Check]:
    """Every check.

    Args:
        seed: seed of all Monte-Carlo draws and of the small model. The exact checks do not depend on it.
        quick: leave out the trained model, per-step masks and the longest sum; takes seconds instead of a minute.
    """
    found = _exact(seed, quick)
    if not quick:
        found += _measured(seed)
    order = list(SECTIONS)
    return sorted(found, key=lambda check: order.index(check.id.split(".")[0]))


def _exact(seed: int, quick: bool) -> list[Check]:
    """Checks by exact sums on the toy, and by Monte Carlo in comparison with them."""
    toy = build_toy()
    masks = all_masks(toy, toy.exploration)
    laws = enumerate_laws(toy, masks, toy.exploration)
    gradients = objective_gradients(toy, masks, toy.exploration)

    def holding() -> list[Check]:
        stepped = per_step()
        return [check_holding(laws, enumerate_laws(toy, all_masks(toy, stepped), stepped))]

    def coupling() -> list[Check]:
        steps, questions = (STEPS[:7:2], (1,)) if quick else (STEPS, range(len(laws)))
        batches = 100 if quick else 400
        return check_coupling(toy, masks, laws, gradients, steps=steps, questions=questions, seed=seed, batches=batches)

    parts: list[Callable[[], list[Check]]] = [
        lambda: [check_objective(laws, gradients)],
        lambda: [check_objective_is_average(toy, masks, laws)],
        lambda: [check_rollouts_sample_average(toy, laws, seed=seed)],
        lambda: [check_decoding(toy, masks, laws)],
        lambda: [check_unbiased(laws, gradients, all_groups=(2,) if quick else (2, 3))],
        lambda: [check_sampled(toy, gradients, seed=seed)],
        lambda: [check_divided(laws, gradients)],
        lambda: check_surrogate(toy, masks, laws, seed=seed),
        coupling,
        lambda: [check_greedy(toy, rates=RATES[1:] if quick else RATES)],
        *([] if quick else [lambda: [check_greedy_seeds()]]),
        lambda: check_filtered(laws, gradients),
        lambda: [check_kl_gradient(toy, masks, laws), check_balance()],
        lambda: [check_baseline(laws), check_condition(laws)],
        lambda: [check_ratio(toy, laws, seed=seed), *check_fresh(laws, gradients)],
        *([] if quick else [holding]),
        lambda: [check_latent_gradient(toy)],
        lambda: [check_collapse(toy, seed=seed)],
    ]
    found: list[Check] = []
    with Bar("exact checks", len(parts)) as bar:
        for part in parts:
            found += part()
            bar.advance()
    return found


def _measured(seed: int) -> list[Check]:
    """Measurements on a small model, which is trained here."""
    small = train_small_model(seed)
    questions = torch.arange(32)
    draws = draw_gradients(small.setting, questions, PerStepDropout(P), seed=seed, batches=64)
    return [
        check_average_measured(small, seed=seed),
        check_baseline_measured(draws),
        check_replay_measured(draws),
        check_holding_measured(small, draws, seed=seed),
        check_coupling_measured(in_float64(small.setting), questions, seed=seed),
        check_greedy_measured(small.setting, questions, draws, seed=seed),
    ]
