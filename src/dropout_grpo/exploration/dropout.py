"""Dropout as exploration: one Bernoulli mask a rollout, held over all latent steps and replayed in the update.

A mask has the shape [rollout, 1, features] and the values 0 and 1/(1-p): the same for every position and latent step of
a rollout. Multiplying a layer's output features by it equals masking the columns of that layer's weight matrix, so a
rollout under its mask is a rollout under one sample of the weights (Gal and Ghahramani 2016; the paper, section on the
variational posterior). A fresh mask at every step (``PerStepDropout``) has no such reading; it is the ablation.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from dropout_grpo.errors import UserError, nearest
from dropout_grpo.exploration.base import PHASES
from dropout_grpo.exploration.seeds import bernoulli, fold, stream
from dropout_grpo.exploration.sites import SITES, Site, SiteMap


class SharedDropout:
    """One Bernoulli mask per rollout, held over every step of every phase that is on.

    Args:
        p: probability of a zero, 0 <= p < 1.
        sites: kinds of activations the mask multiplies, of ``SITES``; ``residual`` is attention and mlp outputs.
        phases: of ``prompt``, ``latent``, ``answer``. ``prompt`` forfeits the sharing of a group's prompt.

    Raises:
        UserError: p out of range, an unknown or no site, an unknown or no phase.
    """

    per_step = False

    def __init__(self, p: float, sites: Iterable[str] = ("residual",), phases: Iterable[str] = ("latent",)) -> None:
        if not 0.0 <= p < 1.0:
            raise UserError(f"exploration p={p!r} is outside [0, 1): p is the share of activations set to zero.")
        self.p = float(p)
        self.sites = _known("site", sites, SITES)
        self.phases = frozenset(_known("phase", phases, PHASES))

    def noise(self, seeds: Tensor, sites: SiteMap) -> "DropoutNoise | None":
        """The masks of ``seeds`` (int64 [B]) on the sites of a model; None at p = 0, which is no noise."""
        if self.p == 0.0:
            return None
        instances = sites.instances(self.sites)
        return DropoutNoise(seeds, instances, self.p, self.phases, sites.dtype, per_step=self.per_step)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p}, sites={sorted(self.sites)}, phases={sorted(self.phases)})"


class PerStepDropout(SharedDropout):
    """The ablation: a fresh mask at every latent step, the step folded into the seed."""

    per_step = True


class DropoutNoise:
    """The masks of a batch of rollouts. Drawn once for all sites together and cut into views."""

    def __init__(
        self,
        seeds: Tensor,
        instances: tuple[Site, ...],
        p: float,
        phases: frozenset[str],
        dtype: torch.dtype,
        *,
        per_step: bool,
    ) -> None:
        self._seeds, self._instances, self._p = seeds, instances, p
        self._phases, self._dtype, self._per_step = phases, dtype, per_step
        self._held: dict[str, Tensor] | None = None

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """Masks by site name, each [B, 1, F] with values 0 and 1/(1-p); empty in a phase that is off."""
        if phase not in self._phases:
            return {}
        if self._per_step and phase == "latent":
            return self._draw(fold(self._seeds, step + 1))
        if self._held is None:
            self._held = self._draw(self._seeds)
        return self._held

    def select(self, rows: Tensor) -> "DropoutNoise":
        """The masks of some rows, cut from those drawn rather than drawn again."""
        chosen = DropoutNoise(
            self._seeds[rows], self._instances, self._p, self._phases, self._dtype, per_step=self._per_step
        )
        if self._held is not None:
            chosen._held = {name: mask[rows] for name, mask in self._held.items()}
        return chosen

    def _draw(self, seeds: Tensor) -> dict[str, Tensor]:
        streams = _streams(tuple((site.name, site.count) for site in self._instances), seeds.device)
        scale = 1.0 / (1.0 - self._p)
        masks = bernoulli(seeds, streams, self._p).logical_not_().to(self._dtype).mul_(scale)  # [B, sum of counts]
        parts = masks[:, None, :].split([site.count for site in self._instances], dim=-1)
        return {
            site.name: part.repeat_interleave(site.repeat, dim=-1) if site.repeat > 1 else part
            for site, part in zip(self._instances, parts, strict=True)
        }


@lru_cache(maxsize=16)
def _streams(sites: tuple[tuple[str, int], ...], device: torch.device) -> Tensor:
    """Counters of all sites side by side, int64 [sum of counts]: the same for every batch of masks."""
    return torch.cat([stream(name, count, device) for name, count in sites])


def _known(what: str, given: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    if not names:
        raise UserError(f"exploration has no {what}: name at least one of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise UserError(
                f"exploration {what} {name!r} is unknown{nearest(name, known)}; known are {', '.join(known)}."
            )
    return names
