"""Noise on the weights W_V of the value projections, held over a rollout: two published alternatives to dropout.

``SingularValueNoise`` is SVP-V (github.com/jihwan1205/Singular-Value-Perturbation): with the thin SVD
W_V = U diag(s) V^T, a rollout draws g ~ N(0, I) per layer, and

    y = x W_V + alpha ((x U) * (s * g)) V^T

``ValueWeightNoise`` is its control, Gaussian noise on the entries: y = x (W_V + sigma E). Its scale is not published;
here sigma = alpha ||W_V||_F / sqrt(in * out), which gives the noise the same expected squared Frobenius norm.

Biases are not changed. No gradient flows through U, s, V and sigma. During training they are computed from the weights
every ``refresh`` steps and kept in between, so that a rollout is replayed exactly after an update. All processes of a
run use those of rank 0: the signs of U and V are arbitrary, and another process may replay the rollout. The random
numbers are a function of the seed and are not stored. The published settings are phases prompt and latent, alpha 0.6
and refresh 50. With the latent phase only, a group can share its prompt.

Shapes: B rows, L positions, I inputs and O outputs of a value projection, R = min(I, O).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dropout_grpo.distributed.processes import copy_from_main, size
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import PHASES
from dropout_grpo.exploration.gaussian import at_least_zero
from dropout_grpo.exploration.held_noise import checked
from dropout_grpo.exploration.seeds import normal, normal_matrix, stream
from dropout_grpo.exploration.sites import SiteMap

MOST_HELD = 2**26
"""Number of entries. The noise E of a batch is kept in memory up to this size; above it, it is drawn at each use."""

Change = Callable[[Tensor], Tensor]
"""The change of a value projection's output, as a function of its input: [B, L, I] -> [B, L, O]."""


class _OnValueWeights:
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
        self.refresh, self.phases = refresh, frozenset(checked("phase", phases, PHASES))
        self._kept: WeakKeyDictionary[SiteMap, _Kept] = WeakKeyDictionary()

    def begin_step(self, step: int, sites: SiteMap) -> None:
        """Before training step ``step`` (counted from 1): copy the weights if a refresh is due."""
        kept = self._kept.get(sites)
        if kept is None or not kept.pinned or (step - 1) % self.refresh == 0:
            self._kept[sites] = self._keep(_value_weights(sites), pinned=True)

    def end_training(self, sites: SiteMap) -> None:
        """After training, the noise depends on the current weights."""
        self._kept.pop(sites, None)

    def tensors(self, sites: SiteMap) -> dict[str, Tensor]:
        """The weights at the last refresh, for a checkpoint; empty outside training."""
        kept = self._kept.get(sites)
        return dict(kept.weights) if kept is not None and kept.pinned else {}

    def load(self, tensors: Mapping[str, Tensor], sites: SiteMap) -> None:
        """Continue from what ``tensors`` returned."""
        if tensors:
            like = _value_weights(sites)
            self._kept[sites] = self._keep({name: tensors[name].to(like[name]) for name in like}, pinned=True)

    def noise(self, seeds: Tensor, sites: SiteMap) -> "WeightNoise | None":
        """The noise of ``seeds`` (int64 [B]) on a model's value projections; None if alpha is 0."""
        if self.alpha == 0.0:
            return None
        kept, version = self._kept.get(sites), _version(sites)
        if kept is None or not (kept.pinned or kept.version == version):
            kept = replace(self._keep(_value_weights(sites), pinned=False), version=version)
            self._kept[sites] = kept
        return self._drawn(seeds, kept)

    def _keep(self, weights: dict[str, Tensor], *, pinned: bool) -> "_Kept":
        prepared = {name: self._prepare(weight) for name, weight in weights.items()}
        if pinned:  # in training, where all processes come here together
            _as_on_main([tensor for tensors in prepared.values() for tensor in tensors])
        return _Kept(weights=weights, prepared=prepared, pinned=pinned)

    def _prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The quantities that the noise needs from a W_V [I, O]."""
        raise NotImplementedError

    def _drawn(self, seeds: Tensor, kept: "_Kept") -> "WeightNoise":
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Copies of all W_V by name, [I, O] each, and the quantities computed from them."""

    weights: dict[str, Tensor]
    prepared: dict[str, tuple[Tensor, ...]]
    pinned: bool
    """True if they are kept until the next refresh even when the weights change."""
    version: tuple[tuple[int, int], ...] = ()


class SingularValueNoise(_OnValueWeights):
    """SVP-V: each singular value of every W_V is scaled by 1 + alpha g, with g ~ N(0, 1)."""

    def _prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        u, s, vt = torch.linalg.svd(weight.to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False)
        return u.to(weight), s.to(weight), vt.to(weight)

    def _drawn(self, seeds: Tensor, kept: _Kept) -> "WeightNoise":
        changes = {}
        for name, (u, s, vt) in kept.prepared.items():
            code = normal(seeds, stream(name, len(s), seeds.device)).to(s)  # [B, R]
            changes[name] = _Scaled(left=u, scale=self.alpha * (s * code)[:, None], right=vt)
        return WeightNoise(changes, self.phases)


class ValueWeightNoise(_OnValueWeights):
    """Gaussian-V: sigma E is added to every W_V; the entries of E are N(0, 1)."""

    def _prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (torch.linalg.matrix_norm(weight) / weight.numel() ** 0.5,)  # sigma / alpha

    def _drawn(self, seeds: Tensor, kept: _Kept) -> "WeightNoise":
        entries = len(seeds) * sum(weight.numel() for weight in kept.weights.values())
        changes = {
            name: _Added(name=name, seeds=seeds, weight=weight, sigma=self.alpha * kept.prepared[name][0])
            for name, weight in kept.weights.items()
        }
        if entries <= MOST_HELD:
            for change in changes.values():
                change.held = change.matrices(0, len(seeds))
        return WeightNoise(changes, self.phases)


class WeightNoise:
    """Changes of value projections for a batch of rollouts, the same in every phase that is on."""

    def __init__(self, changes: Mapping[str, "_Scaled | _Added"], phases: frozenset[str]) -> None:
        self._changes, self._phases = changes, phases

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """Empty, since no activation is multiplied."""
        return {}

    def weight_changes(self, phase: str, step: int) -> Mapping[str, Change]:
        """The changes of value projections' outputs by name; empty in a phase that is off."""
        return self._changes if phase in self._phases else {}

    def select(self, rows: Tensor) -> "WeightNoise":
        """The changes of some rows."""
        return WeightNoise({name: change.select(rows) for name, change in self._changes.items()}, self._phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaled:
    """x -> ((x left) * scale) right."""

    left: Tensor  # [I, R]
    scale: Tensor  # [B, 1, R]
    right: Tensor  # [R, O]

    def __call__(self, x: Tensor) -> Tensor:
        return ((x @ self.left) * self.scale) @ self.right

    def select(self, rows: Tensor) -> "_Scaled":
        return replace(self, scale=self.scale[rows])


@dataclass(slots=True, kw_only=True)
class _Added:
    """x -> x (sigma E), with one E [I, O] per row."""

    name: str
    seeds: Tensor  # int64 [B]
    weight: Tensor  # [I, O], for its shape and dtype
    sigma: Tensor  # []
    held: Tensor | None = None  # [B, I, O]

    def __call__(self, x: Tensor) -> Tensor:
        if self.held is not None:
            return x @ self.held
        rows = max(1, MOST_HELD // self.weight.numel())
        added: Tensor = _TimesDrawn.apply(x, self.matrices, rows)
        return added

    def matrices(self, begin: int, end: int) -> Tensor:
        """sigma E of the rows ``begin`` to ``end`` - 1, [end - begin, I, O]."""
        drawn = normal_matrix(self.seeds[begin:end], self.name, self.weight.numel(), self.weight.dtype)
        return drawn.view(-1, *self.weight.shape) * self.sigma

    def select(self, rows: Tensor) -> "_Added":
        return replace(self, seeds=self.seeds[rows], held=None if self.held is None else self.held[rows])


class _TimesDrawn(torch.autograd.Function):
    """x @ matrices, some rows at a time. The matrices are not kept for the backward pass but drawn again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrices: Callable[[int, int], Tensor], rows: int) -> Tensor:
        ctx.matrices, ctx.rows = matrices, rows
        return _times(x, matrices, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _times(gradient, lambda begin, end: ctx.matrices(begin, end).transpose(1, 2), ctx.rows), None, None


def _times(x: Tensor, matrices: Callable[[int, int], Tensor], rows: int) -> Tensor:
    begins = range(0, len(x), rows)
    parts = [x[b : b + rows] @ matrices(b, min(b + rows, len(x))).to(x.dtype) for b in begins]
    return torch.cat(parts)


def _as_on_main(tensors: Sequence[Tensor]) -> None:
    if size() == 1:
        return
    main = [tensor.contiguous() for tensor in tensors]  # LAPACK's U is not, and keeps its layout and so its products
    copy_from_main(main)
    for tensor, of_main in zip(tensors, main, strict=True):
        tensor.copy_(of_main)


def _value_weights(sites: SiteMap) -> dict[str, Tensor]:
    """Copies of all W_V, [I, O] each, by the names of their projections."""
    weights = {projection.name: projection.weight().detach() for projection in sites.value_projections()}
    return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}


def _version(sites: SiteMap) -> tuple[tuple[int, int], ...]:
    """A key that changes whenever a W_V changes."""
    weights = [projection.module.weight for projection in sites.value_projections()]
    return tuple((weight.data_ptr(), weight._version) for weight in weights if isinstance(weight, Tensor))
