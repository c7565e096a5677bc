"""The cost of masks only: drawing those of a batch, and multiplying them with activations."""

import time
from collections.abc import Callable
from statistics import median

import torch

from evidence.bench.workload import Workload


def mask_seconds(work: Workload, repeats: int) -> dict[str, float]:
    """Median seconds for a batch of rollouts.

    Returns:
        ``make``: making the masks; ``multiply``: applying them at every site of every latent step and answer token.
    """
    held = _made(work)
    width = max(factor.shape[-1] for factor in held.values())
    dtype = torch.bfloat16 if work.setting.bf16 else work.model.model.dtype
    activation = torch.ones(work.seeds.numel(), 1, width, device=work.model.device, dtype=dtype)
    steps = work.setting.latent_steps + work.setting.answer_tokens

    def multiply() -> None:
        for _ in range(steps):
            for factor in held.values():
                activation[..., : factor.shape[-1]] * factor

    return {
        "make": _median_seconds(work, lambda: _made(work), repeats),
        "multiply": _median_seconds(work, multiply, repeats),
    }


def _made(work: Workload) -> dict[str, torch.Tensor]:
    noise = work.model.noise(work.exploration, work.seeds.flatten())
    assert noise is not None, "the benchmark has an exploration"
    return dict(noise.factors("latent", 0))


def _median_seconds(work: Workload, run: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        work.synchronize()
        start = time.perf_counter()
        run()
        work.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])  # the first one warms up
