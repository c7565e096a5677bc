"""Freed memory is reused without requesting its pages from the kernel again."""

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from dropout_grpo.training.allocator import keep_freed_memory
{}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # until holes of the right size are there
    torch.ones(2**24)  # 64 MiB
before = faults()
for _ in range(4):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is another")
def test_freed_memory_is_used_again() -> None:
    run = subprocess.run(
        [sys.executable, "-c", COUNT.format("assert keep_freed_memory()")], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 100  # 4 times 16,384 pages of 4 KiB otherwise


RETURN = """
from pathlib import Path
import torch
from dropout_grpo.training.allocator import keep_freed_memory, return_freed_memory
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
assert keep_freed_memory()
before = resident()
torch.ones(2**26)  # 256 MiB
kept = resident() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is another")
def test_kept_memory_is_returned_on_request() -> None:
    run = subprocess.run([sys.executable, "-c", RETURN], capture_output=True, text=True, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept > 2**27
    assert left < 2**24
