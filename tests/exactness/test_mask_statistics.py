"""Masks as random variables: their rate, and the independence of seeds, sites, features and steps, by chi-square.

Everything is drawn from fixed seeds, so a test passes always or never; a p-value below 1e-4 fails it. Seeds come as
a user gives them, small and consecutive, as well as at the ends of int64 and as the trainer makes them.
"""

from itertools import pairwise

import pytest
import torch
from scipy.stats import chi2, chisquare
from torch import Tensor

from dropout_grpo.exploration import seeds as generator
from dropout_grpo.exploration.seeds import bernoulli, fold, rollout_seeds, stream, uniform
from dropout_grpo.latent.decoding import Sampling

UNLIKELY = 1e-4
N = 20_000
SITES = [f"layers.{i}.{half}" for i in range(4) for half in ("attention", "mlp")]
SEEDS = {
    "consecutive": torch.arange(N),
    "around zero": torch.arange(N) - N // 2,
    "top of int64": 2**63 - 1 - torch.arange(N),
    "bottom of int64": -(2**63) + torch.arange(N),
    "high bits only": torch.arange(N) * 2**49,  # the low 49 bits are 0
    "of rollouts": rollout_seeds(0, 1, torch.arange(N // 8), 8).flatten(),
}

every_kind_of_seed = pytest.mark.parametrize("seeds", SEEDS.values(), ids=list(SEEDS))


def joint(dropped: Tensor, p: float) -> float:
    """p-value of ``dropped`` [n, m] being n draws of m independent Bernoulli(p): all 2^m patterns are counted."""
    n, m = dropped.shape
    weights = 2 ** torch.arange(m)
    counts = torch.bincount((dropped * weights).sum(1), minlength=2**m)
    zeros = ((torch.arange(2**m)[:, None] & weights) > 0).sum(1).double()
    expected = n * p**zeros * (1 - p) ** (m - zeros)
    assert expected.min() > 5, "too few draws for so many patterns"
    return float(chisquare(counts.numpy(), expected.numpy()).pvalue)


def of_features(seeds: Tensor, p: float, m: int) -> Tensor:
    return bernoulli(seeds, stream("layers.0.mlp", m), p)


def of_sites(seeds: Tensor, p: float, m: int) -> Tensor:
    return torch.cat([bernoulli(seeds, stream(site, 1), p) for site in SITES[:m]], dim=1)


def of_seeds(seeds: Tensor, p: float, m: int) -> Tensor:
    """Of m neighbouring seeds, the same feature."""
    return bernoulli(seeds, stream("thought", 1), p)[: len(seeds) // m * m].view(-1, m)


def of_steps(seeds: Tensor, p: float, m: int) -> Tensor:
    """PerStepDropout's masks of m latent steps."""
    return torch.cat([bernoulli(fold(seeds, t + 1), stream("thought", 1), p) for t in range(m)], dim=1)


every_direction = pytest.mark.parametrize("draw", [of_features, of_sites, of_seeds, of_steps])


@every_kind_of_seed
@every_direction
@pytest.mark.parametrize(("p", "m"), [(0.5, 8), (0.1, 3)])
def test_features_sites_seeds_and_steps_are_independent(seeds: Tensor, draw: object, p: float, m: int) -> None:
    dropped = draw(seeds, p, m)  # type: ignore[operator]
    assert joint(dropped, p) > UNLIKELY
    dropped[::3, 0] = dropped[::3, 1]  # a third of the first column copies the second
    assert joint(dropped, p) < UNLIKELY


@every_direction
def test_the_patterns_notice_a_weak_generator(draw: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a multiplication, as in a linear congruential generator, which never moves high bits to low ones."""
    monkeypatch.setattr(generator, "mix", lambda z: z * generator.as_int64(generator._GAMMA))
    assert joint(draw(SEEDS["high bits only"], 0.5, 8), 0.5) < UNLIKELY  # type: ignore[operator]


def flips(a: Tensor, b: Tensor) -> float:
    """p-value of half of the mask's entries differing, summed up over 64 changed bits; a, b [64, n]."""
    n = a.shape[1]
    z = ((a != b).sum(1) - n / 2) / (n / 4) ** 0.5
    return float(chi2.sf(z.square().sum().item(), df=64))


def test_every_bit_of_a_seed_matters_for_half_of_the_mask() -> None:
    """Avalanche: from 0, -1 and the ends of int64, with any one of 64 bits flipped."""
    counters = stream("layers.3.mlp_hidden", 4096)
    for start in (0, -1, 2**63 - 1, -(2**63), 12345):
        flipped = torch.tensor([generator.as_int64(start ^ (1 << bit)) for bit in range(64)])
        before = bernoulli(torch.tensor([start]), counters, 0.5).expand(64, -1)
        after = bernoulli(flipped, counters, 0.5)
        assert flips(before, after) > UNLIKELY
        assert flips(before, before ^ (after != before) & (counters % 8 > 0)) < UNLIKELY  # an eighth stays


def test_every_coordinate_of_a_rollout_matters() -> None:
    """Run, step, problem and rollout: neighbours in each have independent masks."""
    ids, counters = torch.arange(2500), stream("layers.0.attention", 1)

    def masks(run: int, step: int) -> Tensor:  # [problems, K]
        return bernoulli(rollout_seeds(run, step, ids, 8).flatten(), counters, 0.5).view(-1, 8)

    assert joint(masks(0, 1), 0.5) > UNLIKELY  # the rollouts of a group
    assert joint(masks(0, 1)[:, :1].reshape(-1, 5), 0.5) > UNLIKELY  # neighbouring problems
    for others in ([(0, step) for step in range(1, 6)], [(run, 9) for run in range(5)]):
        drawn = torch.stack([masks(*run_and_step).flatten() for run_and_step in others], dim=1)
        assert joint(drawn, 0.5) > UNLIKELY
        assert not any(torch.equal(a, b) for a, b in pairwise(drawn.T))
    same = torch.stack([masks(0, 1).flatten(), masks(0, 1).flatten()], dim=1)
    assert joint(same, 0.5) < UNLIKELY


@every_kind_of_seed
def test_uniforms_are_uniform_and_independent_of_one_another_and_of_the_mask(seeds: Tensor) -> None:
    u = torch.cat([uniform(seeds, stream(f"answer.{t}", 1)) for t in range(2)], dim=1)
    assert u.min() >= 0.0
    assert u.max() < 1.0
    for t in range(2):
        counts = torch.bincount((u[:, t] * 256).long(), minlength=256)
        assert chisquare(counts.numpy()).pvalue > UNLIKELY
    mask = bernoulli(seeds, stream("layers.0.mlp", 1), 0.5)[:, 0]
    cells = (u * 8).long()
    counts = torch.bincount(cells[:, 0] * 16 + cells[:, 1] * 2 + mask, minlength=128)
    assert chisquare(counts.numpy()).pvalue > UNLIKELY
    lopsided = torch.bincount((u[:, 0].pow(1.2) * 256).long(), minlength=256)
    assert chisquare(lopsided.numpy()).pvalue < UNLIKELY


@every_kind_of_seed
def test_pairs_of_tokens_have_the_probabilities_of_the_distribution(seeds: Tensor) -> None:
    p = torch.tensor([0.05, 0.3, 0.0, 0.15, 0.5])
    row = p.log().expand(len(seeds), -1)
    first, second = (Sampling(seeds, 1.0).choose(row, position) for position in (0, 1))
    counts = torch.bincount(first * 5 + second, minlength=25).double()
    expected = (p[:, None] * p).flatten().double() * len(seeds)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    expected *= counts.sum() / expected.sum()  # float32 probabilities add up to 1 + 1e-8, which chisquare refuses
    assert chisquare(counts[possible].numpy(), expected[possible].numpy()).pvalue > UNLIKELY
    other = torch.roll(expected[possible], 1)
    assert chisquare(counts[possible].numpy(), other.numpy()).pvalue < UNLIKELY
