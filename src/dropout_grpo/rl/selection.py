"""Selects the groups for an update: all of them, only mixed ones, or only those whose mean reward lies in a range.

Without selection, the objective averages over all sampled rollouts, and the surrogate's gradient is that of the
expected reward (``rl/objective.py``). Both kinds of selection change the objective to the mean over the kept groups:

- *Dynamic sampling* (DAPO, section 3.2) keeps mixed groups, those whose rollouts differ in reward. Batches of questions
  are sampled until a step has enough of them. The gradient is the same sum divided by fewer rollouts, so it is larger
  by the factor (groups sampled) / (groups kept), which changes from step to step. Dropped groups do not count in the
  KL either.
- *The group filter* (public draft of the paper) keeps groups whose mean reward lies in a range: questions that are
  neither hopeless nor solved. The draft calls the objective that of the filtered question distribution; as the filter
  reads the rewards of the group itself, it is a reweighted one (``docs/theory.md``, "Filtered groups"). A step that
  keeps no group changes nothing, neither the weights nor the learning rate.

Every function here is pure. The questions of a batch depend only on seed and step, and the kept groups only on the
rewards of the whole step. So all processes that exchange their rewards select the same groups, and so does a resumed
run. A step that needs fewer batches than it may sample skips the questions of the others, so that later steps do not
depend on it.
"""

import torch
from torch import Tensor

from dropout_grpo.rl.advantage import group_means, zero_variance


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


def batch_numbers(step: int, max_gen_batches: int | None) -> range:
    """Numbers of the batches that a step may sample, counted from 1; a single one without dynamic sampling."""
    batches = max_gen_batches or 1
    return range((step - 1) * batches + 1, step * batches + 1)
