"""Which attention reads a prompt: plain matrix products or transformers' SDPA, decided by a measurement on the device.

There is a choice only without a shared prefix. Both give the same numbers up to rounding; which one was used is written
down with a run (``attention_choices``).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import nn

Choice = Literal["products", "sdpa"]
CHOICES: tuple[Choice, ...] = ("products", "sdpa")

_MARGIN = 1.5
"""SDPA has to be this many times as fast, so that a near draw is decided the same way every time."""
_SHAPE = (8, 8, 64, 64)  # rows, heads, positions, head size
_REPEATS = 8
_fixed: Choice | None = None
_followed: dict[tuple[str, torch.dtype], Choice] = {}


def chosen(attention: Callable[..., Any], device_type: str, dtype: torch.dtype) -> Choice:
    """What ``attention``, an implementation of transformers' interface that asks here, should use.

    Args:
        attention: is measured both ways the first time it asks for this device and dtype.
        device_type: cpu, cuda, ...
        dtype: of the queries.
    """
    if _fixed is not None:
        return _fixed
    return _followed.get((device_type, dtype)) or _measured(attention, device_type, dtype)


def follow(choice: Choice, device_type: str, dtype: torch.dtype) -> None:
    """Use a choice that another process has made, for the rest of this process."""
    _followed[device_type, dtype] = choice


@contextmanager
def fixed_attention(choice: Choice) -> Iterator[None]:
    """Inside, the choice is made: for tests, and for the measurement itself."""
    global _fixed
    before, _fixed = _fixed, choice
    try:
        yield
    finally:
        _fixed = before


@lru_cache(maxsize=16)
def _measured(attention: Callable[..., Any], device_type: str, dtype: torch.dtype) -> Choice:
    seconds = _seconds(attention, device_type, dtype)
    return "sdpa" if seconds["products"] > _MARGIN * seconds["sdpa"] else "products"


def _seconds(attention: Callable[..., Any], device_type: str, dtype: torch.dtype) -> dict[Choice, float]:
    """Forward and backward, each at its best, taking turns."""
    rows, _, length, _ = _SHAPE
    query, key, value = (torch.ones(_SHAPE, dtype=dtype, device=device_type, requires_grad=True) for _ in range(3))
    wide = torch.promote_types(dtype, torch.float32)  # a mask has the dtype of the embeddings, whatever the products'
    mask = torch.full((rows, 1, length, length), torch.finfo(wide).min, dtype=wide, device=device_type).triu(1)
    best: dict[Choice, float] = dict.fromkeys(CHOICES, float("inf"))
    with torch.enable_grad(), torch.autocast(device_type, enabled=False):
        for _ in range(_REPEATS):
            for choice in CHOICES:
                with fixed_attention(choice):
                    start = _now(device_type)
                    output, _ = attention(nn.Module(), query, key, value, mask)
                    output.sum().backward()
                    best[choice] = min(best[choice], _now(device_type) - start)
    return best


def _now(device_type: str) -> float:
    if device_type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
