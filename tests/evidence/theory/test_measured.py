"""The Monte-Carlo machinery of the trained model's checks, run on the toy, where the truth is known."""

import pytest
import torch

from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.draws import Draws, draw_gradients, score_squares
from evidence.theory.estimator import from_patterns, over_questions
from evidence.theory.holding import check_holding
from evidence.theory.interval import inside, jackknife_interval, mean_interval
from evidence.theory.measured import check_baseline_measured, check_replay_measured
from evidence.theory.measured_updates import STEPS, check_coupling_measured, check_greedy_measured
from evidence.theory.perturbed import flat_weights, moved
from evidence.theory.setting import sample
from evidence.theory.small_model import train_small_model
from evidence.theory.toy import QUESTIONS, answer_index, per_step
from evidence.theory.unbiased import score_moments


@pytest.fixture(scope="module")
def draws(exact):
    return draw_gradients(exact.toy.setting, torch.arange(QUESTIONS), per_step(), seed=0, batches=100)


@pytest.mark.parametrize(("way", "rule"), [("held", group_advantages), ("no baseline", torch.clone)])
def test_sampled_variance_is_the_exact_one(exact, draws, way, rule):
    truth = over_questions([from_patterns(score_moments(law), 8, rule) for law in exact.laws]).variance
    mean, interval = mean_interval(draws.squares(way))
    assert inside(truth, interval)
    assert not inside(1.5 * truth, interval)
    assert mean > 0


def test_mixed_groups_are_as_frequent_as_they_should_be(exact, draws):
    share = sum(1 - law.expected_reward**8 - (1 - law.expected_reward) ** 8 for law in exact.laws) / QUESTIONS
    _, interval = mean_interval(draws.mixed["held"])
    assert inside(share, interval)


def test_fresh_ratios_have_mean_one_and_replayed_ones_are_one(draws):
    _, interval = mean_interval(draws.fresh_ratios.tolist())
    assert inside(1.0, interval)
    assert draws.fresh_ratios.var() > 0.5
    assert draws.replay_error < 1e-12


def test_squares_by_hand():
    gradients = [torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])]
    made = hand_made(gradients)
    # mean (1, 1): squared distances 2, 2, 4, times 3 / 2; the variance 1 + 3 is their mean
    assert made.squares("held") == pytest.approx([3.0, 3.0, 6.0])
    assert made.cosines("held", "fresh mask")[1:] == pytest.approx([1.0, 1.0])


def test_score_squares_are_those_of_the_enumeration(exact):
    toy = exact.toy
    drawn = sample(toy.setting, torch.arange(QUESTIONS), torch.arange(12).view(QUESTIONS, 4))
    mask = exact.masks.index(toy, toy.exploration, drawn.seeds)
    answer = answer_index(toy.answers, drawn.answers.token_ids).view_as(mask)
    expected = [exact.laws[i].score[mask[i], answer[i]].square().sum(-1) for i in range(QUESTIONS)]
    torch.testing.assert_close(score_squares(toy.setting, drawn), torch.stack(expected))


def hand_made(gradients, replay_error=1e-6, ratios=(0.5, 1.5)):
    ways = ("held", "no baseline", "fresh mask", "fresh mask, clipped", "per step")
    return Draws(
        gradients=dict.fromkeys(ways, gradients),
        fresh_ratios=torch.tensor(ratios),
        replay_error=replay_error,
        mixed={"held": [0.5, 0.5], "per step": [0.5, 0.5]},
        success=0.7,
        best_baseline=0.1,
    )


def test_replay_check_fails_if_replay_is_off_or_fresh_masks_change_nothing():
    gradients = [torch.tensor([1.0, 0.5]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])]
    assert check_replay_measured(hand_made(gradients)).verdict == "holds"
    assert check_replay_measured(hand_made(gradients, replay_error=0.1)).verdict == "fails"
    assert check_replay_measured(hand_made(gradients, ratios=(1.0, 1.0))).verdict == "fails"


def test_baseline_ratio_is_scaled_to_the_same_mean():
    gradients = [torch.tensor([1.0, 0.5]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])]
    check = check_baseline_measured(hand_made(gradients))
    assert check.column("tr Cov g over none") == pytest.approx([1.0, 64 / 49])


def test_holding_reports_the_laws_it_was_given(exact):
    check = check_holding(exact.laws, exact.laws)
    assert check.estimate == 1.0
    j = [law.expected_reward for law in exact.laws]
    assert check.column("J")[0] == pytest.approx(sum(j) / 3)
    assert check.column("mixed groups, sampled")[0] == pytest.approx(sum(1 - x**8 - (1 - x) ** 8 for x in j) / 3)


def test_coupling_by_monte_carlo_agrees_with_the_exact_check(exact):
    questions = torch.arange(QUESTIONS)
    check = check_coupling_measured(exact.toy.setting, questions, seed=0, batches=24, steps=STEPS[:5])
    assert check.verdict == "holds"
    assert check.estimate == pytest.approx(2.0, abs=0.02)


def test_coupling_by_monte_carlo_fails_if_nothing_is_reused(exact):
    questions = torch.arange(QUESTIONS)
    check = check_coupling_measured(exact.toy.setting, questions, seed=0, batches=8, steps=STEPS[:4], reused=False)
    assert check.verdict == "fails"
    assert abs(check.estimate) < 0.5


def test_moved_weights_come_back(exact):
    model = exact.toy.setting.model
    before = flat_weights(model)
    with moved(model, torch.full_like(before, 1e-3)):
        torch.testing.assert_close(flat_weights(model), before + 1e-3)
    assert torch.equal(flat_weights(model), before)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = [1.0, 2.0, 4.0, 9.0]
    whole, interval = jackknife_interval(4, lambda kept: sum(values[i] for i in kept) / len(kept))
    assert (whole, interval) == (pytest.approx(4.0), pytest.approx(mean_interval(values)[1]))


def test_greedy_gradient_on_the_toy_is_shorter(exact, draws):
    questions = torch.arange(QUESTIONS)
    check = check_greedy_measured(exact.toy.setting, questions, draws, seed=0)
    found = check.column("length along the sampled gradient")
    assert check.estimate == pytest.approx(found[1] / found[0])
    assert 0 < check.estimate < 1  # the toy's greedy gradient is shorter, by the exact check


@pytest.mark.slow
def test_everything_together():
    from evidence.theory.checks import run

    checks = run(seed=0)
    assert [check.id for check in checks if check.verdict == "fails"] == []
    assert {"average.measured", "baseline.measured", "replay.measured", "holding.measured", "holding.exact"} | {
        "coupling.measured",
        "greedy.measured",
    } <= {check.id for check in checks}


@pytest.mark.slow
def test_small_model_learns():
    small = train_small_model(seed=1, unseen=200)
    said = small.setting.model.answer([p.question for p in small.problems], 3)
    right = sum(text == f"### {p.answer}" for text, p in zip(said, small.problems, strict=True))
    assert right > 60  # guessing the most frequent sum is right about one time in ten
