"""bf16 is chosen by the capabilities of the hardware, never by a timing."""

from typing import Any

import pytest
import torch

from dropout_grpo.training import precision
from dropout_grpo.training.precision import bf16_for, bf16_or_not

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


def test_a_torch_that_cannot_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision._cpu_capabilities() == {}
    assert bf16_for(torch.device("mps"))[0] is False


def test_a_small_batch_on_a_cpu_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert bf16_for(CPU, rows=16)[0]
    assert bf16_for(CPU) == bf16_for(CPU, rows=16)
    assert bf16_for(CPU, rows=15) == (False, "batches of 15 rows; bf16 on a CPU needs 16, the rows of its tiles")
    assert bf16_or_not(True, CPU, rows=1)
