"""Runs a model on tensors without data, to count the bytes that the real run would take.

Shapes, dtypes, devices, autograd, autocast and views are the real ones, because torch's own code computes them, on its
device ``meta``. The weights are fake, and so is everything computed from them. Token ids, masks, positions and seeds
stay real, so code may look at them: ``bool(mask.all())`` has its real answer, which torch's ``FakeTensorMode`` cannot
give. What an operation returns is remembered by the shapes it is given, since layers are alike.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_META, _CPU = torch.device("meta"), torch.device("cpu")


class Fake(Tensor):
    """A tensor on the CPU, without data. ``twin`` is its twin on the device ``meta``, with the same storage size."""

    twin: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _known: ClassVar[dict[Any, Any]] = {}  # what an operation returns for these shapes, if it is no view
    _IN_PLACE: ClassVar[str] = "its first argument"

    @staticmethod
    def __new__(cls, twin: Tensor) -> "Fake":
        fake: Fake = torch.Tensor._make_wrapper_subclass(
            cls,
            twin.size(),
            strides=twin.stride(),
            storage_offset=twin.storage_offset(),
            dtype=twin.dtype,
            device=_CPU,
        )
        fake.twin = twin
        return fake

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Fake({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise NeedsData(f"{args[0]} has no data that could be read")
        kwargs = kwargs or {}
        key = (func, _key(args), _key(tuple(kwargs.items())))
        if (known := cls._known.get(key)) is not None:
            if known is cls._IN_PLACE:
                return args[0]
            shape, stride, dtype = known
            return Fake(torch.empty_strided(shape, stride, dtype=dtype, device=_META))
        given: dict[int, Tensor] = {}  # by the twin's id
        args, kwargs = _twin(args, given), _twin(kwargs, given)
        out = func(*args, **kwargs)
        if args and out is args[0]:
            cls._known[key] = cls._IN_PLACE
        elif isinstance(out, Tensor) and id(out) not in given:
            storages = {_storage(value)._cdata for value in _tensors([args, *kwargs.values()])}
            if out.untyped_storage()._cdata not in storages and out.untyped_storage().nbytes() == out.nbytes:
                cls._known[key] = (out.shape, out.stride(), out.dtype)
        return _faked(out, given)


class NeedsData(RuntimeError):
    """A model's code looks at numbers that are computed from its weights."""


# Functions of their own, since one that calls itself inside another function would hold its tensors in a circle.


def _twin(value: Any, given: dict[int, Tensor]) -> Any:
    """An argument with twins for tensors. ``given`` gets the tensors by the ids of their twins."""
    if isinstance(value, Tensor):
        inner = value.twin if isinstance(value, Fake) else value.to(_META)
        given[id(inner)] = value
        return inner
    if isinstance(value, torch.device):
        return _META
    if isinstance(value, dict):
        return {name: _twin(item, given) for name, item in value.items()}
    return type(value)([_twin(item, given) for item in value]) if type(value) in (list, tuple) else value


def _faked(value: Any, given: dict[int, Tensor]) -> Any:
    """A result with fake tensors for twins."""
    if isinstance(value, Tensor):
        same = given.get(id(value))  # an operation in place
        return Fake(value) if same is None else same
    return type(value)([_faked(item, given) for item in value]) if type(value) in (list, tuple) else value


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_key, value)) if isinstance(value, list | tuple) else (type(value), value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return (tensor.twin if isinstance(tensor, Fake) else tensor).untyped_storage()


class Ledger(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block, real or fake, and freed again.

    ``live`` is what exists now, ``peak`` the most that has existed at once.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[_storage(tensor)._cdata] = _storage(tensor)  # its views are no new memory
            if tensor.grad is not None:
                self._known[_storage(tensor.grad)._cdata] = _storage(tensor.grad)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Fake in types:
            out = Fake.__torch_dispatch__(func, types, args, kwargs)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = _storage(tensor)
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known[key] = weakref.ref(storage, self._freed(key, size))
                self.live += size
                self.peak = max(self.peak, self.live)
        return out

    def _freed(self, key: int, size: int) -> Callable[[object], None]:
        def callback(_: object) -> None:
            del self._known[key]
            self.live -= size

        return callback


@contextmanager
def fake_weights(model: nn.Module) -> Iterator[None]:
    """Give a model on a CPU, or on the device ``meta``, fake weights on the CPU inside the block."""
    made: dict[int, Tensor] = {}
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for holder in holders:
            for name, tensor in holder.items():
                if tensor is None or (holder is module._buffers and tensor.device != _META):
                    continue  # buffers are small, and stay as they are
                before.append((holder, name, tensor))
                if id(tensor) not in made:
                    inner = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
                    fake: Tensor = Fake(inner)
                    is_weight = holder is module._parameters
                    made[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_weight else fake
    try:
        for holder, name, tensor in before:
            holder[name] = made[id(tensor)]
        yield
    finally:
        for holder, name, tensor in before:
            holder[name] = tensor
