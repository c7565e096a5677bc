"""Noise on the weights W_V of the value projections, held over a rollout: what ``svp.py`` and ``gaussian_v.py`` share.

Biases are not changed. No gradient flows through what the noise is computed from. During training that is a copy of
the weights, taken every ``refresh`` steps, so that a rollout is replayed exactly after an update. All processes of a
run use what rank 0 has computed: the signs of singular vectors are arbitrary, and another process may replay the
rollout. The random numbers are a function of the seed and are not stored. The published settings are phases prompt and
latent, alpha 0.6 and refresh 50. With the latent phase only, a group can share its prompt.

Shapes: B rows, L positions, I inputs and O outputs of a value projection, R = min(I, O).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dropout_grpo.distributed.processes import copy_from_main, size
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import FollowsTraining, SiteMap
from dropout_grpo.exploration.base import PHASES
from dropout_grpo.exploration.gaussian import at_least_zero
from dropout_grpo.exploration.held_noise import require_names
from evidence.rivals.value_projections import changed, value_projections


class RowChange(Protocol):
    """The change of one value projection's output for a batch of rollouts."""

    def __call__(self, x: Tensor) -> Tensor:
        """[B, L, I] -> [B, L, O]."""
        ...

    def select(self, rows: Tensor) -> "RowChange":
        """The change of some rows."""
        ...


class OnValueWeights(FollowsTraining):
    """Base class of both kinds.

    Args:
        alpha: strength, 0 or more; 0 means no noise.
        refresh: number of training steps between two refreshes, at least 1.
        phases: one or more of ``prompt``, ``latent``, ``answer``.

    Raises:
        UserError: an option is out of range, or a phase is unknown.
    """

    def __init__(self, alpha: float = 0.6, refresh: int = 50, phases: Iterable[str] = ("latent",)) -> None:
        self.alpha = at_least_zero("alpha", alpha)
        if not isinstance(refresh, int) or refresh < 1:
            raise UserError(f"exploration.options refresh={refresh!r}: it must be a number of steps, at least 1.")
        self.refresh, self.phases = refresh, frozenset(require_names("phase", phases, PHASES))
        self._copies: WeakKeyDictionary[SiteMap, Copies] = WeakKeyDictionary()

    @contextmanager
    def training(self, model: nn.Module, sites: SiteMap) -> Iterator[None]:
        """After training, the noise depends on the current weights."""
        try:
            yield
        finally:
            self._copies.pop(sites, None)

    def begin_step(self, step: int, sites: SiteMap) -> None:
        """Before training step ``step`` (counted from 1): copy the weights if a refresh is due."""
        copies = self._copies.get(sites)
        if copies is None or not copies.pinned or (step - 1) % self.refresh == 0:
            self._copies[sites] = self._copy(_value_weights(sites), pinned=True)

    def tensors(self, sites: SiteMap) -> dict[str, Tensor]:
        """The weights at the last refresh, for a checkpoint; empty outside training."""
        copies = self._copies.get(sites)
        return dict(copies.weights) if copies is not None and copies.pinned else {}

    def load(self, tensors: Mapping[str, Tensor], sites: SiteMap) -> None:
        """Continue from what ``tensors`` returned."""
        if tensors:
            like = _value_weights(sites)
            self._copies[sites] = self._copy({name: tensors[name].to(like[name]) for name in like}, pinned=True)

    def noise(self, seeds: Tensor, sites: SiteMap) -> "WeightNoise | None":
        """The noise of ``seeds`` (int64 [B]) on a model's value projections; None if alpha is 0."""
        if self.alpha == 0.0:
            return None
        copies, version = self._copies.get(sites), _version(sites)
        if copies is None or not (copies.pinned or copies.version == version):
            copies = replace(self._copy(_value_weights(sites), pinned=False), version=version)
            self._copies[sites] = copies
        return WeightNoise(self.changes(seeds, copies), self.phases)

    def _copy(self, weights: dict[str, Tensor], *, pinned: bool) -> "Copies":
        prepared = {name: self.prepare(weight) for name, weight in weights.items()}
        if pinned:  # in training, where all processes come here together
            _as_on_main([tensor for tensors in prepared.values() for tensor in tensors])
        return Copies(weights=weights, prepared=prepared, pinned=pinned)

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The quantities that the noise needs from a W_V [I, O]."""
        raise NotImplementedError

    def changes(self, seeds: Tensor, copies: "Copies") -> Mapping[str, RowChange]:
        """The change of each value projection's output, by name, for ``seeds`` (int64 [B])."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Copies of all W_V by name, [I, O] each, and the quantities computed from them."""

    weights: dict[str, Tensor]
    prepared: dict[str, tuple[Tensor, ...]]
    pinned: bool
    """True if they stay until the next refresh even when the weights change."""
    version: tuple[tuple[int, int], ...] = ()


class WeightNoise:
    """Changes of value projections for a batch of rollouts, the same in every phase that is on."""

    def __init__(self, changes: Mapping[str, RowChange], phases: frozenset[str]) -> None:
        self.changes, self._phases = changes, phases

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """Empty, since no activation is multiplied."""
        return {}

    def hooks(self, sites: SiteMap, phase: str, step: int) -> AbstractContextManager[None]:
        """Change the outputs of the value projections of the model that runs; no change in a phase that is off."""
        return changed(sites, self.changes if phase in self._phases else {})

    def select(self, rows: Tensor) -> "WeightNoise":
        """The changes of some rows."""
        return WeightNoise({name: change.select(rows) for name, change in self.changes.items()}, self._phases)


def _as_on_main(tensors: Sequence[Tensor]) -> None:
    if size() == 1:
        return
    main = [tensor.contiguous() for tensor in tensors]  # LAPACK's U is not, and keeps its layout and so its products
    copy_from_main(main)
    for tensor, of_main in zip(tensors, main, strict=True):
        tensor.copy_(of_main)


def _value_weights(sites: SiteMap) -> dict[str, Tensor]:
    """Copies of all W_V, [I, O] each, by the names of their projections."""
    weights = {projection.name: projection.weight().detach() for projection in value_projections(sites)}
    return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}


def _version(sites: SiteMap) -> tuple[tuple[int, int], ...]:
    """A key that changes whenever a W_V changes."""
    weights = [projection.module.weight for projection in value_projections(sites)]
    return tuple((weight.data_ptr(), weight._version) for weight in weights)
