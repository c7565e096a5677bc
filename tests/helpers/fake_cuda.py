"""A stand-in for CUDA graphs on a CPU: it records every tensor operation of a block, and the tensors it took and gave.

A replay does the recorded operations again, on those same tensors, and nothing else: no Python code, no hook, no
look-up of a weight by name. What the operations gave is overwritten with nonsense before, as it has no values on a GPU
while it is recorded, so nothing can be left over from an earlier time.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dropout_grpo.latent.fast import graphs


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None: ...


class FakeGraph:
    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []  # function, what it took, what it gave anew
        self.replays = 0

    def pool(self) -> object:
        return self._pool

    def replay(self) -> None:
        self.replays += 1
        self._spoil()
        for function, args, kwargs, given in self.operations:
            again = tensors(function(*args, **kwargs))
            for old, new in zip(given, again if given else [], strict=True):
                old.copy_(new)

    def _spoil(self) -> None:
        for *_, given in self.operations:
            for tensor in given:
                tensor.fill_(torch.nan if tensor.is_floating_point() else 0)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = func(*args, **kwargs)
        taken = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        new = [tensor for tensor in tensors(given) if tensor.untyped_storage().data_ptr() not in taken]
        assert not new or len(new) == len(tensors(given)), f"{func} gives a view beside a new tensor"
        self.graph.operations.append((func, args, kwargs, new))
        return given


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def fake_cuda() -> Iterator[list[FakeGraph]]:
    """Inside, models on a CPU think and answer by recorded work; yields the graphs made."""
    made: list[FakeGraph] = []

    @contextmanager
    def record(graph: FakeGraph, *, pool: object, stream: FakeStream) -> Iterator[None]:
        graph._pool = pool
        with _Recorder(graph):
            yield
        graph._spoil()
        made.append(graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", lambda device: FakeStream())
        patch.setattr(torch.cuda, "current_stream", lambda device: FakeStream())
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        patch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        patch.setattr(torch.cuda, "graph", record)
        patch.setitem(graphs.PLAYERS, "cpu", graphs.Recorded)
        graphs.forget_recordings()
        yield made
        graphs.forget_recordings()
