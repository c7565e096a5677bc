"""All checks, in the order of ``docs/theory.md``."""

from collections.abc import Iterator

from evidence.theory.check import Check
from evidence.theory.fresh_mask import check_fresh, check_ratio
from evidence.theory.greedy import check_collapse, check_greedy, check_other_weights
from evidence.theory.kl import check_balance, check_kl_gradient
from evidence.theory.latent_gradient import check_latent_gradient
from evidence.theory.reweighted import check_divided, check_filtered
from evidence.theory.toy import build_toy, enumerate_toy
from evidence.theory.unbiased import (
    check_average,
    check_objective,
    check_rollouts,
    check_sampled,
    check_surrogate,
    check_unbiased,
)
from evidence.theory.variance import check_baseline, check_coupling


def run(seed: int = 0) -> Iterator[Check]:
    """Every check, each as soon as it is done.

    Args:
        seed: seed of the sampled checks. The exact ones do not depend on it.
    """
    exact = enumerate_toy(build_toy())
    toy = exact.toy
    yield check_objective(exact)
    yield check_average(exact)
    yield check_rollouts(exact, seed=seed)
    yield check_unbiased(exact)
    yield check_sampled(exact, seed=seed)
    yield from check_surrogate(exact, seed=seed)
    yield check_divided(exact)
    yield from check_coupling(exact, seed=seed)
    yield check_ratio(exact, seed=seed)
    yield from check_fresh(exact)
    yield check_baseline(exact)
    yield check_greedy(toy)
    yield check_other_weights()
    yield from check_filtered(exact)
    yield check_kl_gradient(exact)
    yield check_balance()
    yield check_latent_gradient(toy)
    yield check_collapse(toy, seed=seed)
