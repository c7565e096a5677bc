"""Chooses the attention that reads a prompt by the type of device: plain matrix products or transformers' SDPA.

The choice exists only for rows without a shared prefix. Both give the same numbers up to rounding. A table decides and
not a timing, since a timing depends on the load of the machine and the same command must give the same bits. The
measurements behind the table are in docs/performance.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Choice = Literal["products", "sdpa"]
CHOICES: tuple[Choice, ...] = ("products", "sdpa")

_BY_DEVICE: dict[str, tuple[Choice, str]] = {
    "cpu": ("products", "SDPA's backward pass is no faster on a CPU in float32 and several times as slow in bf16"),
    "cuda": ("sdpa", "CUDA devices have fused SDPA kernels"),
}
_OTHERS: tuple[Choice, str] = ("products", "plain products run on every device")

_fixed: Choice | None = None


def attention_for(device_type: str) -> tuple[Choice, str]:
    """The attention for a type of device (``cpu``, ``cuda``, ...) and the reason for it."""
    return _BY_DEVICE.get(device_type, _OTHERS)


def attention_in_use(device_type: str) -> Choice:
    """The attention in use on a type of device."""
    return attention_for(device_type)[0] if _fixed is None else _fixed


def fix_attention(choice: Choice | None) -> None:
    """Use this attention in the whole process (the option ``attention``); None for the table's choice."""
    global _fixed
    _fixed = choice


@contextmanager
def fixed_attention(choice: Choice) -> Iterator[None]:
    """Use this attention inside the block."""
    before = _fixed
    fix_attention(choice)
    try:
        yield
    finally:
        fix_attention(before)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Keep SDPA from choosing cuDNN's kernel inside the block; what the caller has set applies again after it.

    On H100 and H200 torch prefers this kernel, whose gradients are wrong for some masks (pytorch#196678). The kernel of
    a backward pass is that of its forward pass, so the block need not cover it.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
