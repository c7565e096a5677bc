"""Threads sleep while waiting: the settings, when they apply, and their effect next to a busy process."""

import os
import subprocess
import sys

import pytest
import torch

from dropout_grpo.training.threads import threads_for, wait_asleep
from helpers.tiny import tiny_model

PRODUCTS = """
import sys, time
from dropout_grpo.training.threads import wait_asleep
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
