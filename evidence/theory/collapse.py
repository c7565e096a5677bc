"""Without exploration, the greedy rollouts of a group are identical, and GRPO has nothing to learn from."""

import torch

from dropout_grpo.exploration.base import Exploration, NoExploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.setting import objective_gradient, sample
from evidence.theory.toy import QUESTIONS, Toy


def check_collapse(toy: Toy, *, seed: int, exploration: Exploration | None = None, temperature: float = 0.0) -> Check:
    """Advantages and gradient of 64 groups of 8 for each question.

    Args:
        toy: the toy.
        seed: seed of the rollouts.
        exploration: the exploration under test; none when None.
        temperature: temperature of the answers, under test; 0 decodes greedily.
    """
    none, held = NoExploration(), toy.setting.exploration
    cases: list[tuple[str, Exploration, float]] = [
        ("no mask, greedy", exploration or none, temperature),
        ("held mask, greedy", held, 0.0),
        ("no mask, sampled", none, toy.setting.temperature),
        ("held mask, sampled", held, toy.setting.temperature),
    ]
    rows: list[Row] = []
    for name, noise, tau in cases:
        questions = torch.arange(QUESTIONS).repeat(64)
        seeds = rollout_seeds(seed, 0, torch.arange(len(questions)), 8)
        drawn = sample(toy.setting, questions, seeds, exploration=noise, temperature=tau)
        gains = group_advantages(drawn.rewards)
        gradient = objective_gradient(toy.setting, drawn, group_advantages, exploration=noise).gradient
        mixed = float((~zero_variance(drawn.rewards)).double().mean())
        rows.append([name, mixed, float(gains.abs().max()), float(gradient.abs().max())])
    largest = max(rows[0][2], rows[0][3])
    return Check(
        id="collapse.greedy",
        claim="Without a mask and with greedy decoding every advantage is 0 and the gradient is 0.",
        quantity="largest |A| or entry of g; exactly 0, not 0 up to rounding",
        exact=0.0,
        estimate=largest,
        error=largest,
        verdict=holds_if(largest == 0.0),
        detail={"columns": ["rollouts", "mixed groups", "largest |A|", "largest entry of g"], "rows": rows},
    )
