"""Measures the model of a command on problems."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from dropout_grpo.errors import UserError, at_place
from dropout_grpo.evaluation.answering import Answered, answer_problems, evaluation_batches
from dropout_grpo.jobs.problem_sources import place_of
from dropout_grpo.jobs.recipe import Recipe
from dropout_grpo.jobs.session import Session
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.problems.problem import Problem
from dropout_grpo.training.progress import Bar


def measure(
    session: Session, model: LatentModel, problems: Sequence[Problem], title: str, *, plain_only: bool = False
) -> list[Answered]:
    """Answers to all problems, with a progress bar.

    Args:
        session: its exploration, seed and precision are used.
        model: what answers.
        problems: what is asked.
        title: title of the progress bar.
        plain_only: ask the plain network only, without samples.
    """
    config = session.recipe.evaluation
    if plain_only:
        config = replace(config, num_samples=0)
    with Bar(title, len(problems)) as bar:
        return answer_problems(
            model,
            problems,
            config,
            exploration=None if plain_only else session.exploration,
            seed=session.seed,
            bf16=session.bf16,
            progress=bar.reach,
        )


def validator(session: Session, problems: Sequence[Problem]) -> Callable[..., float]:
    """A function that returns pass@1 of a model's plain network on validation problems, in [0, 1]."""
    recipe = session.recipe
    used, batches = problems[: recipe.data.max_valid], evaluation_batches(recipe.evaluation)

    def validate(model: LatentModel, latent_steps: int | None = None, max_new_tokens: int | None = None) -> float:
        config = replace(
            recipe.evaluation,
            num_samples=0,
            max_new_tokens=max_new_tokens or recipe.evaluation.max_new_tokens,
            latent_steps=latent_steps,
        )
        answered = answer_problems(model, used, config, bf16=session.bf16, batches=batches)
        return sum(a.plain_correct for a in answered) / len(answered)

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
