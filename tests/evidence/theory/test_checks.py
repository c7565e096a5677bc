"""Every check holds for the library as it is, and fails for a broken variant of the piece that it checks."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from dropout_grpo.evidence.theory.checks import SECTIONS
from dropout_grpo.evidence.theory.collapse import check_collapse
from dropout_grpo.evidence.theory.divided import check_divided
from dropout_grpo.evidence.theory.fresh_mask import VARIANTS, check_fresh, check_ratio
from dropout_grpo.evidence.theory.latent_gradient import check_latent_gradient, detach_everything, detach_thoughts
from dropout_grpo.evidence.theory.model_average import (
    check_decoding,
    check_objective_is_average,
    check_rollouts_sample_average,
)
from dropout_grpo.evidence.theory.surrogate_gradient import check_surrogate
from dropout_grpo.evidence.theory.unbiased import check_objective, check_sampled, check_unbiased
from dropout_grpo.evidence.theory.variance import check_baseline, check_condition
from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.sampling import AverageOverMasks
from dropout_grpo.rl.advantage import group_advantages

CLAIMS = (
    *("objective.gradient", "average.objective", "average.sampled", "average.decoding"),
    *("unbiased.exact", "unbiased.sampled", "divided.group", "surrogate.gradient", "surrogate.ratio"),
    *("baseline.toy", "baseline.condition", "replay.ratio", "replay.noise", "replay.given_rollouts"),
    *("replay.bias", "replay.exception", "latent_gradient.differences", "collapse.greedy"),
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


def test_divided_by_the_batch_is_biased_too(exact):
    assert check_divided(exact.laws, exact.gradients, scale_rewards="batch").verdict == "holds"


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
    assert check_ratio(exact.laws, replayed=False).verdict == "fails"


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
    """Weighs masks by the last token alone, not by all that was said so far."""

    def after(self, logprob):
        return Forgetful(self.masks, logprob)


def test_average_fails_if_masks_are_not_weighted_by_the_prefix(exact):
    check = check_objective_is_average(exact.toy, exact.masks, exact.laws, chooser=Forgetful)
    assert check.verdict == "fails"


class Opposed(AverageOverMasks):
    """The average of the wrong thing: the least probable masks count most."""

    def choose(self, logprobs, position):
        return super().choose(-logprobs, position)


def test_decoding_fails_for_another_average(exact):
    assert check_decoding(exact.toy, exact.masks, exact.laws, chooser=Opposed).verdict == "fails"


def test_sampled_average_fails_without_masks(exact):
    check = check_rollouts_sample_average(exact.toy, exact.laws, seed=0, exploration=NoExploration())
    assert check.verdict == "fails"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sampled_checks_hold_for_other_seeds(exact, seed):
    assert check_sampled(exact.toy, exact.gradients, seed=seed, batches=20).verdict == "holds"
    assert check_rollouts_sample_average(exact.toy, exact.laws, seed=seed).verdict == "holds"
