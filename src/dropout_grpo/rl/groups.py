"""Groups of rollouts with their rewards: how to join and select them, and which of them an update uses.

Without selection, the objective averages over all sampled rollouts, and the surrogate's gradient is that of the
expected reward (``rl/objective.py``). Both kinds of selection change the objective to the mean over the kept groups:

- *Dynamic sampling* (DAPO, section 3.2; ``filter_groups`` in verl) keeps mixed groups, those whose rollouts differ in
  reward. Batches of questions are sampled until a step has enough of them. The gradient is the same sum divided by
  fewer rollouts, so it is larger by the factor (groups sampled) / (groups kept), which changes from step to step.
  Dropped groups do not count in the KL either.
- *The group filter* (public draft of the paper) keeps groups whose mean reward lies in a range: questions that are
  neither hopeless nor solved. The draft calls the objective that of the filtered question distribution; as the filter
  reads the rewards of the group itself, it is a reweighted one (``docs/theory.md``, "Filtered groups"). A step that
  keeps no group changes nothing, neither the weights nor the learning rate.

Every function here is pure. The kept groups depend only on the rewards of the whole step, so all processes, which
exchange their rewards, select the same groups, and so does a resumed run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.rollout import Prompts
from dropout_grpo.rl.advantage import group_means, zero_variance


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """N questions with K rollouts each. The answers are N * K rows; the K rollouts of a question are adjacent."""

    indices: list[int]  # N, of the problems
    prompts: Prompts  # N
    seeds: Tensor  # int64 [N, K]
    rewards: Tensor  # [N, K], NaN where no reward function judged the rollout
    answers: Generation  # [N * K, L]

    def select(self, groups: Tensor) -> "Groups":
        """The groups with these indices, int64 [M]."""
        ids, mask = self.prompts.input_ids, self.prompts.attention_mask
        return Groups(
            indices=[self.indices[i] for i in groups.tolist()],
            prompts=Prompts(ids[groups.to(ids.device)], mask[groups.to(mask.device)]),
            seeds=self.seeds[groups],
            rewards=self.rewards[groups],
            answers=select_answers(self.answers, rows_of(groups, self.seeds.shape[1])),
        )


def select_groups(
    rewards: Tensor, *, mixed: bool, mean_range: tuple[float, float] | None, limit: int | None = None
) -> Tensor:
    """Indices of the groups that the update uses, in order, int64 [M].

    Args:
        rewards: rewards of all groups of the step, [N, K]; NaN if no reward function judged the rollout.
        mixed: keep only groups whose rollouts differ in reward.
        mean_range: keep only groups whose mean reward lies in [low, high]; None keeps any.
        limit: keep at most this many, the first ones.
    """
    keep = ~zero_variance(rewards) if mixed else torch.ones(len(rewards), dtype=torch.bool)
    if mean_range is not None:
        low, high = torch.tensor(mean_range, dtype=rewards.dtype)  # in the precision of the means: 0.2 is in [0.2, 1]
        means = group_means(rewards)
        keep = keep & (means >= low) & (means <= high)
    return keep.nonzero().squeeze(-1)[:limit]


def rows_of(groups: Tensor, k: int) -> Tensor:
    """Rows [M * K] of the rollouts of groups [M], K each."""
    return (groups[:, None] * k + torch.arange(k)).flatten()


def select_answers(answers: Generation, rows: Tensor) -> Generation:
    """The rows with these indices, in this order."""
    return answers.each(lambda part: part[rows])


def join(parts: Sequence[Groups], pad: int) -> Groups:
    """All groups of all parts; shorter prompts and answers are padded with the token ``pad``."""
    return Groups(
        indices=[index for part in parts for index in part.indices],
        prompts=Prompts(
            _stack([part.prompts.input_ids for part in parts], pad, left=True),
            _stack([part.prompts.attention_mask for part in parts], 0, left=True),
        ),
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


def _stack(parts: Sequence[Tensor], fill: int, *, left: bool = False) -> Tensor:
    """[R_i, L_i] each -> [sum R_i, max L_i], filled on the right, or on the left."""
    length = max(part.shape[1] for part in parts)
    gaps = [length - part.shape[1] for part in parts]
    return torch.cat(
        [padded(part, (gap, 0) if left else (0, gap), value=fill) for part, gap in zip(parts, gaps, strict=True)]
    )
