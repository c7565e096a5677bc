"""Which problems a run reads the thoughts of, and the lines of thoughts.jsonl."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from dropout_grpo.commands.shared.context import Context
from dropout_grpo.evaluation.answering import EVAL_STEP, ModelAnswers
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.model import LatentModel

MASKS = 8
"""Masks for each problem: the first ones of an evaluation with the same seed."""

_OF_A_KIND = 2


def kinds_of(answered: Sequence[ModelAnswers]) -> dict[str, list[int]]:
    """Indices of a few problems: answered right, wrong, and such that most masks disagree with the plain network.

    Of the last kind are those where masks find the right answer that the plain network misses, or the reverse.
    """
    shares = [sum(a.samples_correct()) / max(1, len(a.samples)) for a in answered]
    kinds: dict[str, list[int]] = {"right": [], "wrong": [], "divided": []}
    for i, (a, share) in enumerate(zip(answered, shares, strict=True)):
        divided = bool(a.samples) and (share < 0.5 if a.plain_correct else share > 0.5)
        kinds["divided" if divided else "right" if a.plain_correct else "wrong"].append(i)
    return {kind: found[:_OF_A_KIND] for kind, found in kinds.items()}


def thoughts_of_run(
    context: Context,
    kinds: Mapping[str, Sequence[int]],
    models: Mapping[str, tuple[LatentModel, Sequence[ModelAnswers]]],
) -> list[dict[str, Any]]:
    """``thought_lines`` with the exploration, seed, precision and number of thoughts of a command."""
    steps = context.recipe.evaluation.latent_steps
    return thought_lines(kinds, models, context.exploration, seed=context.seed, bf16=context.bf16, latent_steps=steps)


def thought_lines(
    kinds: Mapping[str, Sequence[int]],
    models: Mapping[str, tuple[LatentModel, Sequence[ModelAnswers]]],
    exploration: Exploration,
    *,
    seed: int = 0,
    bf16: bool = False,
    latent_steps: int | None = None,
) -> list[dict[str, Any]]:
    """The lines of thoughts.jsonl. Every process of a run makes the same.

    Args:
        kinds: indices of problems by kind.
        models: each with its answers to all problems, by name.
        exploration: makes the masks.
        seed: seed of the evaluation.
        bf16: matrix products in bf16, as in the evaluation.
        latent_steps: number of thoughts; each model's own number when None.
    """
    lines = []
    for kind, places in kinds.items():
        for place in places:
            sides = []
            for name, (model, answered) in models.items():
                problem = answered[place].problem
                masks = rollout_seeds(seed, EVAL_STEP, torch.tensor([problem.id]), MASKS)[0].tolist()
                with autocast(model.device, bf16):
                    (thoughts,) = model.thoughts([problem.prompt], exploration, masks, latent_steps=latent_steps)
                sides.append({"name": name, "said": answered[place].plain.strip(), "thoughts": asdict(thoughts)})
            lines.append({"kind": kind, "question": problem.question, "answer": problem.answer, "models": sides})
    return lines
