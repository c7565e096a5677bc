"""Gradients as vectors over all parameters of a model. P counts parameters."""

import torch
from torch import Tensor, nn


def flat_gradient(value: Tensor, model: nn.Module) -> Tensor:
    """The gradient of a scalar, float64 [P]; 0 for parameters that it does not depend on."""
    parameters = list(model.parameters())
    parts = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]).double()


def flat_gradients(values: Tensor, model: nn.Module) -> Tensor:
    """The gradient of every entry of ``values``, float64 [*values.shape, P], in one batched backward pass."""
    units = torch.eye(values.numel(), dtype=values.dtype).view(-1, *values.shape)
    parameters = list(model.parameters())
    parts = torch.autograd.grad(
        values, parameters, units, is_grads_batched=True, allow_unused=True, materialize_grads=True
    )
    rows = torch.cat([part.flatten(1) for part in parts], dim=1)  # [entries, P]
    return rows.view(*values.shape, -1).double()


def relative(difference: Tensor, to: Tensor) -> float:
    """Length of ``difference`` in units of the length of ``to``."""
    return float(difference.norm() / to.norm())
