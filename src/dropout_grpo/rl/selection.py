"""Which groups make the update: all of them, only mixed ones, or only those of a certain mean reward.

Without selection, the objective averages over all sampled rollouts, and the surrogate's gradient is that of the
expected reward (``rl/objective.py``). Both selections change the objective to the mean over the kept groups alone:

- *Dynamic sampling* (DAPO, section 3.2) keeps mixed groups, those whose rollouts differ in reward. Batches of questions
  are sampled until a step has enough of them. The gradient is the same sum divided by fewer rollouts: longer by a
  factor, groups sampled over groups kept, that changes from step to step. Dropped groups count for nothing in the KL
  either.
- *The group filter* (public draft of the paper) keeps groups whose mean reward lies in a range: questions that are
  neither hopeless nor solved. The draft calls the objective that of the filtered question distribution; as the filter
  reads the rewards of the group itself, it is a reweighted one (``docs/theory.md``, "Filtered groups"). A step that
  keeps no group changes nothing, neither the weights nor the learning rate.

Every function here is pure. The questions of a batch depend on seed and step alone, and the kept groups on the rewards
of the whole step alone, so several processes that exchange their rewards decide alike, and so does a resumed run. A
step that needs fewer batches than it may sample leaves out the questions of the others, so later steps do not depend
on it.
"""

import torch
from torch import Tensor

from dropout_grpo.rl.advantage import group_means, zero_variance


def select_groups(
    rewards: Tensor, *, mixed: bool, mean_range: tuple[float, float] | None, limit: int | None = None
) -> Tensor:
    """Indices of the groups that make the update, in order, int64 [M].

    Args:
        rewards: [N, K] of all groups of the step; NaN where no reward function judged the rollout.
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


def batch_numbers(step: int, max_gen_batches: int | None) -> range:
    """Numbers of the batches of questions that a step may sample, counted from 1; one without dynamic sampling."""
    batches = max_gen_batches or 1
    return range((step - 1) * batches + 1, step * batches + 1)
