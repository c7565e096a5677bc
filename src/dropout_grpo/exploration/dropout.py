"""Dropout as exploration: one Bernoulli mask per rollout, held over all latent steps and replayed in the update.

A mask has the shape [rollout, 1, features] and the values 0 and 1/(1-p). It is the same for every position and latent
step of a rollout. Multiplying a layer's output features by it equals masking the columns of that layer's weight matrix,
so a rollout under its mask is a rollout under one sample of the weights (Gal and Ghahramani 2016; the paper, section on
the variational posterior). This does not hold for the sites ``thought`` and ``attention_weights``, which mask no
weights (docs/theory.md), nor for a fresh mask at every step (``PerStepDropout``), an ablation.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import PHASES
from dropout_grpo.exploration.held_noise import HeldNoise, require_names
from dropout_grpo.exploration.seeds import bernoulli
from dropout_grpo.exploration.sites import SITES, SiteMap


class SharedDropout:
    """One Bernoulli mask per rollout, held over every step of every phase that is on.

    Args:
        p: probability of a zero, 0 <= p < 1.
        sites: kinds of activations that the mask multiplies, from ``SITES``; ``residual`` means attention and MLP
            outputs.
        phases: one or more of ``prompt``, ``latent``, ``answer``. With ``prompt``, a group cannot share its prompt.

    Raises:
        UserError: p is out of range, or a site or phase is unknown or missing.
    """

    per_step = False

    def __init__(self, p: float, sites: Iterable[str] = ("residual",), phases: Iterable[str] = ("latent",)) -> None:
        if not 0.0 <= p < 1.0:
            raise UserError(f"exploration p={p!r} is outside [0, 1): p is the share of activations set to zero.")
        self.p = float(p)
        self.sites = require_names("site", sites, SITES)
        self.phases = frozenset(require_names("phase", phases, PHASES))

    def noise(self, seeds: Tensor, sites: SiteMap) -> HeldNoise | None:
        """The masks of ``seeds`` (int64 [B]) on the sites of a model; None if p is 0."""
        if self.p == 0.0:
            return None
        draw = partial(_masks, p=self.p, dtype=sites.dtype)
        return HeldNoise(seeds, sites, draw, sites=self.sites, phases=self.phases, per_step=self.per_step)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p}, sites={sorted(self.sites)}, phases={sorted(self.phases)})"


class PerStepDropout(SharedDropout):
    """The ablation: a fresh mask at every latent step, drawn from the seed with the step folded in."""

    per_step = True


def _masks(seeds: Tensor, streams: Tensor, *, p: float, dtype: torch.dtype) -> Tensor:
    """Factors [B, F], each 0 with probability ``p`` and 1/(1-p) otherwise."""
    return bernoulli(seeds, streams, p).logical_not_().to(dtype).mul_(1.0 / (1.0 - p))
