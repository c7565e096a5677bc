"""Estimators of KL(pi || pi_ref) at a sampled token, with and without a bound on their growth.

With gap = log pi_ref - log pi, Schulman's k3 is e^gap - gap - 1. It is non-negative, and unbiased for tokens sampled
from pi. It grows exponentially with the gap, so one token that is much more probable under the reference can outweigh a
whole batch.

The public draft of the paper writes its formulas with r = log pi - log pi_ref. Here the argument is the gap above, as
in TRL, because only in this direction is k3 an estimate of KL(pi || pi_ref).
"""

from torch import Tensor

from dropout_grpo.config.grpo import KLEstimator


def kl_estimate(gap: Tensor, estimator: KLEstimator, delta: float) -> Tensor:
    """The estimate for each token, with the shape of ``gap``.

    Args:
        gap: log pi_ref - log pi.
        estimator: ``k3``; ``k3_huber`` continues it beyond +-delta by its tangents, so that its slope is bounded and
            never 0 there (public draft of the paper, Huberised k3); ``k3_clamp`` keeps it constant there, so that such
            a token has no gradient.
        delta: absolute gap beyond which ``k3_huber`` and ``k3_clamp`` differ from k3.
    """
    if estimator == "k3":
        return gap.exp() - gap - 1.0
    inner = gap.clamp(-delta, delta)
    k3 = inner.exp() - inner - 1.0
    if estimator == "k3_clamp":
        return k3
    slope = inner.detach().expm1()  # slope of k3 at the end of the range; inside the range gap - inner is 0
    return k3 + slope * (gap - inner)
