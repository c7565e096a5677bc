"""Groups of rollouts with their rewards, and how to select and join them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropout_grpo.latent.decoding import Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """N questions with K rollouts each. The answers are N * K rows; the K rollouts of a question are adjacent."""

    places: list[int]  # N, indices of the problems
    seeds: Tensor  # int64 [N, K]
    rewards: Tensor  # [N, K], NaN where no reward function judged the rollout
    answers: Generation  # [N * K, L]

    def select(self, groups: Tensor) -> "Groups":
        """The groups with these indices."""
        return Groups(
            places=[self.places[i] for i in groups.tolist()],
            seeds=self.seeds[groups],
            rewards=self.rewards[groups],
            answers=select_answers(self.answers, rows_of(groups, self.seeds.shape[1])),
        )


def rows_of(groups: Tensor, k: int) -> Tensor:
    """Rows [M * K] of the rollouts of groups [M], K each."""
    return (groups[:, None] * k + torch.arange(k)).flatten()


def select_answers(answers: Generation, rows: Tensor) -> Generation:
    """The rows with these indices, in this order."""
    return answers.each(lambda part: part[rows])


def join(parts: Sequence[Groups], pad: int) -> Groups:
    """All groups of all parts; shorter answers are padded with the token ``pad``."""
    return Groups(
        places=[place for part in parts for place in part.places],
        seeds=torch.cat([part.seeds for part in parts]),
        rewards=torch.cat([part.rewards for part in parts]),
        answers=join_answers([part.answers for part in parts], pad),
    )


def join_answers(parts: Sequence[Generation], pad: int) -> Generation:
    """All rows of all parts; shorter answers are padded with the token ``pad``."""
    return Generation(
        token_ids=_stack([part.token_ids for part in parts], pad),
        mask=_stack([part.mask for part in parts], 0),
        logprobs=_stack([part.logprobs for part in parts], 0),
        entropy=_stack([part.entropy for part in parts], 0),
    )


def _stack(parts: Sequence[Tensor], fill: int) -> Tensor:
    """[R_i, L_i] each -> [sum R_i, max L_i], filled on the right."""
    length = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill) for part in parts])
