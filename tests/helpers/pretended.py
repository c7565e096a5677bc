"""A device ``pretended:0``, which makes mistakes visible on a CPU that only CUDA would show.

Its tensors compute on the CPU, so values can be compared and code that reads them runs. It refuses what CUDA refuses:
operations on tensors of both devices (a 0-dimensional CPU tensor may be an operand, and CPU indices may index), and,
while a graph is recorded, everything that waits for the device or copies between it and the host. ``Crossings`` counts
these. Graphs are those of ``fake_cuda``: a replay does the recorded operations again, and nothing else.

FakeTensorMode does not serve: its tensors have no values.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import backend_registration as backend
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from helpers.fake_cuda import FakeCUDA, patched_cuda

NAME = "pretended"
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "equal")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")

Crossings = Counter[str]
"""How often the host has waited for the device or data was copied between them, by operation."""


class _State:
    """What is shared by all tensors of the device while ``pretended`` is entered; else ``cuda`` is None."""

    cuda: FakeCUDA | None = None
    crossings: ClassVar[Crossings] = Counter()


class _Module(backend._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Hook(backend._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _State.cuda is not None  # other tests of this process see no accelerator


@cache
def _register() -> None:
    """Name the device; torch takes a name once per process."""
    backend._setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())


class Pretended(Tensor):
    """A tensor on the device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        wrapper = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        wrapper.held = held
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Pretended({self.held})"

    def tolist(self) -> Any:
        _cross("tolist")
        return self.held.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Tensor = Pretended(self.held.clone())
        memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        return memo[id(self)]

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return _run(func, args, kwargs, _leaves((*args, *kwargs.values()), []))


def _cross(what: str) -> None:
    _State.crossings[what] += 1
    if _State.cuda is not None and _State.cuda.recording is not None:
        raise RuntimeError(f"{what} while a graph is recorded")


def _leaves(branches: Iterable[Any], leaves: list[Tensor]) -> list[Tensor]:
    """All tensors of an operation's arguments; faster than the one of pytree."""
    for branch in branches:
        if isinstance(branch, Tensor):
            leaves.append(branch)
        elif isinstance(branch, list | tuple):
            _leaves(branch, leaves)
    return leaves


def _on_host(tree: Any) -> Any:
    """The tree with the values of the device's tensors."""
    if isinstance(tree, Pretended):
        return tree.held
    if isinstance(tree, list | tuple):
        return type(tree)(map(_on_host, tree))
    return {name: _on_host(branch) for name, branch in tree.items()} if isinstance(tree, dict) else tree


def _on_device(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree if isinstance(tree, Pretended) else Pretended(tree)
    return type(tree)(map(_on_device, tree)) if isinstance(tree, list | tuple) else tree


@cache
def _aliases(func: Any) -> bool:
    """Whether the operation gives a view, or changes what it gets."""
    return any(part.alias_info is not None for part in (*func._schema.arguments, *func._schema.returns))


def _histogram(counted: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Of integers, which torch counts on CUDA but not on a CPU."""
    return torch.histc(counted.double(), *args, **kwargs).to(counted.dtype)


def _run(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
    """Check and run an operation on tensors of the device, or one that makes them; ``tensors`` are all it takes."""
    here = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    wanted = kwargs.get("device")
    target = None if wanted is None else torch.device(wanted).type
    _check(func, args, target, here, [tensor for tensor in tensors if not isinstance(tensor, Pretended)])
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held_args, held_kwargs = _on_host(args), _on_host(kwargs)
    on_cpu = _histogram if func is torch.ops.aten.histc.default else func
    out = on_cpu(*held_args, **held_kwargs)
    if _State.cuda is not None and _State.cuda.recording is not None:
        _State.cuda.recording.add(on_cpu, held_args, held_kwargs, out)
    if not (here if target is None else target == NAME):
        return out
    out = _on_device(out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here and _aliases(func) else out


def _check(func: Any, args: Any, target: str | None, here: list[Tensor], host: list[Tensor]) -> None:
    """Refuse or count what crosses the border between host and device."""
    name = func._schema.name.split("::")[1]
    if name in _INDEXING:
        into_here = isinstance(args[0], Pretended)
        indices = [index for index in args[1] if index is not None]
        if not into_here and any(isinstance(index, Pretended) for index in indices):
            raise RuntimeError(f"indices on the device for a tensor on the host: {func}")
        if into_here and any(not isinstance(index, Pretended) for index in indices):
            _cross("index from the host")
        if any(index.dtype == torch.bool for index in indices):
            _cross("index by a mask")
    elif name in ("copy_", "_to_copy"):
        source = args[1] if name == "copy_" else args[0]
        from_here = isinstance(source, Pretended)
        to_here = (
            isinstance(args[0], Pretended) if name == "copy_" else (from_here if target is None else target == NAME)
        )
        if to_here != from_here and source.numel() > 0:
            _cross("copy to the device" if to_here else "copy to the host")
    elif here and any(tensor.dim() > 0 for tensor in host):
        raise RuntimeError(f"tensors on both devices: {func}")
    if name in _WAITING and here:
        _cross(name)


class _Factories(TorchDispatchMode):
    """Makes tensors on the device, such as those of ``torch.zeros(2, device="pretended")``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _leaves((*args, *kwargs.values()), [])
        ours = any(isinstance(tensor, Pretended) for tensor in tensors)
        if not ours and (device := kwargs.get("device")) is not None:
            ours = torch.device(device).type == NAME
        return _run(func, args, kwargs, tensors) if ours else func(*args, **kwargs)


def place(module: nn.Module) -> Any:
    """Put a module's weights on the device, tied ones tied, and return it. ``Module.to`` does not take subclasses."""
    _register()
    placed: dict[int, Tensor] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in placed:
                    new: Tensor = Pretended(tensor.detach().clone())
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, tensor.requires_grad)
                    placed[id(tensor)] = new
                store[name] = placed[id(tensor)]
    return module


@contextmanager
def pretended() -> Iterator[Crossings]:
    """Inside, tensors can be made on the device, and work on it is recorded as graphs; yields what has crossed."""
    _register()
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # torch.tensor(..., device=...) is a copy from the host that the mode sees
    # In this thread, since autograd starts its threads of each device once per process.
    one_thread = torch.autograd.set_multithreading_enabled(False)
    try:
        with patched_cuda(NAME) as cuda, one_thread, _Factories():
            _State.cuda, _State.crossings = cuda, Counter()
            yield _State.crossings
    finally:
        _State.cuda = None
        torch._C._set_only_lift_cpu_tensors(False)
