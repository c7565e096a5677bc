"""Validation during training: the number of thoughts, and questions that are encoded once."""

from typing import Any

import pytest

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.evaluation import validation
from dropout_grpo.evaluation.validation import Validation
from dropout_grpo.exploration import SharedDropout
from helpers.tiny_latent import tiny_latent, tiny_problems


@pytest.mark.parametrize(
    ("told", "stage", "asked"),
    [
        (None, None, None),  # the model's own
        (5, None, 5),  # GRPO
        (5, 2, 2),  # the curriculum with all its thoughts; fault: 5 in this stage alone
        (5, 1, 1),  # a stage with fewer thoughts
        (0, None, 0),
    ],
)
def test_the_number_of_thoughts_in_validations(
    told: int | None, stage: int | None, asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: evaluation.latent_steps counted at the end of a training only."""
    seen: list[int | None] = []
    ask = validation.answer_problems

    def watched(model: Any, problems: Any, config: EvaluationConfig, **options: Any) -> Any:
        seen.append(config.latent_steps)
        return ask(model, problems, config, **options)

    monkeypatch.setattr(validation, "answer_problems", watched)
    config = EvaluationConfig(latent_steps=told, num_samples=0)
    validate = Validation({"": tiny_problems(2)}, config, seed=0, bf16=False)
    validate(tiny_latent(latent_steps=2), stage)
    assert seen == [asked]


def test_questions_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_latent(), []
    tokenize = model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda questions: seen.append(len(questions)) or tokenize(questions))
    sets = {"few": tiny_problems(2), "more": tiny_problems(3)}
    validate = Validation(sets, EvaluationConfig(num_samples=0), seed=0, bf16=False)
    assert validate(model) == validate(model)
    assert seen == [2, 3]


@pytest.mark.parametrize(("told", "stage", "asked"), [(5, None, 5), (5, 1, 1), (None, None, 2)])
def test_its_trial_has_the_thoughts_of_a_call(told: int | None, stage: int | None, asked: int) -> None:
    model = tiny_latent(latent_steps=2)
    validate = Validation(
        {"": tiny_problems(2)}, EvaluationConfig(latent_steps=told, num_samples=0), seed=0, bf16=False
    )
    assert validate.work(model, stage).run(2).state.latent_step == asked


def test_validation_leaves_out_the_model_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: its answers were decoded and thrown away, half of the time of a validation under masks."""
    monkeypatch.setattr("dropout_grpo.evaluation.answering.AverageOverMasks", None)
    model, config = tiny_latent(), EvaluationConfig(num_samples=2, max_new_tokens=2)
    validate = Validation({"": tiny_problems(2)}, config, SharedDropout(0.3), seed=0, bf16=False)
    assert list(validate(model)) == validate.measures == ["pass@1", "masked_pass@1", "pass@2"]
