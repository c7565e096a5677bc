"""Noise on the weights W_V of the value projections, held over a rollout: two published rivals of dropout.

``SingularValueNoise`` is SVP-V (github.com/jihwan1205/Singular-Value-Perturbation): with the thin SVD
W_V = U diag(s) V^T, a rollout draws g ~ N(0, I) per layer, and

    y = x W_V + alpha ((x U) * (s * g)) V^T

``ValueWeightNoise`` is its control, Gaussian noise on the entries: y = x (W_V + sigma E). Its scale is not published;
here sigma = alpha ||W_V||_F / sqrt(in * out), which gives the noise the same expected squared Frobenius norm.

Biases are left alone. U, s, V and sigma are constants of the gradient. While training they are those of the weights at
the last refresh, every ``refresh`` steps, so that a rollout is replayed exactly after an update. What is drawn is a
function of the seed and is never stored. Published: phases prompt and latent, alpha 0.6, refresh 50. In the latent
phase alone, a group shares its prompt.

Shapes: B rows, L positions, I inputs and O outputs of a value projection, R = min(I, O).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import PHASES
from dropout_grpo.exploration.gaussian import at_least_zero
from dropout_grpo.exploration.held import checked
from dropout_grpo.exploration.seeds import normal, stream
from dropout_grpo.exploration.sites import SiteMap

MOST_HELD = 2**26
"""Numbers. Noise of all entries of W_V is held for a batch up to this size; above it, it is drawn anew at each use."""

Change = Callable[[Tensor], Tensor]
"""What is added to a value projection's output: its input [B, L, I] -> [B, L, O]."""


class _OnValueWeights:
    """What both kinds have in common.

    Args:
        alpha: strength, 0 or more; 0 is no noise.
        refresh: training steps between two looks at the weights, at least 1.
        phases: of ``prompt``, ``latent``, ``answer``.

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
        """Before training step ``step`` (from 1): look at the weights if it is time, and keep them for replays."""
        kept = self._kept.get(sites)
        if kept is None or not kept.pinned or (step - 1) % self.refresh == 0:
            self._kept[sites] = self._keep(_value_weights(sites), pinned=True)

    def end_training(self, sites: SiteMap) -> None:
        """From here on the noise is that of the weights as they are."""
        self._kept.pop(sites, None)

    def tensors(self, sites: SiteMap) -> dict[str, Tensor]:
        """The weights at the last refresh, for a checkpoint; empty outside of training."""
        kept = self._kept.get(sites)
        return dict(kept.weights) if kept is not None and kept.pinned else {}

    def load(self, tensors: Mapping[str, Tensor], sites: SiteMap) -> None:
        """Continue from what ``tensors`` returned."""
        if tensors:
            like = _value_weights(sites)
            self._kept[sites] = self._keep({name: tensors[name].to(like[name]) for name in like}, pinned=True)

    def noise(self, seeds: Tensor, sites: SiteMap) -> "WeightNoise | None":
        """The noise of ``seeds`` (int64 [B]) on a model's value projections; None at alpha = 0."""
        if self.alpha == 0.0:
            return None
        kept, version = self._kept.get(sites), _version(sites)
        if kept is None or not (kept.pinned or kept.version == version):
            kept = replace(self._keep(_value_weights(sites), pinned=False), version=version)
            self._kept[sites] = kept
        return self._drawn(seeds, kept)

    def _keep(self, weights: dict[str, Tensor], *, pinned: bool) -> "_Kept":
        return _Kept(weights=weights, prepared={n: self._prepare(w) for n, w in weights.items()}, pinned=pinned)

    def _prepare(self, weight: Tensor) -> Any:
        """What the noise needs of a W_V [I, O]."""
        raise NotImplementedError

    def _drawn(self, seeds: Tensor, kept: "_Kept") -> "WeightNoise":
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Copies of all W_V by name, [I, O] each, and what was computed from them."""

    weights: dict[str, Tensor]
    prepared: dict[str, Any]
    pinned: bool
    """Kept until the next refresh, though the weights change."""
    version: tuple[tuple[int, int], ...] = ()


class SingularValueNoise(_OnValueWeights):
    """SVP-V: singular values of every W_V are scaled by 1 + alpha g, with g ~ N(0, 1) for each."""

    def _prepare(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vt = torch.linalg.svd(weight.to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False)
        return u.to(weight), s.to(weight), vt.to(weight)

    def _drawn(self, seeds: Tensor, kept: _Kept) -> "WeightNoise":
        changes = {}
        for name, (u, s, vt) in kept.prepared.items():
            code = normal(seeds, stream(name, len(s), seeds.device)).to(s)  # [B, R]
            changes[name] = _Scaled(left=u, scale=self.alpha * (s * code)[:, None], right=vt)
        return WeightNoise(changes, self.phases)


class ValueWeightNoise(_OnValueWeights):
    """Gaussian-V: sigma E is added to every W_V, with E ~ N(0, 1) for each entry."""

    def _prepare(self, weight: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(weight) / weight.numel() ** 0.5  # sigma / alpha

    def _drawn(self, seeds: Tensor, kept: _Kept) -> "WeightNoise":
        entries = len(seeds) * sum(weight.numel() for weight in kept.weights.values())
        changes = {
            name: _Added(name=name, seeds=seeds, weight=weight, sigma=self.alpha * kept.prepared[name])
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
        """Nothing is multiplied."""
        return {}

    def weight_changes(self, phase: str, step: int) -> Mapping[str, Change]:
        """What is added to the outputs of value projections, by their names; empty in a phase that is off."""
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
    """x -> x (sigma E), with an E [I, O] for each row."""

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
        counters = stream(self.name, self.weight.numel(), self.seeds.device)
        drawn = normal(self.seeds[begin:end], counters).to(self.weight)
        return drawn.view(-1, *self.weight.shape) * self.sigma

    def select(self, rows: Tensor) -> "_Added":
        return replace(self, seeds=self.seeds[rows], held=None if self.held is None else self.held[rows])


class _TimesDrawn(torch.autograd.Function):
    """x @ matrices, some rows at a time; the matrices are drawn again for the gradient instead of being kept."""

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


def _value_weights(sites: SiteMap) -> dict[str, Tensor]:
    """Copies of all W_V, [I, O] each, by the names of their projections."""
    weights = {projection.name: projection.weight().detach() for projection in sites.value_projections()}
    return {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}


def _version(sites: SiteMap) -> tuple[tuple[int, int], ...]:
    """Changes whenever a W_V does."""
    weights = [projection.module.weight for projection in sites.value_projections()]
    return tuple((weight.data_ptr(), weight._version) for weight in weights if isinstance(weight, Tensor))
