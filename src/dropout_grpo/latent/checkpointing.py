"""Gradient checkpointing of decoder layers that read and extend a key/value cache.

Autograd keeps what goes into a layer, and the backward pass runs the layer again to get what it needs in between. That
of transformers cannot be used with a cache: it takes the cache away, or the second run extends it once more.

Here a layer never gets the cache itself. Each of its runs gets a cache of its own over the keys and values from before
the call, so the second run sees what the first one saw. What the first run makes of them goes into the cache. Noise is
hooks on modules inside the layer, which are gone by then; so the second run registers them again.

What is kept for each call of a layer: its input [B, L, D], masks and rotary tables, which all layers share, and keys
and values, which the next thought reads anyway. One copy of a row's own keys is kept for each thought, as without
checkpointing; a prompt that is shared is kept once.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicLayer
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.sites import SiteMap
from dropout_grpo.latent.shared_prompt import OwnLayer, Prefix

Around = Callable[[nn.Module, Mapping[str, Tensor]], AbstractContextManager[None]]
"""The context in which a layer runs, from the layer and the factors of its sites: all that changes its results."""

_FLAG = "gradient_checkpointing"
"""The attribute by which transformers switches on its own, in a decoder or its layers."""

_KINDS = (OwnLayer, DynamicLayer, DynamicSlidingWindowLayer)
"""Caches of a layer that hold keys and values alone, and replace them where others change them in place."""


@contextmanager
def checkpointed(sites: SiteMap, factors: Mapping[str, Tensor], around: Around) -> Iterator[None]:
    """Inside the block, autograd keeps what goes into the decoder layers and not what they compute.

    ``forward`` is replaced, so hooks on a layer itself run once and outside: FSDP's, and ``padding_sees_itself``.

    Args:
        sites: those of the model, with its layers.
        factors: factors of the sites, which the caller applies in the first run.
        around: the context of the second run.

    Raises:
        UserError: a layer keeps other things in the cache than keys and values, or reads those of another layer.
    """
    replaced = [vars(layer).get("forward") for layer in sites.layers]
    try:
        for index, layer in enumerate(sites.layers):
            own = sites.of_layer(factors, index)
            vars(layer)["forward"] = partial(_checkpointed, layer, layer.forward, index, own, around)
        yield
    finally:
        for layer, forward in zip(sites.layers, replaced, strict=True):
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                vars(layer)["forward"] = forward


def switched_off(sites: SiteMap) -> bool:
    """Switch off transformers' own checkpointing of a model; returns whether it was on."""
    if not any(getattr(module, _FLAG, False) for module in (sites.layers[0], sites.decoder)):
        return False
    for module in sites.decoder.modules():
        if getattr(module, _FLAG, False):
            setattr(module, _FLAG, False)
    return True


def _checkpointed(
    layer: nn.Module,
    forward: Callable[..., Any],
    index: int,
    factors: Mapping[str, Tensor],
    around: Around,
    *args: Any,
    **kwargs: Any,
) -> Any:
    cache = next(value for value in (*args, *kwargs.values()) if isinstance(value, Cache))
    before = copy(cache.layers[index]) if index < len(cache.layers) else None
    empty = copy(cache)
    empty.layers = []
    # ``run`` must not hold ``cache``, which will hold the keys that later layers and calls add.
    args = tuple(empty if value is cache else value for value in args)
    kwargs = {name: empty if value is cache else value for name, value in kwargs.items()}
    others: list[Any] = [_Other()] * index
    ran = False

    def run(*kept: Tensor) -> tuple[Any, Any]:
        nonlocal ran
        context, ran = around(layer, factors) if ran else nullcontext(), True
        mine = copy(empty)
        mine.layers = others + ([] if before is None else [copy(before)])
        with context:
            output = forward(
                *(mine if value is empty else value for value in args),
                **{name: mine if value is empty else value for name, value in kwargs.items()},
            )
        return output, mine.layers[index]

    kept = _tensors((args, kwargs, before, factors), index)  # which ``run`` holds; this tells autograd's hooks of them
    output, after = checkpoint(run, *kept, use_reentrant=False, preserve_rng_state=False)
    if type(after) not in _KINDS:
        raise UserError(
            f"gradient_checkpointing: {type(layer).__name__} keeps other things than keys and values in its cache, a "
            f"{type(after).__name__}: set it to false for this model."
        )
    cache.layers[index : index + 1] = [after]
    return output


class _Other:
    """Stands for the cache of another layer."""

    def __getattr__(self, name: str) -> Any:
        raise UserError("gradient_checkpointing: a layer reads another layer's cache: set it to false for this model.")


def _tensors(value: Any, layer: int) -> Iterator[Tensor]:
    """The tensors in the arguments of one layer."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Prefix):
        yield from (value.keys[layer], value.values[layer])
        if value.padding is not None:
            yield value.padding
    elif isinstance(value, CacheLayerMixin):
        yield from _tensors((value.keys, value.values), layer)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()), layer)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part, layer)
