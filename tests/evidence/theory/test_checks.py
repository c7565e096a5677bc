"""Every check holds for the library, and fails for a broken variant of the part that it checks."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.decoding import AverageOverMasks
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.kl import kl_estimate
from evidence.theory import filtered
from evidence.theory.checks import SECTIONS
from evidence.theory.collapse import check_collapse
from evidence.theory.coupling import STEPS, check_coupling
from evidence.theory.divided import check_divided
from evidence.theory.estimator import from_all_groups
from evidence.theory.filtered import check_filtered, kept_counts, kept_share, weight
from evidence.theory.fresh_mask import VARIANTS, check_fresh, check_ratio
from evidence.theory.greedy import check_greedy, check_greedy_seeds, greedy_atoms
from evidence.theory.kl_pull import balance, check_balance, check_kl_gradient
from evidence.theory.latent_gradient import check_latent_gradient, detach_everything, detach_thoughts
from evidence.theory.model_average import (
    check_decoding,
    check_objective_is_average,
    check_rollouts_sample_average,
)
from evidence.theory.surrogate_gradient import check_surrogate
from evidence.theory.unbiased import check_objective, check_sampled, check_unbiased
from evidence.theory.variance import check_baseline, check_condition

CLAIMS = (
    *("objective.gradient", "average.objective", "average.sampled", "average.decoding"),
    *("unbiased.exact", "unbiased.sampled", "divided.group", "surrogate.gradient", "surrogate.ratio"),
    *("baseline.toy", "baseline.condition", "replay.ratio", "replay.noise", "replay.given_rollouts"),
    *("coupling.reused", "coupling.fresh", "greedy.bias", "filtered.objective", "filtered.kept_questions"),
    *("kl.gradient", "kl.balance", "replay.bias", "replay.exception", "latent_gradient.differences", "collapse.greedy"),
)


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_holds(quick, claim):
    assert quick[claim].verdict == "holds", quick[claim]


def test_no_check_is_forgotten(quick):
    assert set(quick) == set(CLAIMS)
    assert {claim.split(".")[0] for claim in CLAIMS} | {"holding"} == set(SECTIONS)


def test_checks_come_in_the_order_of_the_page(quick):
    sections = [claim.split(".")[0] for claim in quick]
    assert sections == sorted(sections, key=list(SECTIONS).index)


def test_objective_fails_if_masks_have_other_weights(exact):
    uniform = [replace(law, weights=torch.full((16,), 1 / 16).double()) for law in exact.laws]
    assert check_objective(uniform, exact.gradients).verdict == "fails"


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_unbiased_fails_if_advantages_are_divided(exact, scale):
    divided = partial(group_advantages, scale_rewards=scale)
    assert check_unbiased(exact.laws, exact.gradients, advantages=divided, all_groups=()).verdict == "fails"


def test_unbiased_fails_if_the_group_mean_is_not_the_groups(exact):
    def wrong(rewards, leave_one_out=False):
        return rewards - rewards.mean(dim=1, keepdim=True) ** 2

    assert check_unbiased(exact.laws, exact.gradients, advantages=wrong, all_groups=()).verdict == "fails"


def shared_in_a_group(run_seed, step, problem_ids, k):
    return rollout_seeds(run_seed, step, problem_ids, 1).expand(-1, k)


def test_sampled_fails_if_a_group_shares_its_seed(exact):
    check = check_sampled(exact.toy, exact.gradients, seed=0, batches=4, groups=8, seeds=shared_in_a_group)
    assert check.verdict == "fails"
    assert check.estimate == 0.0


def test_sampled_fails_if_advantages_are_divided(exact):
    divided = partial(group_advantages, scale_rewards="group")
    check = check_sampled(exact.toy, exact.gradients, seed=0, batches=12, advantages=divided)
    assert check.verdict == "fails"


def test_divided_finds_nothing_if_nothing_is_divided(exact, quick):
    assert check_divided(exact.laws, exact.gradients, scale_rewards="none").verdict == "fails"
    factors = quick["divided.group"].detail["curve_none"]
    assert factors == pytest.approx([7 / 8] * len(factors))


def test_divided_by_the_batch_has_another_factor_and_is_biased_too(exact):
    check = check_divided(exact.laws, exact.gradients, scale_rewards="batch")
    assert check.verdict == "fails"
    assert check.estimate > 1e-3


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_surrogate_gradient_fails_for_normalised_losses(exact, loss_type):
    checks = check_surrogate(exact.toy, exact.masks, exact.laws, seed=0, loss_type=loss_type, batches=1)
    assert checks[0].verdict == "fails"


def test_surrogate_fails_if_the_mask_is_drawn_anew(exact):
    checks = check_surrogate(exact.toy, exact.masks, exact.laws, seed=0, replayed=False, batches=1)
    assert [check.verdict for check in checks] == ["fails", "fails"]


def test_baseline_fails_without_one(exact):
    def none(rewards, leave_one_out=False):
        return rewards.clone()

    assert check_baseline(exact.laws, advantages=none).verdict == "fails"


def test_condition_fails_for_another_baseline(exact):
    assert check_condition(exact.laws, advantages=lambda rewards, mean: rewards - 2 * mean).verdict == "fails"


def test_ratio_fails_if_the_mask_is_drawn_anew(exact):
    assert check_ratio(exact.toy, exact.laws, seed=0, replayed=False).verdict == "fails"


def test_ratio_fails_if_the_fresh_mask_is_the_old_one(exact):
    assert check_ratio(exact.toy, exact.laws, seed=0, drawn_again=False).verdict == "fails"


def test_fresh_mask_claims_fail_if_the_mask_is_replayed(exact):
    found = {check.id: check.verdict for check in check_fresh(exact.laws, exact.gradients, replayed=True)}
    assert found == {
        "replay.noise": "fails",
        "replay.given_rollouts": "fails",
        "replay.bias": "fails",
        "replay.exception": "holds",  # nothing to correct
    }


def test_exception_fails_if_the_ratio_is_clipped(exact):
    clipped = {**VARIANTS, "ratio of the answer, not clipped": {"importance_sampling_level": "sequence"}}
    found = {check.id: check.verdict for check in check_fresh(exact.laws, exact.gradients, variants=clipped)}
    assert found["replay.exception"] == "fails"


def test_no_clip_is_noticed(exact, monkeypatch):
    clamp = torch.Tensor.clamp

    def one_sided(values, min=None, max=None):
        return values if min is not None and max is not None else clamp(values, min, max)

    monkeypatch.setattr(torch.Tensor, "clamp", one_sided)
    found = {check.id for check in check_fresh(exact.laws, exact.gradients) if check.verdict == "fails"}
    assert {"replay.bias", "replay.given_rollouts"} <= found


def test_the_larger_of_the_two_objectives_is_noticed(exact, monkeypatch):
    """max instead of min of the ratio's and the clipped objective."""
    monkeypatch.setattr(torch, "minimum", torch.maximum)
    found = {check.id for check in check_fresh(exact.laws, exact.gradients) if check.verdict == "fails"}
    assert {"replay.bias", "replay.given_rollouts"} <= found


def coupling(exact, **broken):
    return check_coupling(
        exact.toy, exact.masks, exact.laws, exact.gradients, steps=STEPS[:7:3], questions=(1,), batches=30, **broken
    )


def test_coupling_fails_if_the_mask_is_drawn_again_under_the_old_answer(exact):
    reused, _ = coupling(exact, reuse="answer")
    assert reused.verdict == "fails"
    assert abs(reused.estimate) < 0.1  # no fall at all


def test_coupling_finds_no_second_variance_if_every_step_has_the_same_seeds(exact):
    _, fresh = coupling(exact, seeds=lambda run_seed, step, ids, k: rollout_seeds(run_seed, step // 2, ids, k))
    assert fresh.verdict == "fails"
    assert fresh.estimate < 1e-6


def sampled_atoms(laws):
    """All sampled answers instead of the greedy ones."""

    def atoms(toy, masks, exploration, question):
        law = laws[question]
        rewards = law.rewards.repeat(len(law.weights))
        return law.probability.flatten(), rewards, law.score.flatten(0, 1)

    return atoms


def test_greedy_bias_vanishes_with_sampled_answers(exact):
    check = check_greedy(exact.toy, rates=(0.25,), atoms=sampled_atoms(exact.laws))
    assert check.verdict == "fails"
    assert check.error > 0.1
    assert check.column("|E g| / |grad J|") == pytest.approx([1.0])
    assert check.column("cosine") == pytest.approx([1.0])


def test_greedy_gradient_is_the_covariance_of_reward_and_score(exact):
    """E[A s] at K = 2 with leave-one-out: E[r s] - E[r] E[s], where E[s] is not 0."""
    weights, rewards, scores = greedy_atoms(exact.toy, exact.masks, exact.toy.exploration, 1)
    loo = partial(group_advantages, leave_one_out=True)
    found = from_all_groups(weights, rewards, scores, 2, loo)
    mean_score = weights @ scores
    assert mean_score.norm() > 0.1
    torch.testing.assert_close(found, (weights * rewards) @ scores - (weights @ rewards) * mean_score)


def test_filter_fails_for_the_formula_of_another_range(exact):
    objective, _ = check_filtered(exact.laws, exact.gradients, claimed=(0.3, 0.95))
    assert objective.verdict == "fails"


def test_without_a_filter_the_questions_are_the_objective(exact):
    objective, kept = check_filtered(exact.laws, exact.gradients, mean_range=(0.0, 1.0))
    assert (objective.verdict, kept.verdict) == ("holds", "fails")  # the angle is 0
    assert objective.column("W(J)") == pytest.approx([7 / 8] * 3)


def test_a_filter_without_its_ends_is_noticed(exact, monkeypatch):
    def open_range(rewards, *, mixed, mean_range):
        means = rewards.mean(1)
        return ((means > mean_range[0]) & (means < mean_range[1])).nonzero().squeeze(-1)

    monkeypatch.setattr(filtered, "select_groups", open_range)
    objective, _ = check_filtered(exact.laws, exact.gradients)
    assert objective.verdict == "fails"


def test_kept_questions_fail_for_the_formula_of_another_range(exact):
    _, kept = check_filtered(exact.laws, exact.gradients, claimed=(0.3, 0.95))
    assert kept.verdict == "fails"


def test_the_greedy_gradient_of_other_weights(exact):
    """Seed 0 has no mask that changes a reward; the toy's own seed has the page's angle at p = 0.1."""
    check = check_greedy_seeds(seeds=(0, 558), rates=(0.1,))
    assert (check.verdict, check.estimate) == ("measured", 1.0)
    assert check.column("median") == pytest.approx([30.3], abs=0.05)


def test_filter_weight_by_hand():
    """K = 2 keeps only c = 1: C(2, 1) J^0 (1 - J)^0 1 / 4 = 1/2 for every J; the share kept is 2 J (1 - J)."""
    assert weight(0.3, 2, (0.2, 0.95)) == pytest.approx(0.5)
    assert kept_share(0.3, 2, (0.2, 0.95)) == pytest.approx(0.42)
    assert kept_counts(8, (0.2, 0.95)) == [2, 3, 4, 5, 6, 7]


def test_kl_gradient_fails_where_the_estimate_is_cut(exact):
    check = check_kl_gradient(exact.toy, exact.masks, exact.laws, kl_estimator="k3_clamp", kl_delta=0.01)
    assert check.verdict == "fails"


def test_kl_gradient_is_not_that_of_the_other_direction(exact):
    check = check_kl_gradient(exact.toy, exact.masks, exact.laws)
    assert check.column("relative error")[1] > 0.01


@pytest.mark.parametrize("broken", [{"beta_schedule": "constant"}, {"reverse": True}])
def test_balance_fails_for_a_constant_beta_and_for_the_other_direction(broken):
    assert check_balance(**broken).verdict == "fails"


def test_balance_by_hand():
    """K large, beta 1/4, rho_0 = 1/2: rho (1 - rho) = (rho - 1/2) / 4 gives 8 rho^2 - 6 rho - 1 = 0."""
    assert balance(0.25, 0.5, 10**9) == pytest.approx((6 + 68**0.5) / 16)


@pytest.mark.parametrize("think", [detach_thoughts, detach_everything])
def test_latent_gradient_fails_if_thoughts_are_detached(exact, think):
    check = check_latent_gradient(exact.toy, think=think)
    assert check.verdict == "fails"
    assert check.estimate > 0.01


@pytest.mark.parametrize("broken", ["masked", "sampled"])
def test_collapse_fails_if_anything_is_random(exact, broken):
    options = {"exploration": exact.toy.exploration} if broken == "masked" else {"temperature": 0.8}
    assert check_collapse(exact.toy, seed=0, **options).verdict == "fails"


class Forgetful(AverageOverMasks):
    """Weights masks only by the last token, not by the whole answer so far."""

    def after(self, logprob):
        return Forgetful(self.masks, logprob)


def test_average_fails_if_masks_are_not_weighted_by_the_prefix(exact):
    check = check_objective_is_average(exact.toy, exact.masks, exact.laws, strategy=Forgetful)
    assert check.verdict == "fails"


class Opposed(AverageOverMasks):
    """The average of the wrong thing: the least probable masks count most."""

    def choose(self, logprobs, position):
        return super().choose(-logprobs, position)


def test_decoding_fails_for_another_average(exact):
    assert check_decoding(exact.toy, exact.masks, exact.laws, strategy=Opposed).verdict == "fails"


def test_sampled_average_fails_without_masks(exact):
    check = check_rollouts_sample_average(exact.toy, exact.laws, seed=0, exploration=NoExploration())
    assert check.verdict == "fails"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sampled_checks_hold_for_other_seeds(exact, seed):
    assert check_sampled(exact.toy, exact.gradients, seed=seed, batches=20).verdict == "holds"
    assert check_rollouts_sample_average(exact.toy, exact.laws, seed=seed).verdict == "holds"


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
