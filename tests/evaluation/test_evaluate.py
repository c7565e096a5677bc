"""Measuring a checkpoint: what is asked, in which order it does not matter, and the numbers by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import (
    EVAL_STEP,
    EvaluationConfig,
    ModelAnswers,
    answer_problems,
    is_correct,
    vote,
    vote_table,
)
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.decoding import AverageOverMasks, Sampling
from dropout_grpo.latent.rollout import Prompts, think_in_groups
from dropout_grpo.latent.tokens import encode_questions
from helpers.oracle import oracle_greedy
from helpers.tiny_latent import plain_model, tiny_latent, tiny_problems

MASKS = SharedDropout(0.4, phases=("latent", "answer"))
CONFIG = EvaluationConfig(num_samples=3, max_new_tokens=5, batch_size=6)
PROBLEMS = tiny_problems(5)


@pytest.mark.parametrize(("latent_steps", "thoughts"), [(None, 2), (0, 0)])
def test_plain_answers_are_the_greedy_ones_of_the_oracle(latent_steps: int | None, thoughts: int) -> None:
    """With their lengths, EOS included, and whether they were cut off."""
    model, oracle = tiny_latent(dtype=torch.float64, seed=17), plain_model(dtype=torch.float64, seed=17)
    found = answer_problems(model, PROBLEMS, replace(CONFIG, num_samples=0, latent_steps=latent_steps))
    for problem, answered in zip(PROBLEMS, found, strict=True):
        prompt = encode_questions(model.tokenizer, [problem.question], model.tokens)[0]
        ids = oracle_greedy(oracle, prompt, thoughts, model.tokens.end, model.tokens.eos, 5)
        assert answered.problem is problem
        assert answered.plain == model.tokenizer.decode(ids, skip_special_tokens=True)
        assert (answered.plain_length, answered.plain_clipped) == (len(ids), ids[-1] != model.tokens.eos)
        assert (answered.samples, answered.average) == ((), None)
    assert len({answered.plain for answered in found}) > 1, "one answer to everything: nothing is told apart"
    assert len({answered.plain_clipped for answered in found}) == 2, "all cut off, or none"


@torch.no_grad()
@pytest.mark.parametrize("phases", [("latent", "answer"), ("prompt",)])
def test_samples_and_average_are_those_of_the_problems_own_masks(phases: tuple[str, ...]) -> None:
    model, masks = tiny_latent(dtype=torch.float64, seed=17), SharedDropout(0.4, phases=phases)
    found = answer_problems(model, PROBLEMS, CONFIG, exploration=masks, seed=7)
    for problem, answered in zip(PROBLEMS, found, strict=True):
        seeds = rollout_seeds(7, EVAL_STEP, torch.tensor([problem.id]), 3)
        state, noise = think_in_groups(model, Prompts(*model.encode([problem.question])), seeds, masks)
        alone = model.generate(state, 5, noise=noise)
        assert list(answered.samples) == model.decode(alone.token_ids, alone.mask)
        assert list(answered.sample_lengths) == alone.mask.sum(-1).tolist()
        average = model.generate(state, 5, strategy=AverageOverMasks(3), noise=noise)
        assert answered.average == model.decode(average.token_ids[:1], average.mask[:1])[0]
    assert any(len(set(a.samples)) > 1 for a in found), "the masks change nothing"
    assert len({length for answered in found for length in answered.sample_lengths}) > 1


@torch.no_grad()
def test_samples_at_a_temperature_without_masks() -> None:
    model = tiny_latent(dtype=torch.float64)
    found = answer_problems(model, PROBLEMS, replace(CONFIG, temperature=1.5), seed=7)
    for problem, answered in zip(PROBLEMS, found, strict=True):
        seeds = rollout_seeds(7, EVAL_STEP, torch.tensor([problem.id]), 3).flatten()
        state = model.think(model.read(*model.encode([problem.question])), 2).repeat(3)
        drawn = model.generate(state, 5, strategy=Sampling(seeds, 1.5))
        assert list(answered.samples) == model.decode(drawn.token_ids, drawn.mask)
        assert answered.average is None  # no masks to average over


def test_neither_order_nor_batch_size_matters() -> None:
    model = tiny_latent(dtype=torch.float64)
    expected = answer_problems(model, PROBLEMS, CONFIG, exploration=MASKS)
    backwards = answer_problems(model, PROBLEMS[::-1], CONFIG, exploration=MASKS)
    assert backwards[::-1] == expected
    for batch_size in (1, 100):
        assert answer_problems(model, PROBLEMS, replace(CONFIG, batch_size=batch_size), exploration=MASKS) == expected
    assert answer_problems(model, PROBLEMS, CONFIG, exploration=MASKS, seed=1) != expected


def test_samples_with_nothing_random_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_samples=3 with temperature 0 and no masks .* Set a temperature"):
        answer_problems(tiny_latent(), PROBLEMS, CONFIG)
    answer_problems(tiny_latent(), PROBLEMS, replace(CONFIG, num_samples=1))  # one sample claims nothing
    with pytest.raises(UserError, match="no problems to evaluate on"):
        answer_problems(tiny_latent(), [], CONFIG)


def test_a_question_too_long_is_refused() -> None:
    long = replace(PROBLEMS[0], question="? " * 60)
    with pytest.raises(UserError, match="62 tokens and needs 8 more"):  # 2 thoughts, the end marker, 5 tokens
        answer_problems(tiny_latent(), [long], replace(CONFIG, num_samples=0))


def test_a_question_is_read_once_and_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_latent()
    read, sizes = model.read, []

    def counted(input_ids: torch.Tensor, *args: Any) -> Any:
        sizes.append(len(input_ids))
        return read(input_ids, *args)

    monkeypatch.setattr(model, "read", counted)
    told: list[int] = []
    answer_problems(model, PROBLEMS, CONFIG, exploration=MASKS, progress=told.append)  # 6 rows: 2 problems
    assert sizes == [2, 2, 1]
    assert told == [2, 4, 5]


@pytest.mark.parametrize(
    ("masks", "steps", "others"),
    [
        (SharedDropout(0.0), 2, MASKS),
        (SharedDropout(0.4, phases=("latent",)), 0, MASKS),  # no thoughts, no latent phase
        # What is fed back is fed back in the latent phase.
        (SharedDropout(0.4, "thought", ("prompt", "answer")), 2, SharedDropout(0.4, "thought", ("latent",))),
    ],
)
def test_masks_that_never_come_to_bear_are_not_random(masks: SharedDropout, steps: int, others: SharedDropout) -> None:
    config = replace(CONFIG, latent_steps=steps)
    with pytest.raises(UserError, match="all samples would be the same"):
        answer_problems(tiny_latent(), PROBLEMS, config, exploration=masks)
    answer_problems(tiny_latent(), PROBLEMS, config, exploration=others)


def test_more_thoughts_than_the_model_has_positions_for_are_refused() -> None:
    config = replace(CONFIG, num_samples=0, latent_steps=60)
    with pytest.raises(UserError, match="needs 66 more"):  # 60 thoughts, the end marker, 5 tokens
        answer_problems(tiny_latent(), PROBLEMS, config)
    with pytest.raises(UserError, match=r"evaluation\.latent_steps=-1 must be at least 0"):
        replace(config, latent_steps=-1)


def answered(answer: str, *samples: str) -> ModelAnswers:
    problem = Problem(id=0, question="?", steps=(), answer=answer)
    return ModelAnswers(problem=problem, plain="", plain_length=1, plain_clipped=False, samples=samples)


def test_is_correct_reads_what_follows_the_marker() -> None:
    problem = Problem(id=0, question="?", steps=(), answer="18")
    assert is_correct("2 + 16 \n ### 18", problem)
    assert is_correct("### 18.0", problem)
    assert not is_correct("18", problem)
    assert not is_correct("### 81", problem)


def test_samples_are_right_or_wrong_one_by_one() -> None:
    record = answered("7", "### 7", "oops", "### 7.0", "### 1", "### 7")
    assert record.samples_correct() == [True, False, True, False, True]


def test_votes_are_counted_in_canonical_form() -> None:
    record = answered("7", "### 7", "### 7.0", "### 1", "oops", "### 14/2", "### 1")
    assert record.votes() == ["7", "7", "1", None, "7", "1"]
    assert vote(record) == "7"
    assert list(vote_table(record).items()) == [("7", 3), ("1", 2), ("(unparsable)", 1)]
    nothing = answered("7", "oops", "oops")
    assert (vote(nothing), vote_table(nothing)) == (None, {"(unparsable)": 2})
