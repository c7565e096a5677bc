"""Finds a model's sites, whatever its architecture, and multiplies the activations there for one forward pass.

Every decoder layer ends its two halves in a linear map back to the residual stream: the attention's output projection
and the MLP's last projection. Their outputs are ``attention`` and ``mlp`` (together ``residual``: where GPT-2 has its
native dropout), their inputs ``heads`` (one factor per head) and ``mlp_hidden``. So two modules per layer are enough,
and they exist in models that have no ``nn.Dropout`` at all (Llama, Qwen). A mixture of experts has no single last
projection: its ``mlp`` site is the output of the whole block, and it has no ``mlp_hidden``. A norm that follows a
projection (Gemma 2 and 3) comes after the mask, which stays a mask of the weight matrix's rows.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dropout_grpo.errors import UserError

SITES = ("residual", "attention", "mlp", "mlp_hidden", "heads", "thought")
THOUGHT = "thought"

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_ATTENTION_OUT = ("c_proj", "o_proj", "out_proj", "dense", "wo")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_EXPERTS = ("experts", "router", "gate")  # parts of a mixture of experts
_MLP_OUT = ("c_proj", "down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "proj_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place in one layer: ``count`` independent factors, each repeated over ``repeat`` adjacent features."""

    name: str
    kind: str
    count: int
    repeat: int = 1
    module: nn.Module | None = None
    """The module whose output (attention, mlp) or input (heads, mlp_hidden) is multiplied; None for thought."""
    path: str = ""
    """The module's name inside the decoder."""


class SiteMap:
    """All sites of one model.

    Args:
        decoder: the transformer without its language-model head.
        width: D, of what is fed back: the embeddings' width.
        heads: number of query heads.

    Raises:
        UserError: no list of decoder layers, no heads, or a layer without modules known by name; the message
            lists what modules there are.
    """

    def __init__(self, decoder: nn.Module, width: int, heads: int) -> None:
        self._decoder = decoder
        self._all: list[Site] = [Site(name=THOUGHT, kind=THOUGHT, count=width)]
        layers = _layers(decoder)
        if heads < 1:
            raise UserError(
                f"the config of {type(decoder).__name__} has no num_attention_heads: its heads are unknown."
            )
        paths = {module: path for path, module in decoder.named_modules()}
        for i, layer in enumerate(layers):
            out = _projection(layer, _ATTENTION, _ATTENTION_OUT)
            if out is None:
                raise _unknown(layer, i, "attention", _ATTENTION_OUT)
            inner, attended = _widths(out)
            places = [("attention", attended, 1, out), ("heads", heads, inner // heads, out)]
            down = _projection(layer, _MLP, _MLP_OUT)
            if down is not None:
                hidden, moved = _widths(down)
                places += [("mlp", moved, 1, down), ("mlp_hidden", hidden, 1, down)]
            elif (block := _block(layer)) is not None:  # a mixture of experts: the whole block writes to the residual
                places.append(("mlp", attended, 1, block))
            else:
                raise _unknown(layer, i, "MLP", _MLP_OUT)
            self._all += [
                Site(name=f"layers.{i}.{kind}", kind=kind, count=n, repeat=repeat, module=module, path=paths[module])
                for kind, n, repeat, module in places
            ]
        self._by_name = {site.name: site for site in self._all}

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights, which masks take too."""
        return next(self._decoder.parameters()).dtype

    def instances(self, kinds: tuple[str, ...]) -> tuple[Site, ...]:
        """The sites of some kinds, each once, however the kinds overlap.

        Raises:
            UserError: the model has no site of one of the kinds.
        """
        if lacking := [kind for kind in kinds if kind in self.lacking]:
            raise UserError(
                f"exploration site {lacking[0]!r}: {type(self._decoder).__name__} has no such site, because its MLP is "
                f"a mixture of experts. It has {', '.join(kind for kind in SITES if kind not in self.lacking)}."
            )
        wanted = set(kinds) | ({"attention", "mlp"} if "residual" in kinds else set())
        return tuple(site for site in self._all if site.kind in wanted)

    @property
    def lacking(self) -> tuple[str, ...]:
        """Kinds of sites that no layer of the model has."""
        found = {site.kind for site in self._all} | {"residual"}
        return tuple(kind for kind in SITES if kind not in found)

    @contextmanager
    def multiplied(self, factors: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiply the named activations by ``factors`` ([B, 1, F] each) in the forward passes inside the block.

        The hooks live exactly as long as the block, so noise is never left switched on.
        """
        handles = []
        try:
            for name, factor in factors.items():
                site = self._by_name[name]
                if site.module is None:
                    continue  # the thought is multiplied by the model itself, before it is fed back
                if site.kind in ("heads", "mlp_hidden"):
                    handles.append(site.module.register_forward_pre_hook(_input_hook(factor)))
                else:
                    handles.append(site.module.register_forward_hook(_output_hook(factor)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _output_hook(factor: Tensor) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # a mixture of experts may return its router's logits as well
            return (_times(output[0], factor), *output[1:])
        return _times(output, factor)

    return hook


def _input_hook(factor: Tensor) -> Any:
    return lambda module, args: (_times(args[0], factor), *args[1:])


def _times(activation: Tensor, factor: Tensor) -> Tensor:
    """[B, L, F] times [B, 1, F]; OPT runs its MLP on [B * L, F]."""
    if activation.ndim == 2:
        return (activation.view(factor.shape[0], -1, factor.shape[-1]) * factor).view_as(activation)
    return activation * factor


def _layers(decoder: nn.Module) -> nn.ModuleList:
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and _is_layer(m)]
    if len(lists) != 1:
        raise UserError(
            f"found {len(lists)} lists of decoder layers in {type(decoder).__name__}, need exactly one: its children "
            f"are {', '.join(name for name, _ in decoder.named_children())}. Only decoder-only models are supported."
        )
    return lists[0]


def _is_layer(modules: nn.ModuleList) -> bool:
    return len(modules) > 0 and any(hasattr(modules[0], name) for name in _ATTENTION)


def _projection(layer: nn.Module, parents: tuple[str, ...], names: tuple[str, ...]) -> nn.Module | None:
    """The projection that ends one half of a layer, found by name."""
    holders = [child for name in parents if isinstance(child := getattr(layer, name, None), nn.Module)]
    nested = [child for h in holders for name in parents if isinstance(child := getattr(h, name, None), nn.Module)]
    # GPT-Neo nests its attention once more; OPT keeps its MLP's projections in the layer itself.
    for holder in [*holders, *nested, layer]:
        for name in names:
            if isinstance(child := getattr(holder, name, None), nn.Module):
                return child
    return None


def _block(layer: nn.Module) -> nn.Module | None:
    """The MLP block of a layer if it is a mixture of experts."""
    blocks = [child for name in _MLP if isinstance(child := getattr(layer, name, None), nn.Module)]
    return next((block for block in blocks if any(hasattr(block, part) for part in _EXPERTS)), None)


def _unknown(layer: nn.Module, i: int, what: str, names: tuple[str, ...]) -> UserError:
    inside = ", ".join(name for name, _ in layer.named_modules() if name)
    return UserError(
        f"layer {i} ({type(layer).__name__}) has no {what} output projection known by name ({', '.join(names)}); "
        f"its modules are {inside}. Add the name to exploration/sites.py."
    )


def _widths(projection: nn.Module) -> tuple[int, int]:
    """Features in and out of a projection: nn.Linear and PEFT's wrappers say so, GPT-2's Conv1D keeps [in, out]."""
    if isinstance(features := getattr(projection, "in_features", None), int):
        assert isinstance(projection.out_features, int)
        return features, projection.out_features
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UserError(
            f"{type(projection).__name__}, a layer's last projection, has neither in_features nor a weight matrix: its "
            "widths are unknown. Teach exploration/sites.py what it is."
        )
    return int(weight.shape[0]), int(weight.shape[1])
