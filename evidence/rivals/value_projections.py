"""Finds the linear maps to the values in a model's attention, and changes their outputs during a forward pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SiteMap

_NAMES = ("v_proj", "c_attn", "qkv_proj", "query_key_value")

Change = Callable[[Tensor], Tensor]
"""The change of a value projection's output, as a function of its input: [B, L, I] -> [B, L, O]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueProjection:
    """The linear map to the values of one layer; it may be part of a wider one."""

    name: str
    module: nn.Linear | Conv1D
    columns: Tensor | None
    """Indices of the values among the module's outputs, int64, where the weight is; None if all outputs are values."""

    def placed(self) -> "ValueProjection":
        """The projection with its columns where the weight is now."""
        if self.columns is None or self.columns.device == self.module.weight.device:
            return self
        return replace(self, columns=self.columns.to(self.module.weight.device))

    def by_column(self, weight: Tensor) -> Tensor:
        """A tensor of the shape of the module's weight as [in, out], a view."""
        return weight if isinstance(self.module, Conv1D) else weight.T

    def weight(self) -> Tensor:
        """W_V [in, out], a view or a copy."""
        weight = self.by_column(self.module.weight)
        return weight if self.columns is None else weight[:, self.columns]


_KNOWN: WeakKeyDictionary[SiteMap, tuple[ValueProjection, ...]] = WeakKeyDictionary()


def value_projections(sites: SiteMap) -> tuple[ValueProjection, ...]:
    """The value projections of all layers of a model.

    Raises:
        UserError: a layer has none with a known name, or one with an adapter.
    """
    if sites not in _KNOWN:
        _KNOWN[sites] = tuple(_in_layer(i, layer, sites) for i, layer in enumerate(sites.layers))
    # The model may have moved. A copy at every use would make the host wait for the device.
    _KNOWN[sites] = tuple(projection.placed() for projection in _KNOWN[sites])
    return _KNOWN[sites]


def _in_layer(i: int, layer: nn.Module, sites: SiteMap) -> ValueProjection:
    named = ((path.rpartition(".")[2], module) for path, module in layer.named_modules())
    name, module = next(((name, module) for name, module in named if name in _NAMES), ("", None))
    if module is not None and not isinstance(module, nn.Linear | Conv1D):
        raise UserError(
            f"the value projection of layer {i} is a {type(module).__name__}, not a plain weight: merge the adapter "
            "first, or choose another exploration.kind."
        )
    columns = None if module is None else _columns(module, name, sites.heads, sites.key_heads)
    if module is None or columns is None:
        raise UserError(
            f"layer {i} ({type(layer).__name__}) has no value projection known by name and shape "
            f"({', '.join(_NAMES)}): choose another exploration.kind."
        )
    all_of_it = len(columns) == _width(module)
    return ValueProjection(name=f"layers.{i}.value_weight", module=module, columns=None if all_of_it else columns)


def _columns(projection: nn.Linear | Conv1D, name: str, heads: int, key_heads: int) -> Tensor | None:
    """Where a projection's values are, int64; None if its layout is unknown."""
    width = _width(projection)
    size, uneven = divmod(width, heads + 2 * key_heads)
    indices = torch.arange(width)
    if name == "v_proj":
        return indices
    if uneven:
        return None
    if name in ("c_attn", "qkv_proj"):  # queries, keys, values
        return indices[-key_heads * size :]
    if heads == key_heads:  # for every head its query, its key, its value (GPT-NeoX, BLOOM)
        return indices.view(heads, 3, size)[:, 2].flatten()
    return None


def _width(projection: nn.Linear | Conv1D) -> int:
    return int(projection.weight.shape[1 if isinstance(projection, Conv1D) else 0])


@contextmanager
def changed(sites: SiteMap, changes: Mapping[str, Change]) -> Iterator[None]:
    """Inside the block, add ``changes[name]`` of the input to the output of each value projection of a model."""
    handles = []
    try:
        for projection in value_projections(sites) if changes else ():
            hook = _hook(changes[projection.name], projection.columns)
            handles.append(projection.module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(change: Change, columns: Tensor | None) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        added = change(args[0]).to(output.dtype)
        return output + added if columns is None else output.index_add(-1, columns, added)

    return hook
