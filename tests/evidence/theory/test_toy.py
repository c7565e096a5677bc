"""The enumeration is complete and right: probabilities add up, scores are scores, and the oracle agrees."""

import pytest
import torch

from evidence.theory.toy import (
    TEMPERATURE,
    answer_index,
)
from helpers.oracle import oracle_run


def test_every_mask_is_there_with_its_bernoulli_weight(exact):
    # Kept with probability 3/4 each: weights 3^kept / 256, one mask with none kept, four with one, and so on.
    weights = (exact.masks.weights * 256).round().int().tolist()
    assert sorted(weights) == sorted([1] + [3] * 4 + [9] * 6 + [27] * 4 + [81])
    torch.testing.assert_close(exact.masks.weights * 256, torch.tensor(weights).double())
    index = exact.masks.index(exact.toy, exact.masks.seeds)
    assert index.tolist() == list(range(16))


def test_masks_of_seeds_come_up_as_often_as_they_weigh(exact):
    seeds = torch.arange(10_000_000, 10_016_384)
    counts = torch.bincount(exact.masks.index(exact.toy, seeds), minlength=16)
    expected = exact.masks.weights * len(seeds)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 44  # 15 degrees of freedom: p = 1e-4


def test_scores_have_mean_zero_under_every_mask(exact):
    for law in exact.laws:
        mean = torch.einsum("ma,map->mp", law.policy, law.score)
        assert mean.abs().max() < 1e-12
        assert law.score.abs().max() > 0.1


@pytest.mark.parametrize(("question", "mask", "answer"), [(0, 3, 11), (1, 15, 1), (2, 9, 20)])
def test_log_probabilities_are_the_oracles(exact, question, mask, answer):
    toy, model = exact.toy, exact.toy.model
    noise = model.noise(toy.exploration, exact.masks.seeds[mask : mask + 1])
    factors = {name: factor[0, 0] for name, factor in noise.factors("latent", 0).items()}
    used = toy.prompts.attention_mask[question].bool()
    result = oracle_run(
        model.model,
        toy.prompts.input_ids[question][used].tolist(),
        model.latent_steps,
        model.tokens.end,
        toy.answers[answer].tolist(),
        factors=lambda phase, step: factors if phase == "latent" else {},
        temperature=TEMPERATURE,
    )
    torch.testing.assert_close(exact.laws[question].logprobs[mask, answer], result.logprobs.detach())


def test_answer_index_pads_what_ended_early(exact):
    answers = exact.toy.answers
    assert answer_index(answers, torch.tensor([[0]])).tolist() == [0]
    assert answer_index(answers, answers).tolist() == list(range(21))
    with pytest.raises(AssertionError, match="not enumerated"):
        answer_index(answers, torch.tensor([[0, 3]]))  # nothing follows the end
