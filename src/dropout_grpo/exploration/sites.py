"""Finds the sites of a model of any architecture, and multiplies the activations there during a forward pass.

Both halves of every decoder layer end in a linear map back to the residual stream: the attention's output projection
and the MLP's last projection. Their outputs are the sites ``attention`` and ``mlp`` (together ``residual``, where GPT-2
has its native dropout). Their inputs are ``heads`` (one factor per head), ``values`` and ``mlp_hidden``. So two modules
per layer are enough, and they exist in models without any ``nn.Dropout`` (Llama, Qwen). A mixture of experts has no
single last projection: its ``mlp`` site is the output of the whole block, and it has no ``mlp_hidden``. If an MLP
stands beside a mixture of experts (Granite, Gemma 4), both outputs get the same mask. A norm that follows a projection
(Gemma 2 and 3) comes after the mask, so the mask is still one of the weight matrix's columns.

``values`` has one factor m per value feature. The output of a head is sum_j w_j (m * v_j) = m * sum_j w_j v_j. So
multiplying this output masks the value projection at all positions that the head attends to, also those of the cached
prompt, and a group still shares one copy of its prompt. Query heads that share a value head share its factors.

``attention_weights`` has one factor per head and key position, the same for all later queries: the strict form of
attention dropout. It has no module: ``latent/shared_prompt.py`` multiplies the weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dropout_grpo.errors import UserError

SITES = ("residual", "attention", "mlp", "mlp_hidden", "heads", "thought", "values", "attention_weights")
THOUGHT_SITE, ATTENTION_WEIGHTS = "thought", "attention_weights"

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_ATTENTION_OUT = ("c_proj", "o_proj", "out_proj", "dense", "wo")
_NORMS_OF_VALUES = ("attn_sub_norm", "inner_attn_ln", "sub_norm", "groupnorm")  # between the heads and their projection
_DECAY_BY_VALUES = "dt_proj"  # makes the attention's mask from the values (Doge)
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_EXPERTS = ("experts", "router", "gate")  # parts of a mixture of experts
_SHARED_MLP = "shared_mlp"  # in the layer, beside a mixture of experts or alone (Granite)
_MLP_OUT = ("c_proj", "down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "proj_out", "output_linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place in one layer: ``count`` independent factors, each ``block`` of them repeated ``repeat`` times."""

    name: str
    kind: str
    count: int
    """Number of factors; for attention weights the number of heads, since each key position has one factor per head."""
    repeat: int = 1
    block: int = 1
    module: nn.Module | None = None
    """The module whose output (attention, mlp) or input (heads, values, mlp_hidden) is multiplied; None for thought and
    attention weights."""
    path: str = ""
    """The module's name inside the decoder."""
    beside: nn.Module | None = None
    """A second module whose output is added to the module's, and multiplied by the same factors."""

    def spread(self, factors: Tensor) -> Tensor:
        """Factors [B, 1, count] -> [B, 1, count * repeat], one per feature."""
        if self.repeat == 1:
            return factors
        return factors.unflatten(-1, (-1, self.block)).repeat_interleave(self.repeat, dim=-2).flatten(-2)


class SiteMap:
    """All sites of one model, its ``decoder`` with ``layers``, and its numbers of ``heads`` and ``key_heads``.

    Args:
        decoder: the transformer without its language-model head.
        width: D, the width of the embeddings and of thoughts.
        heads: number of query heads.
        key_heads: number of key and value heads of a layer whose attention does not say it; ``heads`` when None.

    Raises:
        UserError: there is no list of decoder layers, the number of heads is unknown, or a layer has no projection with
            a known name; the message lists the modules.
    """

    def __init__(self, decoder: nn.Module, width: int, heads: int, *, key_heads: int | None = None) -> None:
        self.decoder = decoder
        self._why = {  # of kinds that the model may lack
            "mlp_hidden": "its MLP is a mixture of experts",
            "values": "its attention does more with values than to average them, or heads do not share them evenly",
            ATTENTION_WEIGHTS: "it keeps its own attention (a sliding window, a soft cap, ...)",
        }
        self._all: list[Site] = [Site(name=THOUGHT_SITE, kind=THOUGHT_SITE, count=width)]
        self.layers = layers = _layers(decoder)
        if heads < 1:
            raise UserError(
                f"the config of {type(decoder).__name__} has no num_attention_heads: its heads are unknown."
            )
        self.heads, self.key_heads = heads, key_heads or heads
        paths = {module: path for path, module in decoder.named_modules()}
        for i, layer in enumerate(layers):
            out = _projection(layer, _ATTENTION, _ATTENTION_OUT)
            if out is None:
                raise _unknown(layer, i, "attention", _ATTENTION_OUT)
            inner, attended = _widths(out)
            size = inner // heads
            specs = [("attention", attended, 1, 1, out), ("heads", heads, size, 1, out)]
            shared_by = _shared_by(layer) or (0 if heads % self.key_heads else heads // self.key_heads)
            if shared_by and heads % shared_by == 0 and not _more_than_averages(layer):
                specs.append(("values", heads // shared_by * size, shared_by, size, out))
            down, beside = _projection(layer, _MLP, _MLP_OUT), _child(layer, "experts")
            experts, shared = _block(layer), _child(layer, _SHARED_MLP)
            if down is None and experts is None and shared is not None:
                down = _projection(shared, (), _MLP_OUT)
            if down is not None:
                hidden, moved = _widths(down)
                specs += [("mlp", moved, 1, 1, down), ("mlp_hidden", hidden, 1, 1, down)]
            elif experts is not None:  # a mixture of experts: the whole block writes to the residual
                specs.append(("mlp", attended, 1, 1, experts))
                beside = shared
            else:
                raise _unknown(layer, i, "MLP", _MLP_OUT)
            self._all += [
                Site(
                    name=f"layers.{i}.{kind}",
                    kind=kind,
                    count=n,
                    repeat=repeat,
                    block=block,
                    module=module,
                    path=paths[module],
                    beside=beside if kind == "mlp" else None,
                )
                for kind, n, repeat, block, module in specs
            ]
        self.with_attention_weights(False)

    def with_attention_weights(self, multiplied: bool) -> None:
        """Have the sites of attention weights, or not; ``latent/shared_prompt.py`` multiplies the weights."""
        self._all = [site for site in self._all if site.kind != ATTENTION_WEIGHTS]
        if multiplied:
            self._all += [
                Site(name=f"layers.{i}.{ATTENTION_WEIGHTS}", kind=ATTENTION_WEIGHTS, count=self.heads)
                for i in range(len(self.layers))
            ]
        self._by_name = {site.name: site for site in self._all}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of masks: that of the weights, but at least float32, since 1 / (1 - p) is not a bf16 number."""
        return torch.promote_types(next(self.decoder.parameters()).dtype, torch.float32)

    def instances(self, kinds: tuple[str, ...]) -> tuple[Site, ...]:
        """The sites of some kinds, each once even if the kinds overlap.

        Raises:
            UserError: the model has no site of one of the kinds.
        """
        if lacking := [kind for kind in kinds if kind in self.lacking]:
            raise UserError(
                f"exploration site {lacking[0]!r}: {type(self.decoder).__name__} has no such site, because "
                f"{self.lacking[lacking[0]]}. It has {', '.join(kind for kind in SITES if kind not in self.lacking)}."
            )
        wanted = set(kinds) | ({"attention", "mlp"} if "residual" in kinds else set())
        return tuple(site for site in self._all if site.kind in wanted)

    @property
    def lacking(self) -> dict[str, str]:
        """Kinds of sites that no layer of the model has, and why."""
        present = {site.kind for site in self._all} | {"residual"}
        return {kind: self._why[kind] for kind in SITES if kind not in present}

    def of_layer(self, factors: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
        """The factors of sites in one layer."""
        return {name: factor for name, factor in factors.items() if name.startswith(f"layers.{layer}.")}

    @contextmanager
    def multiplied(self, factors: Mapping[str, Tensor]) -> Iterator[None]:
        """Multiply the named activations by ``factors`` ([B, 1, F] each) in the forward passes inside the block.

        The hooks are removed at the end of the block, so noise is never left on.
        """
        handles = []
        try:
            for name, factor in factors.items():
                if name not in self._by_name:
                    raise UserError(
                        f"the exploration has factors for {name!r}, and there is no such site: names are those of "
                        f"SiteMap.instances, such as {self._all[-1].name}."
                    )
                site = self._by_name[name]
                if site.module is None:
                    continue  # the recurrence multiplies the thought itself, before it is fed back
                if site.kind in ("heads", "values", "mlp_hidden"):
                    handles.append(site.module.register_forward_pre_hook(_input_hook(factor)))
                else:
                    handles.append(site.module.register_forward_hook(_output_hook(factor)))
                    if site.beside is not None:
                        handles.append(site.beside.register_forward_hook(_output_hook(factor)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _output_hook(factor: Tensor) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # a mixture of experts may return its router's logits as well
            return (times(output[0], factor), *output[1:])
        return times(output, factor)

    return hook


def _input_hook(factor: Tensor) -> Any:
    return lambda module, args: (times(args[0], factor), *args[1:])


def times(activation: Tensor, factor: Tensor) -> Tensor:
    """[B, L, F] times [B, 1, F], in the dtype that the next layer takes; OPT runs its MLP on [B * L, F]."""
    if activation.ndim == 2:
        return times(activation.view(factor.shape[0], -1, factor.shape[-1]), factor).view_as(activation)
    product = activation * factor
    # Without autocast, nothing casts a float32 product to the dtype of bf16 weights.
    return product if torch.is_autocast_enabled(activation.device.type) else product.to(activation.dtype)


def _layers(decoder: nn.Module) -> nn.ModuleList:
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and _is_layer(m)]
    if len(lists) != 1:
        raise UserError(
            f"found {len(lists)} lists of decoder layers in {type(decoder).__name__}, need exactly one: its children "
            f"are {', '.join(name for name, _ in decoder.named_children())}. Only decoder-only models "
            "are supported, and no hybrids whose first layer has no attention."
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


def _attentions(layer: nn.Module) -> list[nn.Module]:
    return [child for name in _ATTENTION if (child := _child(layer, name)) is not None]


def _child(module: nn.Module, name: str) -> nn.Module | None:
    return child if isinstance(child := getattr(module, name, None), nn.Module) else None


def _shared_by(layer: nn.Module) -> int | None:
    """Number of query heads that share a value head, which may differ by layer (Gemma 4); None if unknown."""
    groups = [getattr(attention, "num_key_value_groups", None) for attention in _attentions(layer)]
    return next((count for count in groups if isinstance(count, int)), None)


def _more_than_averages(layer: nn.Module) -> bool:
    """Whether there is a norm between the heads' output and its projection, or values decide who is attended to."""
    names = (*_NORMS_OF_VALUES, _DECAY_BY_VALUES)
    return any(hasattr(attention, name) for attention in _attentions(layer) for name in names)


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
    """Numbers of input and output features of an nn.Linear, a wrapper of PEFT, or GPT-2's Conv1D (weight [in, out])."""
    if isinstance(features := getattr(projection, "in_features", None), int):
        assert isinstance(projection.out_features, int)
        return features, projection.out_features
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UserError(
            f"{type(projection).__name__}, a layer's last projection, has neither in_features nor a weight matrix: its "
            "widths are unknown. Add it to exploration/sites.py."
        )
    return int(weight.shape[0]), int(weight.shape[1])
