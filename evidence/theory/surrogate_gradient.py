"""At the old policy the ratio is 1 and the gradient of the clipped surrogate is the estimator g."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dropout_grpo.config.grpo import LossType
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.gradients import relative
from evidence.theory.law import Law
from evidence.theory.setting import Rollouts, objective_gradient, sample
from evidence.theory.toy import QUESTIONS, Masks, Toy, answer_index
from evidence.theory.unbiased import EXACT

FRESH = 1 << 20
"""Added to a seed where a mask other than the rollout's is wanted."""


def check_surrogate(
    toy: Toy,
    masks: Masks,
    laws: Sequence[Law],
    *,
    seed: int,
    loss_type: LossType = "sum",
    replayed: bool = True,
    batches: int = 8,
) -> list[Check]:
    """Compare the gradient of the library on sampled batches with the sum over rollouts of enumerated scores.

    Args:
        toy: the toy.
        masks: all masks.
        laws: the law of each question, with the scores of all answers under all masks.
        seed: seed of the rollouts.
        loss_type: loss type of the objective, under test.
        replayed: update under the rollouts' own masks, under test.
        batches: number of batches of 64 groups of 4.
    """
    questions = torch.arange(64) % QUESTIONS
    rows: list[Row] = []
    ratio_error, tokens = 0.0, 0
    for level in ("token", "sequence"):
        worst = 0.0
        for batch in range(batches):
            seeds = rollout_seeds(seed, batch, torch.arange(len(questions)), 4)
            drawn = sample(toy.setting, questions, seeds)
            found = objective_gradient(
                toy.setting,
                drawn,
                group_advantages,
                update_seeds=None if replayed else seeds + FRESH,
                importance_sampling_level=level,
                loss_type=loss_type,
            )
            expected = _estimator(toy, masks, laws, drawn)
            worst = max(worst, relative(found.gradient - expected, expected))
            tokens += int(drawn.answers.mask.sum())
            ratio_error = max(ratio_error, float((found.log_ratio.exp() - 1).abs().max()))
        rows.append([level, loss_type, worst])
    largest = max(row[2] for row in rows)
    return [
        Check(
            id="surrogate.gradient",
            claim="At the old policy the gradient of the clipped surrogate is g, at token and sequence level.",
            quantity="|gradient of the surrogate - g| / |g|, worst batch",
            exact=0.0,
            estimate=largest,
            error=largest,
            verdict=holds_if(largest < EXACT),
            detail={"columns": ["ratio of", "loss_type", "relative error"], "rows": rows},
        ),
        Check(
            id="surrogate.ratio",
            claim="With the mask replayed from its seed, every ratio at the old policy is 1.",
            quantity="largest |ratio - 1| over all answer tokens",
            exact=0.0,
            estimate=ratio_error,
            error=ratio_error,
            verdict=holds_if(ratio_error < EXACT),
            detail={"columns": ["tokens compared"], "rows": [[tokens]]},
        ),
    ]


def _estimator(toy: Toy, masks: Masks, laws: Sequence[Law], drawn: Rollouts) -> Tensor:
    """g = mean of A_k grad log pi(a_k | x, m_k), with the scores of the enumeration."""
    mask = masks.index(toy, toy.exploration, drawn.seeds)  # [G, K]
    answer = answer_index(toy.answers, drawn.answers.token_ids).view_as(mask)
    gains = group_advantages(drawn.rewards)
    total = torch.zeros(laws[0].scores.shape[-1], dtype=torch.float64)
    for group, question in enumerate(drawn.questions.tolist()):
        total += gains[group] @ laws[question].score[mask[group], answer[group]]
    return total / mask.numel()
