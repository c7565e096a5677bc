"""A case of the benchmark that runs in milliseconds."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from evidence.bench.config import Setting
from evidence.bench.workload import Networks, Workload

SMALL = Setting(
    size="tiny",
    num_generations=3,
    questions=2,
    problems=5,
    prompt_tokens=7,
    latent_steps=2,
    answer_tokens=4,
    cot_tokens=3,
    micro_batch_size=6,
    published_rows=6,
    device="cpu",
    bf16=False,
    positions=32,
    seed=0,
)


@lru_cache(maxsize=1)
def networks() -> Networks:
    """Of the demo's size, made once; with weights large enough for questions and thoughts to change the answer."""
    made = Networks(SMALL)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.mul_(6.0**0.5 if parameter.ndim > 1 else 1.0)  # a standard deviation of 0.12
    return made


def workload(**changes: Any) -> Workload:
    """``SMALL`` with other values, gradients cleared."""
    work = Workload(replace(SMALL, **changes), networks())
    work.prepare("eager")
    return work


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies, by parameter name; parameters that have none are left out."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
