"""The distribution of a rollout of the toy: the probability, reward and score of every mask and answer.

Shapes: M masks, A answers, L tokens of an answer, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropout_grpo.exploration.base import Exploration
from dropout_grpo.latent.rollout import replay
from evidence.theory.gradients import flat_gradient, flat_gradients
from evidence.theory.toy import QUESTIONS, Masks, Toy


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The distribution of the rollouts of one question."""

    weights: Tensor  # [M], q(m)
    logprobs: Tensor  # [M, A, L], log pi(a_t | x, m, a_<t), 0 after the end
    scores: Tensor  # [M, A, L, P], their gradients
    rewards: Tensor  # [A], 0 or 1
    answer_mask: Tensor  # [A, L]

    @property
    def policy(self) -> Tensor:
        """pi(a | x, m), [M, A]."""
        return self.logprobs.sum(-1).exp()

    @property
    def probability(self) -> Tensor:
        """q(m) pi(a | x, m), [M, A]."""
        return self.weights[:, None] * self.policy

    @property
    def score(self) -> Tensor:
        """grad log pi(a | x, m), [M, A, P]."""
        return self.scores.sum(2)

    @property
    def expected_reward(self) -> float:
        """J(x) = E_m E_a R(x, a)."""
        return float((self.probability * self.rewards).sum())


def answer_logprobs(toy: Toy, masks: Masks, exploration: Exploration, question: int) -> Tensor:
    """Log-probabilities [M, A, L] of all answers under all masks, 0 after the end, with gradient."""
    count, answers = len(masks.seeds), len(toy.answers)
    setting = toy.setting
    logprobs = replay(
        setting.model,
        setting.prompts.select(torch.tensor([question])),
        masks.seeds.repeat_interleave(answers)[None],
        toy.answers.repeat(count, 1),
        exploration,
        temperature=setting.temperature,
    )
    return logprobs.view(count, answers, -1) * toy.answer_mask


def enumerate_law(toy: Toy, masks: Masks, exploration: Exploration, question: int) -> Law:
    """The law of one question's rollouts."""
    parts, scores = [], []
    for i in range(
        len(masks.seeds)
    ):  # one mask at a time: the cost of a batched backward pass grows with the square of its rows
        one = Masks(seeds=masks.seeds[i : i + 1], weights=masks.weights[i : i + 1], codes=masks.codes[i : i + 1])
        logprobs = answer_logprobs(toy, one, exploration, question)
        scores.append(flat_gradients(logprobs, toy.setting.model))
        parts.append(logprobs.detach())
    return Law(
        weights=masks.weights,
        logprobs=torch.cat(parts),
        scores=torch.cat(scores),
        rewards=toy.rewards[question],
        answer_mask=toy.answer_mask,
    )


def enumerate_laws(toy: Toy, masks: Masks, exploration: Exploration) -> list[Law]:
    """The laws of all questions."""
    return [enumerate_law(toy, masks, exploration, question) for question in range(QUESTIONS)]


def objective_gradients(toy: Toy, masks: Masks, exploration: Exploration) -> Tensor:
    """grad J(x) of every question, [N, P], by automatic differentiation of the finite sum J; no scores are used."""
    gradients = []
    for question in range(QUESTIONS):
        policy = answer_logprobs(toy, masks, exploration, question).sum(-1).exp()
        value = (masks.weights[:, None] * policy * toy.rewards[question]).sum()
        gradients.append(flat_gradient(value, toy.setting.model))
    return torch.stack(gradients)


def mean_expected_reward(laws: Sequence[Law]) -> float:
    """J, averaged over the questions."""
    return sum(law.expected_reward for law in laws) / len(laws)
