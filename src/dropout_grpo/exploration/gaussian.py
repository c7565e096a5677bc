"""Multiplicative Gaussian noise on activations, held over a rollout: an alternative to dropout.

A factor is 1 + sigma * z with z ~ N(0, 1). With sigma = sqrt(p / (1 - p)) it has the mean and variance of a dropout
mask (Srivastava et al. 2014, section 10).
"""

import math
from collections.abc import Iterable

from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import PHASES
from dropout_grpo.exploration.held_noise import HeldNoise, require_names
from dropout_grpo.exploration.seeds import normal
from dropout_grpo.exploration.sites import SITES, SiteMap


class Gaussian:
    """One Gaussian factor per feature and rollout, held over every step of every phase that is on.

    Args:
        sigma: standard deviation of the factors, 0 or more; 0 means no noise.
        sites: kinds of activations that are multiplied, from ``SITES``.
        phases: one or more of ``prompt``, ``latent``, ``answer``.

    Raises:
        UserError: sigma is negative or not finite, or a site or phase is unknown or missing.
    """

    def __init__(
        self, sigma: float = 0.1, sites: Iterable[str] = ("residual",), phases: Iterable[str] = ("latent",)
    ) -> None:
        self.sigma = at_least_zero("sigma", sigma)
        self.sites = require_names("site", sites, SITES)
        self.phases = frozenset(require_names("phase", phases, PHASES))

    def noise(self, seeds: Tensor, sites: SiteMap) -> HeldNoise | None:
        """The factors of ``seeds`` (int64 [B]) on the sites of a model; None if sigma is 0."""
        if self.sigma == 0.0:
            return None
        return HeldNoise(seeds, sites, self._draw, sites=self.sites, phases=self.phases)

    def _draw(self, seeds: Tensor, streams: Tensor) -> Tensor:
        return 1.0 + self.sigma * normal(seeds, streams)


def at_least_zero(name: str, value: float) -> float:
    """Check that ``value`` is finite and not negative, and return it.

    Raises:
        UserError: names the option.
    """
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UserError(f"exploration.options {name}={value!r}: it must be a number, 0 or more.")
    return float(value)
