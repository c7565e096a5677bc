"""Lets a position of padding see itself, so that no row of an attention mask is empty.

Left padding comes before the first token, so a causal mask leaves it nothing to see. What a kernel makes of such a row
is undefined: cuDNN's backward pass gives NaN for all rows (pytorch#196678), and a softmax over minus infinities is NaN,
which reaches other rows as 0 * NaN. No token sees padding, so the results of tokens do not change.

The masks are those that the model has made for its layers: causal, of a window or of chunks, bool or float. A hook on
each layer changes them, since transformers has no argument for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def padding_sees_itself(layers: nn.ModuleList, attention_mask: Tensor) -> Iterator[None]:
    """Inside the block, the layers' masks of a prompt let padding see itself.

    Args:
        layers: the decoder layers.
        attention_mask: [B, S], 0 for padding, which is on the left.
    """
    rows, length = attention_mask.shape
    itself = torch.eye(length, dtype=torch.bool, device=attention_mask.device)
    itself = itself & (attention_mask == 0)[:, None, :, None]  # [B, 1, S, S]
    changed: dict[int, tuple[Tensor, Tensor]] = {}  # all layers get one mask, or one of each kind

    def seen(argument: Any) -> Any:
        if not isinstance(argument, Tensor) or argument.ndim != 4 or argument.shape[-2:] != (length, length):
            return argument
        if argument.shape[0] not in (1, rows):
            return argument
        if id(argument) not in changed:
            as_last = argument[..., -1:, -1:]  # a token, which sees itself; in MPT's masks True means unseen
            changed[id(argument)] = argument, torch.where(itself, as_last, argument)
        return changed[id(argument)][1]

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(map(seen, args)), {name: seen(argument) for name, argument in kwargs.items()}

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
