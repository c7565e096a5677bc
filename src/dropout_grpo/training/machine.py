"""What suits the machine: threads, freed memory, and whether matrices are multiplied in bf16.

Nothing here is timed, since a timing depends on the load of the machine and the same command must give the same bits.
docs/performance.md has the measurements. torch is imported inside functions, since ``wait_asleep`` comes before it.
"""

import ctypes
import gc
import mmap
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SPINS = "1000"  # about ten microseconds: the next product usually follows sooner on an idle machine
_SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": _SPINS, "KMP_BLOCKTIME": "0"}

_FEW_PRODUCTS = 4_000_000  # multiplications per layer and position that one thread does alone

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
_NEVER = 2**31 - 1
_LARGE = 2**20  # bytes
_MAPPINGS = 65536  # glibc's default

_may_keep = _keeping = False  # what was asked of malloc in this process

_CPU_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")  # with them bf16 is about twice as fast
_CPU_ROWS = 16  # with fewer, converting the weights costs more than the faster product saves
_CUDA_CAPABILITY = (8, 0)  # Ampere, the first with bf16 tensor cores


def wait_asleep() -> bool:
    """Make the threads of OpenMP sleep while they wait, in this process and its children.

    A product on several threads ends when the last thread ends. By default the threads of OpenMP wait in a busy loop
    for up to milliseconds. If another process uses one core, one thread waits for this core while the other one keeps
    its own core busy with waiting, thousands of times per second. Where threads sleep, a computation on a busy machine
    slows down only in proportion to the load.

    Returns:
        False, with nothing changed, if the environment sets a policy or torch, which reads it once, is imported.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _SETTINGS):
        return False
    os.environ.update(_SETTINGS)
    return True


@contextmanager
def number_of_threads(count: int) -> Iterator[None]:
    """This number of threads inside the block, and the previous one after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for(model: "PreTrainedModel", rows: int) -> Iterator[None]:
    """One thread inside the block if a batch is too small for more: to wake a second one takes longer than it saves.

    Args:
        model: the model that runs inside the block. Nothing changes if it is not on a CPU.
        rows: sequences in the largest batch.
    """
    import torch

    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
    weights = sum(parameter.numel() for parameter in model.parameters())
    few = model.device.type == "cpu" and rows * weights / layers <= _FEW_PRODUCTS
    with number_of_threads(1 if few else torch.get_num_threads()):
        yield


@contextmanager
def imports_kept() -> Iterator[None]:
    """Collect no garbage inside the block, and leave what it imports out of all later collections.

    torch and transformers make a million objects that stay. Every full collection would look at all of them: while they
    are imported, and later in every step of a training. Nothing changes if torch is imported already.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> bool:
    """Let ``freed_memory_kept`` have its effect in this process. The command line calls this; the library does not.

    Returns:
        False without glibc: nothing has changed.
    """
    global _may_keep
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _may_keep = bool(mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_MMAP_THRESHOLD, _LARGE))
    return _may_keep


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block glibc's malloc uses freed memory again, in a process that has called ``keep_freed_memory``.

    By default malloc maps new memory for every large tensor and unmaps it when the tensor is freed, and the kernel
    clears each page. This takes a tenth of the time of a training step on a CPU, for models of the demo's size and of
    GPT-2's. In exchange the process keeps the peak of its activations.

    What lives longer, such as weights and the optimiser's state, is best allocated outside the block: each large tensor
    then has a mapping of its own. Between activations it would leave holes that the next ones do not fit into.
    """
    global _keeping
    if not _may_keep or _keeping:
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    _keeping = bool(mallopt(_M_MMAP_MAX, 0))
    try:
        yield
    finally:
        _keeping = not mallopt(_M_MMAP_MAX, _MAPPINGS)


def return_freed_memory() -> None:
    """Return freed memory to the kernel now, so that another process has room for it. Does nothing without glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_memory() -> int:
    """Bytes of memory that this process has now; 0 if the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE if statm.is_file() else 0


def bf16_or_not(setting: bool | None, device: "torch.device", rows: int | None = None) -> bool:
    """The user's setting; for None, what ``bf16_for`` says."""
    return bf16_for(device, rows)[0] if setting is None else setting


def bf16_for(device: "torch.device", rows: int | None = None) -> tuple[bool, str]:
    """Whether a device should multiply matrices in bf16, and the reason. A table of capabilities decides.

    Args:
        device: where the products are computed.
        rows: sequences in the largest batch; None for the batches of training.
    """
    import torch

    if device.type == "cpu" and rows is not None and rows < _CPU_ROWS:
        return False, f"batches of {rows} rows; bf16 on a CPU needs {_CPU_ROWS}, the rows of its tiles"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        fast = (major, minor) >= _CUDA_CAPABILITY
        least = ".".join(map(str, _CUDA_CAPABILITY))
        return fast, f"CUDA compute capability {major}.{minor}; bf16 needs {least}"
    if device.type == "cpu":
        fast_products = [name for name in _CPU_INSTRUCTIONS if _cpu_capabilities().get(name)]
        if fast_products:
            return True, f"the processor has {fast_products[0]}"
        return False, f"the processor has none of {', '.join(_CPU_INSTRUCTIONS)}"
    return False, f"bf16 is not known to be fast on a device of type {device.type}"


def _cpu_capabilities() -> dict[str, Any]:
    """Instruction sets of the processor; empty if this version of torch does not report them."""
    import torch

    return dict(getattr(torch.cpu, "get_capabilities", dict)())
