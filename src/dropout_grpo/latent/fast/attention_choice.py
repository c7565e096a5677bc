"""Which attention reads a prompt: plain matrix products or transformers' SDPA, decided by the type of device.

The choice exists only for rows without a shared prefix. Both give the same numbers up to rounding. A table decides and
not a measurement, since a measurement depends on what else the machine is doing: the same command must give the same
bits. The table's figures are in docs/performance.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

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


def chosen(device_type: str) -> Choice:
    """The attention in use on a type of device."""
    return attention_for(device_type)[0] if _fixed is None else _fixed


def fix_attention(choice: Choice | None) -> None:
    """Use this attention in the whole process, as the option ``attention`` says; None for the table's."""
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
