"""Threads sleep while waiting, freed memory is reused, and bf16 is chosen by the hardware, never by a timing."""

import gc
import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch

from dropout_grpo.training.machine import bf16_for, bf16_or_not, imports_kept, threads_for, wait_asleep
from helpers.tiny import tiny_model

PRODUCTS = """
import sys, time
from dropout_grpo.training.machine import wait_asleep
if sys.argv[1] == "asleep":
    assert wait_asleep()
import torch
torch.set_num_threads(2)
a, b = torch.randn(64, 768), torch.randn(768, 768)
for _ in range(5):
    a @ b
start = time.perf_counter()
for _ in range(400):
    torch.nn.functional.gelu(a @ b)
print(time.perf_counter() - start)
"""


def seconds(policy: str) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", PRODUCTS, policy]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_nothing_is_set_once_torch_is_imported_or_against_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert not wait_asleep()  # these tests have imported torch
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert not wait_asleep()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(("rows", "inside"), [(1, 1), (10, 1), (10_000, 3)])
def test_a_small_batch_has_one_thread(rows: int, inside: int) -> None:
    model = tiny_model("gpt2", torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_for(model, rows):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_busy_process_slows_products_in_proportion() -> None:
    """If one of two threads shares its core with a busy loop, the time is at most tripled; by default tenfold."""
    alone = min(seconds("asleep") for _ in range(3))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert min(seconds("asleep") for _ in range(3)) < 3 * alone
    finally:
        busy.kill()
        busy.wait()


MEMORY = """
import resource
import torch
from dropout_grpo.training.machine import freed_memory_kept, keep_freed_memory, resident_memory, return_freed_memory

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert keep_freed_memory()
start = resident_memory()
with freed_memory_kept():
    activation = torch.ones(2**24)  # 64 MiB
weights = torch.ones(2**24)
del activation
with freed_memory_kept():
    activation = torch.ones(2**24 - 2**10)  # malloc looks for a little more than what is asked for
both = resident_memory() - start
del weights
one = resident_memory() - start
del activation
with freed_memory_kept():
    for _ in range(20):  # until holes of the right size are there
        torch.ones(2**24)
    before = faults()
    for _ in range(4):
        torch.ones(2**24)
    faulted, kept = faults() - before, resident_memory() - start
return_freed_memory()
print(both, one, faulted, kept, resident_memory() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is another")
def test_freed_memory_is_used_again_and_returned_on_request() -> None:
    """What is allocated outside has memory of its own, which goes back by itself."""
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    both, one, faulted, kept, left = map(int, run.stdout.split())
    assert both < 2**27 + 2**24
    assert one < 2**26 + 2**24
    assert faulted < 100  # 4 times 16,384 pages of 4 KiB otherwise
    assert kept > 2**25
    assert left < 2**24


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("found", "expected", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True, "the processor has amx_bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, True, "the processor has avx512_bf16"),
        ({"avx512_f": True}, False, "the processor has none of amx_bf16, avx512_bf16"),
        ({}, False, "the processor has none of amx_bf16, avx512_bf16"),
    ],
)
def test_processors(found: dict[str, Any], expected: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert bf16_for(CPU) == (expected, reason)
    assert bf16_or_not(None, CPU) is expected
    assert bf16_or_not(not expected, CPU) is not expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cuda_devices(capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    major, minor = capability
    assert bf16_for(CUDA) == (expected, f"CUDA compute capability {major}.{minor}; bf16 needs 8.0")


def test_a_small_batch_on_a_cpu_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert bf16_for(CPU, rows=16)[0]
    assert bf16_for(CPU) == bf16_for(CPU, rows=16)
    assert bf16_for(CPU, rows=15) == (False, "batches of 15 rows; bf16 on a CPU needs 16, the rows of its tiles")
    assert bf16_or_not(True, CPU, rows=1)
    assert not bf16_for(torch.device("mps"))[0]


@pytest.mark.parametrize("first", [True, False])
def test_collections_leave_out_what_the_first_imports_made(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has imported torch, as this one, nothing changes."""
    if first:
        monkeypatch.delitem(sys.modules, "torch")
    frozen = gc.get_freeze_count()
    try:
        with imports_kept():
            made = [[]]
            assert gc.isenabled() is not first
        assert gc.isenabled()
        assert (gc.get_freeze_count() > frozen) is first
        assert any(each is made for each in gc.get_objects()) is not first  # objects that a collection looks at
    finally:
        gc.unfreeze()
