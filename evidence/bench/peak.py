"""Measures how fast the device multiplies matrices of the model's shapes, in the same run as the arms."""

import time
from collections.abc import Callable, Sequence

import torch

from evidence.bench.flops import Phase, Shape, attention_flops, head_flops, linear_flops

Rate = Callable[[int, int, int], float]
"""FLOP/s of an (m x k) @ (k x n) product."""

_SECONDS = 0.1
_LEAST_RUNS = 3


def measured_rate(device: torch.device | str, dtype: torch.dtype) -> Rate:
    """A function that measures rates: the best run within a tenth of a second. Each shape is measured once."""
    known: dict[tuple[int, int, int], float] = {}

    def rate(m: int, k: int, n: int) -> float:
        if (m, k, n) not in known:
            known[m, k, n] = 2.0 * m * k * n / _best_seconds(m, k, n, device, dtype)
        return known[m, k, n]

    return rate


def seconds_at_peak(shape: Shape, phases: Sequence[Phase], rate: Rate) -> float:
    """Seconds that the matrix products of some phases take at their measured rates.

    Products inside attention are assumed to run at the average rate of the other products of their phase.
    """
    return sum(_phase_seconds(shape, phase, rate) for phase in phases)


def _phase_seconds(shape: Shape, phase: Phase, rate: Rate) -> float:
    if phase.tokens == 0:
        return 0.0
    each = [phase.tokens * shape.layers * 2 * k * n / rate(phase.rows, k, n) for k, n in shape.products()]
    seconds = sum(each)
    seconds += attention_flops(shape, phase) * seconds / linear_flops(shape, phase)
    if phase.logits:
        seconds += head_flops(shape, phase) / rate(phase.rows, shape.width, shape.vocab)
    return seconds


def _best_seconds(m: int, k: int, n: int, device: torch.device | str, dtype: torch.dtype) -> float:
    a = torch.ones(m, k, device=device, dtype=dtype)
    b = torch.ones(k, n, device=device, dtype=dtype)
    wait = torch.cuda.synchronize if a.device.type == "cuda" else _nothing
    best, runs, began = float("inf"), 0, time.perf_counter()
    while runs < _LEAST_RUNS or time.perf_counter() - began < _SECONDS:
        wait()
        start = time.perf_counter()
        a @ b
        wait()
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


def _nothing() -> None:
    return
