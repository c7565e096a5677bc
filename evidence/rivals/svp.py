"""SVP-V (github.com/jihwan1205/Singular-Value-Perturbation): noise on the singular values of the value projections.

With the thin SVD W_V = U diag(s) V^T, a rollout draws g ~ N(0, I) per layer, and

    y = x W_V + alpha ((x U) * (s * g)) V^T

    --exploration.kind evidence.rivals.svp:SVP --exploration.options '{alpha: 0.6, refresh: 50}'

``SVPOnlyValues`` trains W_V alone, as published.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dropout_grpo.exploration import SiteMap
from dropout_grpo.exploration.seeds import normal, stream
from evidence.rivals.only_values import only_values_trained, require_rest_unchanged
from evidence.rivals.value_weights import Copies, OnValueWeights, RowChange


class SVP(OnValueWeights):
    """Each singular value of every W_V is scaled by 1 + alpha g, with g ~ N(0, 1)."""

    def prepare(self, weight: Tensor) -> tuple[Tensor, ...]:
        """U [I, R], s [R] and V^T [R, O]."""
        u, s, vt = torch.linalg.svd(weight.to(torch.promote_types(weight.dtype, torch.float32)), full_matrices=False)
        return u.to(weight), s.to(weight), vt.to(weight)

    def changes(self, seeds: Tensor, copies: Copies) -> Mapping[str, RowChange]:
        """The change of each value projection's output."""
        changes = {}
        for name, (u, s, vt) in copies.prepared.items():
            code = normal(seeds, stream(name, len(s), seeds.device)).to(s)  # [B, R]
            changes[name] = _Scaled(left=u, scale=self.alpha * (s * code)[:, None], right=vt)
        return changes


class SVPOnlyValues(SVP):
    """SVP-V with W_V as the only trained weights."""

    @contextmanager
    def training(self, model: nn.Module, sites: SiteMap) -> Iterator[None]:
        """Train W_V only."""
        with super().training(model, sites), only_values_trained(model, sites) as self._rest:
            yield

    def begin_step(self, step: int, sites: SiteMap) -> None:
        """Also check that the queries and keys in W_V's matrix have not changed.

        Raises:
            UserError: they have.
        """
        require_rest_unchanged(self._rest, sites)
        super().begin_step(step, sites)


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
