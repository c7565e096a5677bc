"""How fast the device multiplies matrices of the shapes that a job multiplies, measured in the same run as the job.

Products with weights are timed alone, each shape once. Products inside attention are assumed to run at the average rate
of the others.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dropout_grpo.latent.graphs import step_by_step

Shape = tuple[int, int, int]
"""m, k, n of an (m x k) @ (k x n) product."""

_SECONDS = 0.1
_LEAST_RUNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """The matrix products of a job: FLOPs of all, attention included, and how often each shape is multiplied."""

    flops: int
    shapes: Counter[Shape]

    def rate(self, seconds: Callable[[Shape], float]) -> float:
        """FLOP/s of only the products, from a function that gives the seconds of one product."""
        with_weights = sum(2 * m * k * n * count for (m, k, n), count in self.shapes.items())
        return with_weights / sum(count * seconds(shape) for shape, count in self.shapes.items())


class _Shapes(TorchDispatchMode):
    """Counts the shapes of products of two matrices."""

    _OPERANDS = {torch.ops.aten.mm.default: (0, 1), torch.ops.aten.addmm.default: (1, 2)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._OPERANDS:
            a, b = (args[i] for i in self._OPERANDS[func])
            self.shapes[a.shape[0], a.shape[1], b.shape[1]] += 1
        return func(*args, **(kwargs or {}))


def products_of(run: Callable[[], object]) -> Products:
    """The matrix products of one run, backward pass included. It uses no CUDA graphs, whose operations are not seen."""
    with step_by_step(), FlopCounterMode(display=False) as counter, _Shapes() as seen:
        run()
    return Products(flops=counter.get_total_flops(), shapes=seen.shapes)


@lru_cache(maxsize=1024)
def best_seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of one product: the best run within a tenth of a second. Each shape is measured once."""
    m, k, n = shape
    a, b = torch.ones(m, k, device=device, dtype=dtype), torch.ones(k, n, device=device, dtype=dtype)
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
