"""Measures the model of a command on problems."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dropout_grpo.commands.shared.context import Context
from dropout_grpo.commands.shared.problems import place_of
from dropout_grpo.config.recipe import DataConfig, Recipe
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError, at_place
from dropout_grpo.evaluation.answering import Answered, answer_problems, evaluation_batches
from dropout_grpo.evaluation.measures import validation_metrics
from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.training.progress import Bar


def measure(
    context: Context, model: LatentModel, problems: Sequence[Problem], title: str, *, plain_only: bool = False
) -> list[Answered]:
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
    with Bar(title, len(problems)) as bar:
        return answer_problems(
            model,
            problems,
            config,
            exploration=None if plain_only else context.exploration,
            seed=context.seed,
            bf16=context.bf16,
            progress=bar.reach,
        )


def all_alike(context: Context) -> bool:
    """Whether all samples of a problem are the same, because neither masks nor a temperature make them differ."""
    return isinstance(context.exploration, NoExploration) and context.recipe.evaluation.temperature == 0


def by_source(data: DataConfig, problems: Sequence[Problem]) -> dict[str, Sequence[Problem]]:
    """Validation problems by the name of their file; under "" if they have one source."""
    if not isinstance(problems, Mixture):
        return {"": problems}
    placed = list(zip(problems, problems.source_of, strict=True))
    return {name: [p for p, source in placed if source == i] for i, name in enumerate(data.valid_names)}


def validator(context: Context, problems: Sequence[Problem], num_samples: int = 0) -> Callable[..., dict[str, float]]:
    """A function that returns ``validation_metrics`` of a model on validation problems.

    Args:
        context: its exploration, seed and precision are used.
        problems: at most ``data.max_valid`` of each source are asked.
        num_samples: answers under masks for each problem.
    """
    recipe = context.recipe
    sets = {name: part[: recipe.data.max_valid] for name, part in by_source(recipe.data, problems).items()}
    batches = evaluation_batches(replace(recipe.evaluation, num_samples=num_samples))

    def validate(
        model: LatentModel, latent_steps: int | None = None, max_new_tokens: int | None = None
    ) -> dict[str, float]:
        told = recipe.evaluation.latent_steps
        if latent_steps in (None, model.latent_steps) and told is not None:  # not a stage with fewer thoughts
            latent_steps = told
        config = replace(
            recipe.evaluation,
            num_samples=num_samples,
            max_new_tokens=max_new_tokens or recipe.evaluation.max_new_tokens,
            latent_steps=latent_steps,
        )
        answered = {
            name: answer_problems(
                model,
                part,
                config,
                exploration=context.exploration,
                seed=context.seed,
                bf16=context.bf16,
                batches=batches,
            )
            for name, part in sets.items()
        }
        return validation_metrics(answered)

    return validate


def require_askable(model: LatentModel, problems: Sequence[Problem], split: str, recipe: Recipe) -> None:
    """Check, before training, that a split can be measured once training is over.

    Raises:
        UserError: the split has no problems, or a question is too long for the model.
    """
    if not problems:
        raise UserError(f"the split {split} has no problems: give a file for data.{split}, or have some made.")
    with at_place(place_of(recipe.data, split)):
        model.encode_rows([p.prompt for p in problems], room=recipe.evaluation.max_new_tokens)
