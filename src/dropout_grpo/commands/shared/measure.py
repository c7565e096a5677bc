"""Measures the model of a command on problems."""

from collections.abc import Sequence
from dataclasses import replace

from dropout_grpo.commands.shared.context import Context
from dropout_grpo.commands.shared.problems import place_of
from dropout_grpo.config.data import DataConfig
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError, at_place
from dropout_grpo.evaluation.answering import ModelAnswers, answer_problems
from dropout_grpo.evaluation.validation import planned_batches
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.training.progress import Bar


def measure(
    context: Context, model: LatentModel, problems: Sequence[Problem], title: str, *, plain_only: bool = False
) -> list[ModelAnswers]:
    """Answers to all problems, with a progress bar.

    Args:
        context: its exploration, seed and precision are used.
        model: what answers.
        problems: what is asked.
        title: title of the progress bar.
        plain_only: ask the plain network only, without samples.
    """
    config = context.recipe.evaluation
    if plain_only:
        config = replace(config, num_samples=0)
    exploration = None if plain_only else context.exploration
    batches = planned_batches(model, problems, config, exploration, bf16=context.bf16)
    with Bar(title, len(problems)) as bar:
        return answer_problems(
            model,
            problems,
            config,
            exploration=exploration,
            seed=context.seed,
            bf16=context.bf16,
            progress=bar.reach,
            batches=batches,
        )


def by_source(data: DataConfig, problems: Sequence[Problem]) -> dict[str, Sequence[Problem]]:
    """Validation problems by the name of their file; under "" if they have one source."""
    if not isinstance(problems, Mixture):
        return {"": problems}
    placed = list(zip(problems, problems.source_of, strict=True))
    return {name: [p for p, source in placed if source == i] for i, name in enumerate(data.valid_names)}


def validation_sets(data: DataConfig, problems: Sequence[Problem]) -> dict[str, Sequence[Problem]]:
    """The problems that a trainer validates on: at most ``data.max_valid`` of each source."""
    return {name: part[: data.max_valid] for name, part in by_source(data, problems).items()}


def require_askable(model: LatentModel, problems: Sequence[Problem], split: str, recipe: Recipe) -> None:
    """Check, before training, that a split can be measured once training is over.

    Raises:
        UserError: the split has no problems, or a question is too long for the model.
    """
    if not problems:
        raise UserError(f"the split {split} has no problems: give a file for data.{split}, or have some made.")
    with at_place(place_of(recipe.data, split)):
        model.encode_rows([p.prompt for p in problems], room=recipe.evaluation.max_new_tokens)
