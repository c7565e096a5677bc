"""A model at weights theta + d, where d is a vector over all parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def flat_weights(model: nn.Module) -> Tensor:
    """All parameters of a model as one float64 vector [P]."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()


@contextmanager
def moved(model: nn.Module, step: Tensor) -> Iterator[None]:
    """Adds ``step`` [P] to the parameters while the block runs, then restores them bit for bit."""
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    parts = step.split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.add_(part.view_as(parameter).to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
