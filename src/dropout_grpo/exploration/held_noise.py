"""Noise that multiplies activations and is held: one draw per rollout, the same at every position and latent step."""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from dropout_grpo.errors import UserError, nearest
from dropout_grpo.exploration.base import PHASES
from dropout_grpo.exploration.seeds import fold, stream
from dropout_grpo.exploration.sites import ATTENTION_WEIGHTS, SITES, SiteMap

Draw = Callable[[Tensor, Tensor], Tensor]
"""(seeds [B], counters [F]) -> factors [B, F], a pure function of both; see ``seeds.py``."""

_PIECE = 2**25
"""Random numbers that are drawn at once."""

_KEYS = 32
"""Factors of keys are drawn for a multiple of this many positions, so that few draws are needed as an answer grows."""


def require_names(what: str, chosen: Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Check that there is at least one name and that all are known, and return the names.

    Raises:
        UserError: gives the unknown name.
    """
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if not names:
        raise UserError(f"exploration has no {what}: name at least one of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise UserError(
                f"exploration {what} {name!r} is unknown{nearest(name, known)}; known are {', '.join(known)}."
            )
    return names


class HeldNoise:
    """The factors of a batch of rollouts, drawn when they are first used.

    Args:
        seeds: int64 [B], one per rollout.
        site_map: the model's sites.
        draw: a function that draws the factors.
        sites: kinds of activations, from ``SITES``.
        phases: phases in which the noise is on, from ``PHASES``.
        per_step: draw new factors at every latent step, from the seed with the step folded in.

    Raises:
        UserError: a site or phase is unknown, or the model lacks the site.
    """

    def __init__(
        self,
        seeds: Tensor,
        site_map: SiteMap,
        draw: Draw,
        *,
        sites: Iterable[str],
        phases: Iterable[str],
        per_step: bool = False,
    ) -> None:
        instances = site_map.instances(require_names("site", sites, SITES))
        self._seeds, self._draw, self._per_step = seeds, draw, per_step
        self._phases, self._dtype = frozenset(require_names("phase", phases, PHASES)), site_map.dtype
        self._sites = tuple(site for site in instances if site.kind != ATTENTION_WEIGHTS)
        self._keys = tuple(site for site in instances if site.kind == ATTENTION_WEIGHTS)
        self._held: dict[str, Tensor] | None = None
        self._held_keys: dict[str, Tensor] = {}  # by site, [B, H, positions]
        self._aligned: tuple[Tensor, dict[str, Tensor]] | None = None

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """Factors by site name, each [B, 1, F]; empty in a phase that is off."""
        if phase not in self._phases or not self._sites:
            return {}
        if self._per_step and phase == "latent":
            return self._drawn(fold(self._seeds, step + 1))
        if self._held is None:
            self._held = self._drawn(self._seeds)
        return self._held

    @property
    def masks_keys(self) -> bool:
        """Whether attention weights are among the sites."""
        return bool(self._keys)

    def key_factors(self, phase: str, step: int, positions: Tensor) -> Mapping[str, Tensor]:
        """Factors of attention weights by site name, each [B, H, T], of the keys at ``positions`` (int64 [B, T]).

        A key's factor depends on its position and not on T, so neither padding nor other rows change it. Positions must
        be below T, as they are in left-padded rows.
        """
        if phase not in self._phases or not self._keys:
            return {}
        if self._per_step and phase == "latent":
            return _at(self._drawn_keys(fold(self._seeds, step + 1), positions.shape[1]), positions)
        if self._aligned is None or self._aligned[0] is not positions:
            drawn = next(iter(self._held_keys.values())).shape[-1] if self._held_keys else 0
            if drawn < positions.shape[1]:
                self._held_keys = self._drawn_keys(self._seeds, positions.shape[1])
            self._aligned = (positions, _at(self._held_keys, positions))
        return self._aligned[1]

    def select(self, rows: Tensor) -> "HeldNoise":
        """The noise of some rows. Factors that have been drawn are selected, not drawn again."""
        chosen = copy.copy(self)
        chosen._seeds, chosen._aligned = self._seeds[rows], None
        if self._held is not None:
            chosen._held = {name: factor[rows] for name, factor in self._held.items()}
        chosen._held_keys = {name: factor[rows] for name, factor in self._held_keys.items()}
        return chosen

    def _in_pieces(self, seeds: Tensor, streams: Tensor) -> Tensor:
        """Factors [B, F] of seeds [B] and streams [F]. A random number has 64 bits until it is a factor."""
        size = max(1, _PIECE // max(1, len(seeds)))
        parts = [self._draw(seeds, part).to(self._dtype) for part in streams.split(size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _drawn(self, seeds: Tensor) -> dict[str, Tensor]:
        streams = _streams(tuple((site.name, site.count) for site in self._sites), seeds.device)
        drawn = self._in_pieces(seeds, streams)[:, None]  # [B, 1, sum of counts]
        parts = drawn.split([site.count for site in self._sites], dim=-1)
        return {site.name: site.spread(part) for site, part in zip(self._sites, parts, strict=True)}

    def _drawn_keys(self, seeds: Tensor, positions: int) -> dict[str, Tensor]:
        """Factors of positions 0 to ``positions`` - 1 or more; (position, head) has the counter position * H + head."""
        positions += -positions % _KEYS
        streams = _streams(tuple((site.name, site.count * positions) for site in self._keys), seeds.device)
        drawn = self._in_pieces(seeds, streams)  # [B, sum of H * positions]
        parts = drawn.split([site.count * positions for site in self._keys], dim=-1)
        return {
            site.name: part.view(len(seeds), positions, site.count).transpose(1, 2)
            for site, part in zip(self._keys, parts, strict=True)
        }


def _at(drawn: Mapping[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    """Factors by position [B, H, P] -> factors by key [B, H, T]."""
    index = positions.clamp(min=0)[:, None]  # padding has positions below 0 and attention weights of 0
    return {name: factor.gather(-1, index.expand(-1, factor.shape[1], -1)) for name, factor in drawn.items()}


@lru_cache(maxsize=16)
def _streams(sites: tuple[tuple[str, int], ...], device: torch.device) -> Tensor:
    """Counters of all sites, concatenated, int64 [sum of counts]: the same for every batch."""
    return torch.cat([stream(name, count, device) for name, count in sites])
