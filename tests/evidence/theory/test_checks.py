"""Every check holds for the library, and fails if a part of the library or the claim is replaced by a wrong one."""

import json
import math
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.exploration.dropout import PerStepDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.decoding import AverageOverMasks
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import replay
from dropout_grpo.latent.state import map_cache
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.groups import select_groups
from dropout_grpo.rl.objective import kl_estimate
from evidence.places import DOCS
from evidence.theory import fresh_mask, greedy, kl, latent_gradient, reweighted, toy, unbiased, variance
from evidence.theory.checks import run
from evidence.theory.fresh_mask import FRESH, VARIANTS, check_fresh, check_ratio
from evidence.theory.greedy import check_collapse, check_greedy, check_other_weights
from evidence.theory.kl import balance, check_balance, check_kl_gradient
from evidence.theory.latent_gradient import check_latent_gradient
from evidence.theory.reweighted import check_divided, check_filtered
from evidence.theory.unbiased import (
    check_average,
    check_objective,
    check_rollouts,
    check_sampled,
    check_surrogate,
    check_unbiased,
)
from evidence.theory.variance import STEPS, check_baseline, check_coupling


def coupling(exact, steps=STEPS[:7:3], batches=60):
    return check_coupling(exact, seed=0, steps=steps, questions=(1,), batches=batches)


@pytest.fixture(scope="module")
def checks(exact):
    """Every check, with fewer terms and samples where they take long."""
    return {
        check.id: check
        for check in (
            check_objective(exact),
            check_average(exact),
            check_rollouts(exact, seed=0),
            check_unbiased(exact),
            check_sampled(exact, seed=0, batches=20),
            *check_surrogate(exact, seed=0, batches=1),
            check_divided(exact),
            *coupling(exact),
            check_ratio(exact, seed=0),
            *check_fresh(exact),
            check_baseline(exact),
            check_greedy(exact.toy, rates=(0.1, 0.3)),
            check_other_weights(seeds=(0, 558), rates=(0.1,)),
            *check_filtered(exact),
            check_kl_gradient(exact),
            check_balance(),
            check_latent_gradient(exact.toy),
            check_collapse(exact.toy, seed=0),
        )
    }


def test_claims_hold(checks):
    assert [check for check in checks.values() if not check.holds] == []


def test_the_record_has_the_same_checks(checks):
    recorded = json.loads((DOCS / "theory" / "checks.json").read_text(encoding="utf-8"))
    assert [check["id"] for check in recorded] == list(checks)
    assert all(check["holds"] for check in recorded)


@pytest.mark.slow
def test_all_checks_hold_in_full(checks):
    results = list(run(seed=0))
    assert [check.id for check in results if not check.holds] == []
    assert [check.id for check in results] == list(checks)


def test_objective_fails_if_masks_have_other_weights(exact):
    uniform = [replace(law, weights=torch.full((16,), 1 / 16).double()) for law in exact.laws]
    assert not check_objective(replace(exact, laws=uniform)).holds


class Forgetful(AverageOverMasks):
    """Weights masks only by the last token, not by the whole answer so far."""

    def after(self, logprob):
        return Forgetful(self.masks, logprob)


def test_average_fails_if_masks_are_not_weighted_by_the_prefix(exact, monkeypatch):
    monkeypatch.setattr(unbiased, "AverageOverMasks", Forgetful)
    assert not check_average(exact).holds


def test_rollouts_fail_without_masks(exact):
    assert not check_rollouts(replace(exact, toy=replace(exact.toy, exploration=NoExploration())), seed=0).holds


def squared_mean(rewards, leave_one_out=False):
    return rewards - rewards.mean(dim=1, keepdim=True) ** 2


@pytest.mark.parametrize(
    "wrong",
    [partial(group_advantages, scale_rewards="group"), partial(group_advantages, scale_rewards="batch"), squared_mean],
)
def test_unbiased_fails_for_other_advantages(exact, monkeypatch, wrong):
    monkeypatch.setattr(unbiased, "group_advantages", wrong)
    assert not check_unbiased(exact).holds


def test_sampled_fails_if_a_group_shares_its_seed(exact, monkeypatch):
    monkeypatch.setattr(
        unbiased, "rollout_seeds", lambda seed, step, ids, k: rollout_seeds(seed, step, ids, 1).expand(-1, k)
    )
    check = check_sampled(exact, seed=0, batches=4, groups=8)
    assert (check.holds, check.value) == (False, 0.0)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_surrogate_gradient_fails_for_normalised_losses(exact, loss_type):
    assert not check_surrogate(exact, seed=0, batches=1, loss_type=loss_type)[0].holds


def other_masks(model, prompts, seeds, *arguments, **options):
    """A replay under other masks than the rollouts'."""
    return replay(model, prompts, seeds + FRESH, *arguments, **options)


def test_surrogate_and_ratio_fail_if_the_mask_is_drawn_anew(exact, monkeypatch):
    monkeypatch.setattr(toy, "replay", other_masks)
    assert not any(check.holds for check in check_surrogate(exact, seed=0, batches=1))
    assert not check_ratio(exact, seed=0).holds


def test_surrogate_fails_if_the_mask_is_not_held(exact):
    fresh = replace(exact.toy, exploration=PerStepDropout(0.25, sites=exact.toy.exploration.sites))
    gradient, ratio = check_surrogate(replace(exact, toy=fresh), seed=0, batches=1)
    assert (gradient.holds, ratio.holds) == (False, True)  # it is replayed all the same


def test_filtered_fails_for_a_filter_of_another_range(exact, monkeypatch):
    monkeypatch.setattr(
        reweighted, "select_groups", lambda rewards, **_: select_groups(rewards, mixed=False, mean_range=(0.3, 0.95))
    )
    assert not any(check.holds for check in check_filtered(exact))


def test_divided_fails_if_nothing_is_divided_or_the_batch_is(exact, monkeypatch):
    monkeypatch.setattr(reweighted, "group_advantages", lambda rewards, scale_rewards: group_advantages(rewards))
    assert not check_divided(exact).holds
    monkeypatch.setattr(
        reweighted, "group_advantages", lambda rewards, scale_rewards: group_advantages(rewards, scale_rewards="batch")
    )
    assert not check_divided(exact).holds


def test_a_filter_without_its_ends_is_noticed(exact, monkeypatch):
    def open_range(rewards, *, mixed, mean_range):
        means = rewards.mean(1)
        return ((means > mean_range[0]) & (means < mean_range[1])).nonzero().squeeze(-1)

    monkeypatch.setattr(reweighted, "select_groups", open_range)
    assert not check_filtered(exact)[0].holds


def test_coupling_fails_if_the_mask_is_drawn_again_under_the_old_answer(exact, monkeypatch):
    enumerate_law = toy.enumerate_law

    def other_masks(policy, masks, question):
        return enumerate_law(policy, replace(masks, seeds=masks.seeds.roll(1)), question)

    monkeypatch.setattr(variance, "enumerate_law", other_masks)
    reused, _ = coupling(exact, batches=2)
    assert not reused.holds
    assert abs(reused.value) < 0.1  # no fall at all


def test_fresh_fails_if_both_steps_share_their_seeds(exact, monkeypatch):
    monkeypatch.setattr(variance, "rollout_seeds", lambda seed, step, ids, k: rollout_seeds(seed, step // 2, ids, k))
    _, fresh = coupling(exact, batches=10)
    assert not fresh.holds
    assert fresh.value < 1e-6


def test_baseline_fails_for_another_baseline(exact, monkeypatch):
    monkeypatch.setattr(variance, "less_the_mean", lambda rewards, mean: rewards - 2 * mean)
    assert not check_baseline(exact).holds


def verdicts(exact):
    return {check.id.removeprefix("replay."): check.holds for check in check_fresh(exact)}


def test_ratio_fails_if_the_fresh_mask_is_the_old_one(exact, monkeypatch):
    monkeypatch.setattr(fresh_mask, "FRESH", 0)
    assert not check_ratio(exact, seed=0).holds


def test_fresh_mask_claims_fail_if_the_mask_is_replayed(exact, monkeypatch):
    monkeypatch.setattr(fresh_mask, "joint", torch.diag)
    assert verdicts(exact) == {"noise": False, "bias": False, "exception": True}  # there is nothing to correct


def test_exception_fails_if_the_ratio_is_clipped(exact, monkeypatch):
    whole = "ratio of the answer, not clipped"
    monkeypatch.setitem(VARIANTS, whole, VARIANTS["ratio of the answer, clipped"])
    assert not verdicts(exact)["exception"]


def test_no_clip_is_noticed(exact, monkeypatch):
    clamp = torch.Tensor.clamp

    def one_sided(values, min=None, max=None):
        return values if min is not None and max is not None else clamp(values, min, max)

    monkeypatch.setattr(torch.Tensor, "clamp", one_sided)
    assert not verdicts(exact)["bias"]


def test_the_wrong_side_of_the_clip_is_noticed(exact, monkeypatch):
    monkeypatch.setattr(torch, "minimum", torch.maximum)
    assert not verdicts(exact)["bias"]


def all_atoms(laws):
    """All sampled answers instead of the greedy ones."""

    def atoms(toy, masks, question):
        law = laws[question]
        return law.probability.flatten(), law.rewards.repeat(len(law.weights)), law.score.flatten(0, 1)

    return atoms


def test_greedy_checks_fail_for_sampled_answers(exact, monkeypatch):
    monkeypatch.setattr(greedy, "greedy_atoms", all_atoms(exact.laws))
    check = check_greedy(exact.toy, rates=(0.25,))
    assert not check.holds
    assert check.value > 0.1
    assert check.column("|E g| / |grad J|") == pytest.approx([1.0])
    assert check.column("cosine") == pytest.approx([1.0])
    other = check_other_weights(seeds=(558,), rates=(0.25,))
    assert (other.holds, other.value) == (False, 1.0)


def test_collapse_fails_if_anything_is_random(exact, monkeypatch):
    monkeypatch.setattr(greedy, "NoExploration", lambda: exact.toy.exploration)
    assert not check_collapse(exact.toy, seed=0).holds
    monkeypatch.undo()
    monkeypatch.setattr(greedy, "sample", lambda *arguments, temperature=None: toy.sample(*arguments))
    assert not check_collapse(exact.toy, seed=0).holds


def test_kl_gradient_fails_where_the_estimate_is_cut(exact):
    assert not check_kl_gradient(exact, kl_estimator="k3_clamp", kl_delta=0.01).holds


def of_the_other_direction(beta, start, k=8):
    """The balance for a gradient of KL(policy || reference): rho is proportional to rho_0 e^(r / beta)."""
    odds = start / (1 - start) * math.exp((k - 1) / k / beta)
    return odds / (1 + odds)


def test_balance_fails_for_the_other_direction_and_for_a_constant_beta(monkeypatch):
    ascend = cache(kl._ascend)
    monkeypatch.setattr(kl, "_ascend", ascend)
    monkeypatch.setattr(kl, "balance", of_the_other_direction)
    assert not check_balance().holds
    monkeypatch.setattr(kl, "balance", balance)
    assert check_balance().holds
    monkeypatch.setattr(kl, "_ascend", lambda follows: ascend(follows=False))
    assert not check_balance().holds
    monkeypatch.undo()
    monkeypatch.setattr(kl, "scheduled_beta", lambda config, learning_rate: config.beta)
    assert not check_balance().holds


def test_the_papers_huberised_kl_has_no_balance():
    """K = 32, beta 0.005, rho_0 = 0.27, delta 5: ascent stops nowhere, since the pull is below the rewards' 31/32.

    In units of rho (1 - rho) the pull is beta times the difference of the estimate's slopes for a right and for a wrong
    answer. Without the bound it grows as 0.73 / (1 - rho).
    """
    rho = torch.linspace(0.3, 1 - 1e-6, 1000).double()
    gaps = torch.stack([0.27 / rho, 0.73 / (1 - rho)]).log().requires_grad_()  # right, wrong
    pulls = {}
    for estimator in ("k3", "k3_huber"):
        (slope,) = torch.autograd.grad(kl_estimate(gaps, estimator, 5.0).sum(), gaps)
        pulls[estimator] = 0.005 * (slope[1] - slope[0])
    assert pulls["k3_huber"].max() == pytest.approx(0.005 * (math.exp(5) - 0.27), abs=1e-6)
    assert pulls["k3_huber"].max() < 31 / 32 < pulls["k3"].max()


@pytest.fixture(scope="module")
def differences(exact):
    return [latent_gradient._central(exact.toy, parameter) for parameter in exact.toy.model.parameters()]


@pytest.mark.parametrize("with_cache", [False, True])
def test_latent_gradient_fails_if_thoughts_or_also_the_cache_are_detached(exact, monkeypatch, differences, with_cache):
    """Detaching changes no value, so the differences stay."""
    think, each = LatentModel.think, iter(differences)
    monkeypatch.setattr(latent_gradient, "_central", lambda toy, parameter: next(each))

    def detached(model, state, steps, noise):
        for _ in range(steps):
            state = replace(state, hidden=state.hidden.detach())
            if with_cache:
                state = replace(state, cache=map_cache(state.cache, torch.Tensor.detach))
            state = think(model, state, 1, noise)
        return state

    monkeypatch.setattr(LatentModel, "think", detached)
    check = check_latent_gradient(exact.toy)
    assert not check.holds
    assert check.value > 0.01
    assert min(check.column("error")) > 0.01  # every parameter is affected
