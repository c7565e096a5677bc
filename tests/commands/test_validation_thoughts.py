"""evaluation.latent_steps counts in validations during training as it does at the end."""

from types import SimpleNamespace
from typing import Any

import pytest

from dropout_grpo.commands.shared import measure
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.exploration import NoExploration
from helpers.tiny_latent import tiny_latent, tiny_problems


@pytest.mark.parametrize(
    ("told", "stage", "asked"),
    [
        (None, None, None),  # the model's own
        (5, None, 5),  # GRPO
        (5, 2, 5),  # the curriculum with its full block
        (5, 1, 1),  # a stage with fewer thoughts
        (0, None, 0),
    ],
)
def test_the_number_of_thoughts_in_validations(
    told: int | None, stage: int | None, asked: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: the option counted at the end only."""
    seen: list[int | None] = []
    ask = measure.answer_problems

    def watched(model: Any, problems: Any, config: EvaluationConfig, **options: Any) -> Any:
        seen.append(config.latent_steps)
        return ask(model, problems, config, **options)

    monkeypatch.setattr(measure, "answer_problems", watched)
    recipe = Recipe(evaluation=EvaluationConfig(latent_steps=told))
    context: Any = SimpleNamespace(recipe=recipe, exploration=NoExploration(), seed=0, bf16=False)
    measure.validator(context, tiny_problems(2))(tiny_latent(latent_steps=2), stage)
    assert seen == [asked]
