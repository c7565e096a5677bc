"""Whether memory that a step frees is kept for the next step or returned to the kernel."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc's malloc reuse freed memory in this process.

    By default malloc maps new memory for every large tensor and unmaps it when the tensor is freed, and the kernel
    clears each page. This takes a tenth of the time of a training step on a CPU, for models of the demo's size and of
    GPT-2's. In exchange the process keeps its peak memory. The command line calls this; the library does not.

    Returns:
        False without glibc: nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def return_freed_memory() -> None:
    """Return freed memory to the kernel now, so that another process has room for it. Does nothing without glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
