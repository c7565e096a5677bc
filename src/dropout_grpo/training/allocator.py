"""Memory that a step frees is kept for the next step, not handed back to the kernel."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's malloc, for this process, to reuse what was freed; returns whether there is a glibc to tell.

    By default every tensor above some size is mapped afresh and unmapped when it is freed, so that each of a step's
    tensors is paid for page by page: a tenth of a training step on a CPU at the demo's size and at GPT-2's. The process
    keeps its peak of memory in exchange. The library never calls this: it is for a process that does nothing but train.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
