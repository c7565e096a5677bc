"""bf16 if the hardware multiplies bf16 matrices, float32 otherwise. A table of hardware capabilities decides.

The choice is not timed, since a timing depends on the load of the machine and the same command must give the same bits.
The table agrees with the measurements in docs/performance.md: with AMX or AVX512_BF16, bf16 is about twice as fast.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dropout_grpo.latent.casts import keeping_casts

_CPU_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
_CPU_ROWS = 16  # with fewer, converting the weights costs more than the faster product saves
_CUDA_CAPABILITY = (8, 0)  # Ampere, the first with bf16 tensor cores


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


def bf16_or_not(setting: bool | None, device: torch.device, rows: int | None = None) -> bool:
    """The user's setting; for None, what ``bf16_for`` says."""
    return bf16_for(device, rows)[0] if setting is None else setting


def bf16_for(device: torch.device, rows: int | None = None) -> tuple[bool, str]:
    """Whether a device should multiply matrices in bf16, and the reason.

    Args:
        device: where the products are computed.
        rows: sequences in the largest batch; None for the batches of training.
    """
    if device.type == "cpu" and rows is not None and rows < _CPU_ROWS:
        return False, f"batches of {rows} rows; bf16 on a CPU needs {_CPU_ROWS}, the rows of its tiles"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        fast = (major, minor) >= _CUDA_CAPABILITY
        least = ".".join(map(str, _CUDA_CAPABILITY))
        return fast, f"CUDA compute capability {major}.{minor}; bf16 needs {least}"
    if device.type == "cpu":
        found = [name for name in _CPU_INSTRUCTIONS if _cpu_capabilities().get(name)]
        if found:
            return True, f"the processor has {found[0]}"
        return False, f"the processor has none of {', '.join(_CPU_INSTRUCTIONS)}"
    return False, f"bf16 is not known to be fast on a device of type {device.type}"


def _cpu_capabilities() -> dict[str, Any]:
    """Instruction sets of the processor; empty if this version of torch does not report them."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return dict(capabilities())
