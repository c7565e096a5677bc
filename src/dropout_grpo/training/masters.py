"""bf16 weights with float32 masters, in the 4 bytes per parameter that the masters alone take.

A bf16 number is the upper half of a float32 number. So a master is kept as two halves: the weight that the model
computes with, which is the master rounded, and the 16 bits below it. Together they give the master bit by bit, and an
update changes the master, however small it is::

    master  1.1         3f8c cccd
    weight  1.1015625   3f8d              rounded to nearest, ties away from zero
    low bits            cccd              as a signed number, which is negative where the weight was rounded up

Gradients are accumulated in float32, so the number of micro-batches does not matter more than with float32 weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dropout_grpo.errors import UserError
from dropout_grpo.latent.graphs import forget_recordings

_LOW = "low_bits"
"""The attribute of a bf16 parameter that holds the lower halves of its masters, int16."""

_PIECE = 2**18
"""Elements that are halved or joined at once on a CPU, few enough for its cache."""

_PIECE_OF_A_GPU = 2**26
"""On a GPU, enough that an operation takes longer than its launch, and few beside a table of embeddings."""

_STEP = 2**25
"""Elements whose masters exist at once in an optimiser's step, unless one tensor has more."""


def halves(master: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded weights (bf16) and the low bits (int16) of float32 masters."""
    weight, low = torch.empty_like(master, dtype=torch.bfloat16), torch.empty_like(master, dtype=torch.int16)
    _halve(master, weight, low)
    return weight, low


def has_master(parameter: Tensor) -> bool:
    """Whether a weight is bf16 with a float32 master."""
    return hasattr(parameter, _LOW)


def weight_bytes(parameter: Tensor) -> int:
    """Bytes of a weight, with the low bits of its masters."""
    return parameter.nbytes + (parameter.numel() * 2 if has_master(parameter) else 0)


def gradient_bytes(parameter: Tensor) -> int:
    """Bytes of a weight's gradient: 4 per parameter of a bf16 weight with masters."""
    return parameter.numel() * (4 if has_master(parameter) else parameter.itemsize)


def master_of(parameter: Tensor) -> Tensor:
    """The float32 masters of a weight, as a new tensor; of a weight without low bits, the weight itself."""
    low: Tensor | None = getattr(parameter, _LOW, None)
    if low is None:
        return parameter.detach()
    master = torch.empty_like(low, dtype=torch.float32)
    for whole, upper, lower in _pieces(master.view(torch.int32), parameter.detach().view(torch.int16), low):
        whole.copy_(upper)
        whole.bitwise_left_shift_(16).add_(lower)
    return master


def set_master(parameter: Tensor, master: Tensor) -> None:
    """Store new float32 masters of a weight; of a weight without low bits, the weight itself."""
    low: Tensor | None = getattr(parameter, _LOW, None)
    if low is None:
        parameter.detach().copy_(master)
    else:
        _halve(master, parameter.detach(), low)


def _halve(master: Tensor, weight: Tensor, low: Tensor) -> None:
    for whole, upper, lower in _pieces(master.view(torch.int32), weight.view(torch.int16), low):
        lower.copy_(whole)  # keeps the lower 16 bits
        upper.copy_((whole + 0x8000).bitwise_right_shift_(16))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    size = _PIECE if tensors[0].device.type == "cpu" else _PIECE_OF_A_GPU
    return zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)


def halve(parameter: nn.Parameter, *, keep_low: bool = True) -> None:
    """Make a parameter bf16, with its masters' low bits beside it or without. Its gradient will be float32.

    A parameter that is bf16 already becomes its own masters, unless it has some.
    """
    weight, low = halves(master_of(parameter).float().contiguous())
    parameter.data = weight
    if keep_low:
        setattr(parameter, _LOW, low)
    if parameter.requires_grad:
        parameter.grad_dtype = torch.float32


def _join(parameter: nn.Parameter) -> None:
    master = master_of(parameter)
    delattr(parameter, _LOW)
    parameter.data = master


@contextmanager
def with_masters(model: nn.Module) -> Iterator[None]:
    """Inside the block a model's float32 weights are bf16, with masters. After it they are float32, the masters.

    Weights that are bf16 at the start become their own masters.

    Raises:
        UserError: a weight is neither float32 nor bf16, or this version of torch cannot accumulate gradients in another
            dtype than that of the weight.
    """
    parameters = list(model.parameters())
    if not hasattr(Tensor, "grad_dtype"):
        raise UserError(f"param_dtype bfloat16 needs torch 2.10 or later, and this is {torch.__version__}: update it.")
    if others := {p.dtype for p in parameters} - {torch.float32, torch.bfloat16}:
        raise UserError(f"param_dtype bfloat16 needs float32 weights, and the model has {others.pop()}: leave it out.")
    try:
        for parameter in parameters:
            halve(parameter)
        yield
    finally:
        for parameter in parameters:
            if has_master(parameter):  # not if memory ran out before
                _join(parameter)
        forget_recordings()  # graphs read the weights where they were


@contextmanager
def masters_as_weights(model: nn.Module) -> Iterator[None]:
    """Inside the block the weights are their float32 masters, to be saved. They take no more memory than before."""
    halved = [parameter for parameter in model.parameters() if has_master(parameter)]
    for parameter in halved:
        _join(parameter)
    try:
        yield
    finally:
        for parameter in halved:
            halve(parameter)
        if halved:
            forget_recordings()  # graphs read the weights where they were


class MasterOptimizer(Optimizer):
    """Another optimiser's steps on the masters of bf16 weights.

    Its parameters are the model's, with their gradients. The other optimiser's are stand-ins, which have masters for
    values during a step only, and a few at a time. The state is that of the other optimiser.

    Args:
        parameters: what is trained.
        build: makes the other optimiser from the stand-ins, which have the shapes of ``parameters``.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], build: Callable[[Sequence[nn.Parameter]], Optimizer]
    ) -> None:
        self._empty = torch.zeros(1, device=parameters[0].device)
        self._stand_ins = [nn.Parameter(self._empty.expand(parameter.shape)) for parameter in parameters]
        self._inner = build(self._stand_ins)
        own = {id(stand_in): parameter for stand_in, parameter in zip(self._stand_ins, parameters, strict=True)}
        groups = [{**group, "params": [own[id(p)] for p in group["params"]]} for group in self._inner.param_groups]
        super().__init__(groups, {})
        self._parts: list[list[tuple[nn.Parameter, nn.Parameter]]] = []
        for parameter, stand_in in zip(parameters, self._stand_ins, strict=True):
            if not self._parts or sum(p.numel() for p, _ in self._parts[-1]) + parameter.numel() > _STEP:
                self._parts.append([])
            self._parts[-1].append((parameter, stand_in))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})
        for part in self._parts:
            updated = [(parameter, stand_in) for parameter, stand_in in part if parameter.grad is not None]
            if not updated:
                continue
            for parameter, stand_in in updated:
                stand_in.data, stand_in.grad = master_of(parameter), parameter.grad
            self._inner.step()
            for parameter, stand_in in updated:
                set_master(parameter, stand_in.detach())
                stand_in.data, stand_in.grad = self._empty.expand(parameter.shape), None

    def state_dict(self) -> dict[str, Any]:
        """That of the other optimiser: the masters are in the model."""
        return self._inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._inner.load_state_dict(state_dict)
