"""The optimiser, its schedule, and the one place where an update happens."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dropout_grpo.config.choices import Schedule
from dropout_grpo.distributed.processes import is_main
from dropout_grpo.distributed.sharding import sharded_like, updating, whole
from dropout_grpo.errors import LESS_MEMORY, UserError, out_of_memory_is
from dropout_grpo.training.adamw_8bit import BLOCK, EIGHT_BIT, AdamW8bit
from dropout_grpo.training.masters import MasterOptimizer, has_master
from dropout_grpo.training.muon import MuonAdamW


class NonFinite(UserError):
    """A loss, gradient, weight or logit that is NaN or infinite."""


NO_ROOM = f"out of memory in the optimiser's step; the first one allocates its state. {LESS_MEMORY}"


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    matrices: Sequence[nn.Parameter] = (),
    eight_bit: Sequence[nn.Parameter] = (),
) -> Optimizer:
    """AdamW over the trainable parameters; one-dimensional ones (biases, norms) have no weight decay.

    The parameters in ``matrices`` are trained with Muon instead. Of bf16 weights the masters are trained.
    If there are parameters in ``eight_bit``, AdamW is bitsandbytes', and their moments take one byte each.

    Raises:
        UserError: bitsandbytes is not installed, which ``eight_bit`` needs.
    """
    apart, small = ({id(p) for p in some} for some in (matrices, eight_bit))
    trainable = [p for p in parameters if p.requires_grad]

    def build(weights: Sequence[nn.Parameter]) -> Optimizer:
        muons = [w for p, w in zip(trainable, weights, strict=True) if id(p) in apart]
        others = [w for p, w in zip(trainable, weights, strict=True) if id(p) not in apart]
        groups = [
            {"params": [w for w in others if w.ndim > 1], "weight_decay": weight_decay},
            {"params": [w for w in others if w.ndim <= 1], "weight_decay": 0.0},
        ]
        if muons:
            return MuonAdamW(muons, groups, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas)
        if eight_bit:
            few = [w for p, w in zip(trainable, weights, strict=True) if id(p) in small]
            return AdamW8bit(groups, few, learning_rate=learning_rate, betas=betas)
        # fused runs one kernel per parameter; it exists on CPU and CUDA
        return AdamW(groups, lr=learning_rate, betas=betas, fused=True)

    return MasterOptimizer(trainable, build) if any(map(has_master, trainable)) else build(trainable)


def build_schedule(
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    warmup_steps: int,
    updates: int,
    done: int = 0,
    min_lr_rate: float = 0.0,
) -> LambdaLR:
    """Learning rate over ``updates``, of which ``done`` are done: a linear warm-up, then constant, or a decay.

    The decay ends at ``min_lr_rate`` times the peak (the name is that of transformers' ``cosine_with_min_lr``).
    """

    def factor(update: int) -> float:
        update += done
        if update < warmup_steps:
            return (update + 1) / (warmup_steps + 1)
        progress = min(1.0, (update - warmup_steps) / max(1, updates - warmup_steps))
        if schedule == "constant":
            return 1.0
        left = 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return min_lr_rate + (1.0 - min_lr_rate) * left if min_lr_rate else left

    return LambdaLR(optimizer, factor)


def last_good_is(last_good: str) -> str:
    """The last good checkpoint and the remedy, to end the message of a ``NonFinite``."""
    return f"The last good checkpoint is {last_good}. Start a new run with a lower learning rate or a longer warm-up."


def update(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LambdaLR,
    *,
    loss: float,
    max_grad_norm: float,
    where: str,
    last_good: str,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Sum the gradients over all processes, clip them, step, advance the schedule and clear the gradients.

    Args:
        model: holds the gradients of this process.
        optimizer: optimiser of the model's parameters.
        schedule: schedule of the optimiser.
        loss: the loss over all processes.
        max_grad_norm: gradients are clipped to this norm.
        where: seed and step, for messages.
        last_good: the checkpoint to return to, for messages.
        around: a context for the step itself, after the gradients are clipped and before they are cleared.

    Returns:
        The gradient norm before clipping, the same in all processes.

    Raises:
        NonFinite: the loss or the gradient is not finite; no weight has been changed. Raised in all processes.
        UserError: memory runs out. The first step allocates the optimiser's state.
    """
    with out_of_memory_is(NO_ROOM), updating(model):
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True))
        norm = float(total)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFinite(f"{where}: loss {loss}, gradient norm {norm}. {last_good_is(last_good)}")
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, total, foreach=True)
        with around():
            optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def optimizer_tensors(optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's whole state as named tensors, for safetensors: ``{parameter}.{exp_avg|exp_avg_sq|step}``
    for AdamW.

    All processes must call this, since a sharded state is gathered, tensor by tensor. Only rank 0 gets what was
    sharded, on the CPU: no GPU has room for all of it.
    """
    tensors = {}
    for i, entry in optimizer.state_dict()["state"].items():
        for name, tensor in entry.items():
            gathered = whole(tensor)
            if gathered is tensor:
                tensors[f"{i}.{name}"] = tensor
            elif is_main():
                tensors[f"{i}.{name}"] = gathered.cpu()
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """The inverse of ``optimizer_tensors`` for an optimiser over the same parameters in the same order.

    Args:
        optimizer: gets the state.
        tensors: by name. Each is taken to its parameter's device, or sharded like it, before the next one is read.

    Raises:
        UserError: the tensors are those of another optimiser.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    loaded = optimizer.state_dict()
    loaded["state"] = {}
    for key, tensor in tensors:
        number, _, name = key.partition(".")
        if not (number.isdecimal() and int(number) < len(parameters) and name):
            raise UserError(f"{key!r} does not belong to the state of an optimiser of {len(parameters)} parameters.")
        expected = _state_shape(name, parameters[int(number)])
        if tensor.shape != expected or not (tensor.is_floating_point() or name in EIGHT_BIT):
            raise UserError(
                f"{key} is {tensor.dtype} of shape {list(tensor.shape)}, not floating point of shape {list(expected)}."
            )
        placed = tensor if name == "step" else sharded_like(tensor, parameters[int(number)])
        loaded["state"].setdefault(int(number), {})[name] = placed
    optimizer.load_state_dict(loaded)


def _state_shape(name: str, parameter: Tensor) -> torch.Size:
    if name == "step":
        return torch.Size(())
    return torch.Size((math.ceil(parameter.numel() / BLOCK),)) if name.startswith("absmax") else parameter.shape
