"""Shards weights, gradients and optimiser state over the processes with FSDP2; sums gradients, sharded or replicated.

A latent model runs forward many times before one backward: the prompt, every thought, the answer. Gathering per layer
would send all weights ``2 * (thoughts + 2)`` times for each micro-batch, and every process would have to run the same
number of forward passes. So weights are gathered once for each update:

    gathered   rollouts, replay, evaluation: every process has whole weights and computes without messages
    sharded    the update: gradients are reduce-scattered, each process updates its shard with its optimiser state

Only ``update`` and the construction of the optimiser use the sharded state. Replicated weights go through the same
functions, which then all-reduce gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dropout_grpo.distributed.gradients import add_up_gradients, with_gradients
from dropout_grpo.distributed.processes import copy_from_main, size, waiting_for_others


def start_together(model: nn.Module, *, sharded: bool) -> None:
    """Give all processes the weights of rank 0, replicated or sharded."""
    copy_from_main([*model.parameters(), *model.buffers()])
    if sharded:
        shard(model)


def shard(model: nn.Module) -> None:
    """Shard a model's weights over all processes, in place, and gather them. No effect in a run of one process.

    Each decoder layer is gathered by one message, and the weights outside the layers by another one.

    Args:
        model: must have equal weights in every process. It can no longer be copied.
    """
    if size() == 1:
        return
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in names]
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (size(),))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)  # losses are divided by totals over all processes already
        part.set_force_sum_reduction_for_comms(True)  # gloo has no division
    # FSDP takes the first module that runs for the root, and reduces gradients when the backward of the root ends.
    root: Any = model
    root.forward = lambda tensor: tensor * 1.0
    root.set_reshard_after_backward(False)
    root.set_requires_gradient_sync(False)
    with waiting_for_others(), torch.no_grad():
        root(torch.zeros(1, device=device))
    gather(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded over the processes."""
    return isinstance(model, FSDPModule)


def gather(model: nn.Module) -> None:
    """Give every process the whole weights."""
    with waiting_for_others():
        for part in _parts(model):
            part.unshard()


@contextmanager
def as_shards(model: nn.Module) -> Iterator[None]:
    """Inside, parameters are those that the optimiser updates: this process's shards, or all if replicated."""
    for part in _parts(model):
        part.reshard()
    try:
        yield
    finally:
        gather(model)


@contextmanager
def updating(model: nn.Module) -> Iterator[None]:
    """Sum gradients over all processes. Inside the block an optimiser may step, as in ``as_shards``."""
    if is_sharded(model):
        _reduce_scatter(model)
    else:
        add_up_gradients([p for p in model.parameters() if p.requires_grad])
    with as_shards(model):
        yield


def _reduce_scatter(model: nn.Module) -> None:
    """Sum the gathered gradients; each process keeps those of its shards."""
    device = next(model.parameters()).device
    with_gradients([p for p in model.parameters() if p.requires_grad])
    root: Any = model
    root.set_requires_gradient_sync(True)
    with waiting_for_others():
        root(torch.zeros(1, device=device, requires_grad=True)).sum().backward()
    root.set_requires_gradient_sync(False)


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor. All processes must call this, in the same order."""
    if not isinstance(tensor, DTensor):
        return tensor
    with waiting_for_others():
        return tensor.full_tensor()


def sharded_like(tensor: Tensor, example: Tensor) -> Tensor:
    """The tensor on the example's device; this process's shard of it if ``example`` is sharded and has its shape."""
    tensor = tensor.to(example.device)
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    return distribute_tensor(tensor, example.device_mesh, example.placements)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """``state_dict()`` of a model whose weights are gathered, without communication.

    FSDP's own ``state_dict`` would give shards.
    """
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        return model.state_dict()
    state: dict[str, Tensor] = {n: p.detach() for n, p in model.named_parameters(remove_duplicate=False)}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                state[f"{path}.{name}" if path else name] = buffer
    return state
