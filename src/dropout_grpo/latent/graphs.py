"""CUDA graphs of thinking and answering: recorded when a shape occurs for the second time, and replayed after that.

A latent step or an answer token consists of about a hundred small kernels, and launching them can take longer than
running them. A graph launches them all at once. ``LatentModel`` uses graphs if ``recordings_for`` allows it. Everything
else runs step by step, with the same results.

``torch.compile`` is not used: it does not guard on hooks, so a mask, which is a hook, could silently be left out. Here
the hooks run while the graph is recorded, and multiply by buffers that hold each batch's masks. Other hooks on the
model do not run when a graph is replayed.

Autocast: casts of weights to bf16 are recorded too, so each replay casts the current weights. Autocast caches a cast
until its outermost block ends. A cast made before a recording would be freed while the graph still reads it, and a cast
made during a recording has no values until a replay. So the cache is emptied before and after each recording.

A recording can fail: the model's forward pass copies numbers between host and device, or memory runs out. Batches of
that shape then run step by step for the rest of the process, after one warning per model.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from dropout_grpo.distributed.sharding import is_sharded
from dropout_grpo.exploration.base import Noise, OwnHooks
from dropout_grpo.latent.casts import forget_casts
from dropout_grpo.latent.decoding import DecodingStrategy, Generation, generate_eagerly
from dropout_grpo.latent.fixed_shape import AnsweringWork, BatchTensors, ThinkingWork, batch_tensors, runs_on_buffers
from dropout_grpo.latent.lora.checkpoint import has_adapter
from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.state import LatentState

MOST_STEPS = 64
"""Maximum number of thoughts or answer tokens in a graph, since its size and the cost of recording grow with them."""
MOST_SHAPES = 32
"""Number of shapes kept per model, the most recently used ones. Each recorded shape holds buffers for a batch."""

Work = ThinkingWork | AnsweringWork


class Recording(Protocol):
    """Does a work again after its buffers have been loaded."""

    def replay(self, model: Recurrence) -> None: ...


class CUDAGraphs:
    """Work recorded as CUDA graphs, one per block.

    The work first runs once outside a graph, as torch requires, so that libraries are initialised.

    Args:
        model: the model that does the work.
        work: what is recorded.
        pool: torch's handle of the memory that the graphs use, shared with the model's other graphs: only one of them
            runs at a time, and its results are read before the next one runs. New memory when None.

    Raises:
        RuntimeError: the work cannot be recorded, or memory runs out. Streams, the autocast cache and the allocator are
            left as they were; no further graph may use ``pool``.
    """

    def __init__(self, model: Recurrence, work: Work, pool: Any = None) -> None:
        self._work, self.graphs = work, []  # type: tuple[Work, list[torch.cuda.CUDAGraph]]
        self.pool = torch.cuda.graph_pool_handle() if pool is None else pool
        stream, current = _side_stream(model.device), torch.cuda.current_stream(model.device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                for _ in work.run(model):
                    pass
        finally:  # the side stream may still write to buffers that are freed when this fails
            current.wait_stream(stream)
        forget_casts()
        _clear_workspaces()
        try:
            with torch.cuda.stream(current):  # torch leaves the side stream current when a recording fails
                run = work.run(model)
                for _ in range(work.blocks):
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, pool=self.pool, stream=stream):
                        next(run)
                    self.graphs.append(graph)
                run.close()  # now another recording may overwrite the data that blocks pass on
        except RuntimeError:
            _end_allocation(model.device, self.pool)
            raise
        finally:
            forget_casts()
            _clear_workspaces()

    def replay(self, model: Recurrence) -> None:
        """Replay the blocks until all rows have ended."""
        for i, graph in enumerate(self.graphs):
            if i > 0 and not self._work.go_on():
                break
            graph.replay()


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _clear_workspaces() -> None:
    """Free cuBLAS's workspaces, before the first recording and after the last one.

    A recorded product writes to the workspace of its stream, and all graphs are recorded on one stream. Since torch
    2.13 the end of one graph frees this workspace. If it is allocated inside a recording, it lies in the graphs' pool,
    whose memory no other tensor gets while one of them is left.
    """
    getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()  # a build without CUDA has none


def _end_allocation(device: torch.device, pool: Any) -> None:
    """Tell the allocator that a failed recording has ended.

    ``capture_end`` tells it only after CUDA has ended the recording without an error. Else every later ``empty_cache``
    and every allocation that needs it would fail an assertion.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:  # it knows
        return
    torch._C._cuda_releasePool(index, pool)


RECORDERS: dict[str, Callable[[Recurrence, Work, Any], Recording]] = {"cuda": CUDAGraphs}
"""What records a work, by type of device; other devices have nothing. The last argument is ``pool``."""


class NotRecorded(Enum):
    """A shape without a graph."""

    SEEN_ONCE = "has occurred once, and is recorded when it occurs again"
    GIVEN_BACK = "its graph was given back when memory ran out"
    STEP_BY_STEP = "is not recorded, since that has failed"


class Recordings:
    """The shapes that have occurred for one model, and their graphs."""

    def __init__(self) -> None:
        self._shapes: OrderedDict[Hashable, tuple[Work, Recording] | NotRecorded] = OrderedDict()
        self._closed: set[Any] = set()  # pools that a recording has failed in
        self._warned = False

    def __len__(self) -> int:
        """Number of recorded shapes."""
        return len(self._recorded())

    def give_back(self) -> bool:
        """Free all graphs; their shapes run step by step until ``allow_again``. False if there were none."""
        recorded = self._recorded()
        self._shapes.update(dict.fromkeys(recorded, NotRecorded.GIVEN_BACK))
        return bool(recorded)

    def allow_again(self) -> None:
        """Record the shapes whose graphs were given back when they occur again."""
        for key, entry in self._shapes.items():
            if entry is NotRecorded.GIVEN_BACK:
                self._shapes[key] = NotRecorded.SEEN_ONCE

    def _recorded(self) -> dict[Hashable, tuple[Work, Recording]]:
        return {key: entry for key, entry in self._shapes.items() if not isinstance(entry, NotRecorded)}

    def think(self, model: Recurrence, state: LatentState, steps: int, noise: Noise | None) -> LatentState:
        """As ``LatentModel.think``."""
        moments = [("latent", state.latent_step + i) for i in range(steps)]
        tensors = batch_tensors(state, noise, moments, steps)
        key = ("think", steps, state.latent_step)
        work = self._done(model, key, tensors, lambda: ThinkingWork(tensors, steps, state.latent_step))
        return work.result(state) if isinstance(work, ThinkingWork) else model.think_eagerly(state, steps, noise)

    def generate(
        self,
        model: Recurrence,
        state: LatentState,
        max_new_tokens: int,
        strategy: DecodingStrategy,
        noise: Noise | None,
    ) -> Generation:
        """As ``LatentModel.generate``."""
        tensors = batch_tensors(state, noise, [("answer", 0)], max_new_tokens, strategy)
        rule = (type(strategy), strategy.temperature, *(getattr(strategy, name, None) for name in ("masks", "top_p")))
        key = ("generate", max_new_tokens, rule, model.tokens)
        work = self._done(model, key, tensors, lambda: AnsweringWork(model, tensors, state, strategy, max_new_tokens))
        if isinstance(work, AnsweringWork):
            return work.result()
        return generate_eagerly(model, state, max_new_tokens, strategy=strategy, noise=noise)

    def _done(self, model: Recurrence, key: Hashable, tensors: BatchTensors, make: Callable[[], Work]) -> Work | None:
        """Do the work on these tensors; return None if batches of their shape run step by step."""
        device = model.device.type
        precision = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        # Buffers made in inference mode can be written only in it.
        key = (key, tensors.layout(), precision, torch.is_inference_mode_enabled(), _weights(model))
        entry = self._shapes.get(key)
        if entry is None:
            self._remember(key, NotRecorded.SEEN_ONCE)
            return None
        if entry is NotRecorded.SEEN_ONCE:
            entry = self._record(model, make)
        elif not isinstance(entry, NotRecorded):
            entry[0].buffers.load(tensors)
        self._remember(key, entry)
        if isinstance(entry, NotRecorded):
            return None
        entry[1].replay(model)
        return entry[0]

    def _record(self, model: Recurrence, make: Callable[[], Work]) -> tuple[Work, Recording] | NotRecorded:
        """The work and its recording, or ``STEP_BY_STEP`` if it cannot be recorded."""
        graphs = [recording for _, recording in self._recorded().values() if isinstance(recording, CUDAGraphs)]
        pool = next((each.pool for each in graphs if each.pool not in self._closed), None)
        try:
            work = make()
            return work, RECORDERS[model.device.type](model, work, pool)
        except RuntimeError as error:
            reason = _first(error)
        # From here on the traceback no longer holds the tensors of the failed recording.
        self._closed.add(pool)
        if not self._warned:
            warnings.warn(
                f"{model.name}: a CUDA graph cannot be recorded ({reason}); batches of this shape run step by step, "
                "with the same results but more slowly.",
                stacklevel=2,
            )
        self._warned = True
        return NotRecorded.STEP_BY_STEP

    def _remember(self, key: Hashable, entry: tuple[Work, Recording] | NotRecorded) -> None:
        self._shapes[key] = entry
        self._shapes.move_to_end(key)
        while len(self._shapes) > MOST_SHAPES:
            self._shapes.popitem(last=False)


_RECORDINGS: WeakKeyDictionary[Recurrence, Recordings] = WeakKeyDictionary()


def recordings_for(
    model: Recurrence, state: LatentState, steps: int, strategy: DecodingStrategy | None, noise: Noise | None = None
) -> Recordings | None:
    """The model's recordings if graphs are used, None if steps run one by one.

    Graphs are used on CUDA, without gradients, for 1 to ``MOST_STEPS`` thoughts or answer tokens, with a strategy that
    works on buffers, and for models whose rows share prompts and whose forward pass copies no numbers between host and
    device. transformers marks such architectures with the private attribute ``_can_compile_fullgraph``; in versions
    without it, steps run one by one. Models with a dynamic RoPE copy numbers although they are marked, and so do
    mixtures of experts, whose products need the experts' shares on the host unless the weights are bf16. Graphs are not
    used with an adapter, which is switched off and on between calls (for the KL's reference), nor with noise that has
    hooks of its own, which has no buffers.
    """
    if state.hidden.device.type not in RECORDERS or torch.is_grad_enabled() or not 1 <= steps <= MOST_STEPS:
        return None
    inner = model.model
    if state.prefix is None or (strategy is not None and not runs_on_buffers(strategy)):
        return None
    if (
        not getattr(inner, "_can_compile_fullgraph", False)
        or _has_experts(inner)
        or has_adapter(inner)
        or is_sharded(model)  # each update gathers the weights to another place
        or isinstance(noise, OwnHooks)
        or any(rope.get("rope_type") == "dynamic" for rope in ropes(inner.config))
    ):
        return None
    return _RECORDINGS.setdefault(model, Recordings())


def _has_experts(model: PreTrainedModel) -> bool:
    """Whether a model's experts are multiplied by an implementation of transformers' choice."""
    can_choose: Callable[[], bool] | None = getattr(model, "_can_set_experts_implementation", None)
    return can_choose is not None and can_choose()


@contextmanager
def step_by_step() -> Iterator[None]:
    """Use no graphs inside the block, for comparisons."""
    recorders = dict(RECORDERS)
    RECORDERS.clear()
    try:
        yield
    finally:
        RECORDERS.update(recorders)


def forget_recordings() -> None:
    """Free all graphs and their buffers, and forget which shapes have occurred."""
    _RECORDINGS.clear()


def give_back_recordings() -> bool:
    """Free all graphs and their buffers, since memory has run out. See ``allow_recordings_again``.

    Returns:
        False if there were none, so that nothing is gained by another attempt.
    """
    return any([recordings.give_back() for recordings in _RECORDINGS.values()])  # noqa: C419  # of every model: no early end


def allow_recordings_again() -> None:
    """Record the shapes whose graphs were given back when they occur again: for smaller batches, which leave room."""
    for recordings in _RECORDINGS.values():
        recordings.allow_again()


def ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rotary position embeddings of a model: one for all layers, or one for each kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [one for one in rope.values() if isinstance(one, dict)]


def _weights(model: Recurrence) -> Hashable:
    """The addresses from which a graph reads weights. An optimiser does not change them; ``to`` may."""
    return tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))


def _first(error: BaseException) -> str:
    """The first line of the error that led to this one: torch raises another one when it ends a failed recording."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
