"""Dynamic sampling (DAPO, section 3.2): a step is filled with mixed groups, those whose rollouts differ in reward.

Batches of questions are sampled one after the other until enough groups are mixed, or as many as are allowed have been
sampled; the first mixed groups make the update, fewer of them where there are no more.

This departs from ``rl/objective.py``, whose mean over all rollouts sampled makes the surrogate's gradient that of the
expected reward. Here the mean is over the kept groups alone: the same sum, divided by fewer, so that a step is longer
by a factor (groups sampled for each one kept) that changes from step to step. Groups that are not mixed count for
nothing, in the KL as well. Metrics of rollouts (``reward``, ``frac_reward_zero_std``, lengths, ...) are of all that was
sampled; ``groups/sampled``, ``groups/mixed`` and ``groups/kept`` say what became of it.

Which questions a batch has, and which of them are kept, is a pure function of seed, step and policy. A step that needs
fewer batches skips the questions of the others: what later steps see does not depend on it, nor does a resumed run.
"""

from torch import Tensor

from dropout_grpo.rl.advantage import zero_variance


def mixed_groups(rewards: Tensor) -> Tensor:
    """Places of the groups whose rollouts differ in reward, in order, from rewards [N, K]."""
    return (~zero_variance(rewards)).nonzero().squeeze(-1)


def batch_numbers(step: int, max_gen_batches: int | None) -> range:
    """Which batches of questions a step may sample, both counted from 1; one without dynamic sampling."""
    batches = max_gen_batches or 1
    return range((step - 1) * batches + 1, step * batches + 1)
