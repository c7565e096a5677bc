"""Casts frozen weights to autocast's dtype once, where autocast casts them at every matrix product.

Autocast keeps its cast of a weight that requires a gradient until its block ends. It casts all others anew in each
forward pass: for the prompt, for every thought and for every answer token. A backward pass even keeps all these copies.
This concerns the reference of a KL, the base of an adapter, and weights without ``requires_grad``.

The float32 weights stay in the model; layers see the copies during a forward pass only. Results have the same bits.

Where nothing needs the float32 weights, they are held in bf16 all the time: those of a reference, and of an adapter's
base during training (`product_weights`, `held_in_bf16`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dropout_grpo.distributed.sharding import is_sharded
from dropout_grpo.latent.shared_prompt import kernel_dtype

Cast = tuple[nn.Parameter, int, nn.Parameter]
"""A weight, its version, and its copy in autocast's dtype."""

_casts: dict[int, Cast] | None = None
_LAYERS: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()
_HELD: WeakSet[nn.Module] = WeakSet()
"""Models inside ``held_in_bf16``."""


@contextmanager
def autocast(device: torch.device, bf16: bool) -> Iterator[None]:
    """Matrix products in bf16 with float32 weights, sums and norms; no effect if ``bf16`` is False.

    Each weight is cast once in the block, also if it is frozen.
    """
    if not bf16:
        yield
        return
    with torch.autocast(device.type, torch.bfloat16), keeping_casts():
        yield


@contextmanager
def keeping_casts() -> Iterator[None]:
    """Keep casts of frozen weights until the end of the outermost block."""
    global _casts
    if _casts is not None:
        yield
        return
    _casts = {}
    try:
        yield
    finally:
        _casts = None


def forget_casts() -> None:
    """Forget all casts, those of autocast too: a graph keeps what it reads, and what it writes has no values yet."""
    torch.clear_autocast_cache()
    if _casts is not None:
        _casts.clear()


@contextmanager
def frozen_weights_cast(model: nn.Module) -> Iterator[None]:
    """In a forward pass, give linear layers their frozen weights in the dtype of the products.

    In a block under autocast, float32 weights are cast. Elsewhere, weights that are held in bf16 are cast to float32.

    Only ``nn.Linear`` and ``Conv1D`` take part: autocast casts both weight and bias there. An embedding that shares its
    table with the head keeps the float32 one.
    """
    swapped = []
    widened = model in _HELD and kernel_dtype(torch.empty(0, device=next(model.parameters()).device)) == torch.float32
    casts = {} if widened and _casts is None else _casts
    try:
        if casts is not None and not is_sharded(model):
            for layer in _layers(model):
                for name, parameter in layer._parameters.items():
                    if not isinstance(parameter, nn.Parameter) or parameter.requires_grad:
                        continue
                    dtype = torch.float32 if widened else kernel_dtype(parameter)
                    if dtype != parameter.dtype:
                        swapped.append((layer, name, parameter))
                        layer._parameters[name] = _cast(casts, parameter, dtype)
        yield
    finally:
        for layer, name, parameter in swapped:
            layer._parameters[name] = parameter


def _cast(casts: dict[int, Cast], parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    known, version = casts.get(id(parameter)), 0 if parameter.is_inference() else parameter._version
    if known is not None and known[1] == version and known[2].dtype == dtype:
        return known[2]
    with torch.inference_mode(False):  # a backward pass may use it later in the block
        cast = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    casts[id(parameter)] = parameter, version, cast
    return cast


def product_weights(model: nn.Module) -> list[nn.Parameter]:
    """The float32 weights that only linear layers read, so that rounded to bf16 they give the same bits under autocast.

    A table that embeddings and head share is not among them.
    """
    layers = _layers(model)
    read = {id(p) for module in model.modules() if module not in layers for p in module._parameters.values()}
    weights = {id(p): p for layer in layers for p in layer._parameters.values() if p is not None}
    return [p for key, p in weights.items() if key not in read and p.dtype == torch.float32]


@contextmanager
def held_in_bf16(model: nn.Module) -> Iterator[None]:
    """Hold the frozen weights of linear layers in bf16 inside the block. After it they are float32, and stay rounded.

    Results under autocast have the same bits. Without autocast, a forward pass casts the rounded weights to float32.
    """
    frozen = [parameter for parameter in product_weights(model) if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.data = parameter.data.bfloat16()
        _HELD.add(model)
        yield
    finally:
        _HELD.discard(model)
        for parameter in frozen:
            parameter.data = parameter.data.float()


def _layers(model: nn.Module) -> list[nn.Module]:
    if model not in _LAYERS:
        _LAYERS[model] = [module for module in model.modules() if type(module) in (nn.Linear, Conv1D)]
    return _LAYERS[model]
