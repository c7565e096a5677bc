"""A stand-in for CUDA graphs on a CPU: it records every tensor operation of a block, and the tensors it took and gave.

A replay does the recorded operations again, on those same tensors, and nothing else: no Python code, no hook, no
look-up of a weight by name. What the operations gave is overwritten with nonsense before, as it has no values on a GPU
while it is recorded, so nothing can be left over from an earlier time.

A recording that fails leaves behind what torch leaves: ``graph.__exit__`` raises another error, the side stream is
still the current one, and the allocator takes the recording for one that goes on.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dropout_grpo.latent import graphs


class FakeStream:
    def wait_stream(self, other: "FakeStream") -> None: ...


class FakeGraph:
    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []  # function, what it took, what it gave anew
        self.replays = 0

    def pool(self) -> object:
        return self._pool

    def add(self, function: Any, args: Any, kwargs: Any, outputs: Any) -> None:
        """An operation that has run."""
        taken = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        new = [tensor for tensor in tensors(outputs) if tensor.untyped_storage().data_ptr() not in taken]
        assert not new or len(new) == len(tensors(outputs)), f"{function} gives a view beside a new tensor"
        self.operations.append((function, args, kwargs, new))

    def replay(self) -> None:
        self.replays += 1
        self.spoil()
        for function, args, kwargs, outputs in self.operations:
            again = tensors(function(*args, **kwargs))
            for old, new in zip(outputs, again if outputs else [], strict=True):
                old.copy_(new)

    def spoil(self) -> None:
        for *_, outputs in self.operations:
            for tensor in outputs:
                tensor.fill_(torch.nan if tensor.is_floating_point() else 0)


class FakeCUDA:
    """What ``torch.cuda`` keeps: the current stream, the graph that is being recorded, and all graphs recorded."""

    def __init__(self) -> None:
        self.current = FakeStream()
        self.recording: FakeGraph | None = None
        self.graphs: list[FakeGraph] = []
        self.underway: set[object] = set()  # pools that the allocator believes to be recorded into
        self.uses: Counter[object] = Counter()  # recordings that hold each pool

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def record(self, graph: FakeGraph, *, pool: object, stream: FakeStream) -> Iterator[None]:
        assert pool not in self.underway, "already recording to mempool_id"
        assert not self.underway, "empty_cache while a recording goes on"
        before, self.current = self.current, stream
        self.underway.add(pool)
        self.uses[pool] += 1
        graph._pool, self.recording = pool, graph  # type: ignore[attr-defined]
        try:
            yield
        except Exception:
            graph.spoil()
            # Torch asks CUDA to end the recording. CUDA refuses, and torch does nothing more.
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            self.recording = None
        self.current = before
        self.underway.remove(pool)
        graph.spoil()
        self.graphs.append(graph)

    def end_allocation(self, device: int, pool: object) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def release(self, device: int, pool: object) -> None:
        self.uses[pool] -= 1


class Recorder(TorchDispatchMode):
    """Adds the operations on tensors of a CPU."""

    def __init__(self, cuda: FakeCUDA) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        if self.cuda.recording is not None:
            self.cuda.recording.add(func, args, kwargs, outputs)
        return outputs


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def patched_cuda(device: str) -> Iterator[FakeCUDA]:
    """Inside, ``torch.cuda`` is the stand-in, and models on ``device`` think and answer by recorded work."""
    cuda = FakeCUDA()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", lambda device: FakeStream())
        patch.setattr(torch.cuda, "current_stream", lambda device=None: cuda.current)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "stream", cuda.stream)
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        patch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        patch.setattr(torch.cuda, "graph", cuda.record)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_allocation, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", cuda.release, raising=False)
        patch.setitem(graphs.RECORDERS, device, graphs.CUDAGraphs)
        graphs.forget_recordings()
        graphs._side_stream.cache_clear()
        yield cuda
        graphs.forget_recordings()
        graphs._side_stream.cache_clear()


@contextmanager
def fake_cuda() -> Iterator[list[FakeGraph]]:
    """Inside, models on a CPU think and answer by recorded work; yields the graphs made."""
    with patched_cuda("cpu") as cuda, Recorder(cuda):
        yield cuda.graphs
