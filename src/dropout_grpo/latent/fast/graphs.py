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
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import clear_autocast_cache
from transformers import PreTrainedConfig

from dropout_grpo.distributed.sharding import is_sharded
from dropout_grpo.exploration.base import ChangesWeights, Noise
from dropout_grpo.latent.fast.static import Answers, Thoughts
from dropout_grpo.latent.fast.static_inputs import Given, given_by, is_known
from dropout_grpo.latent.generation import Generation, generate_eagerly
from dropout_grpo.latent.lora.checkpoint import has_adapter
from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.sampling import Chooser
from dropout_grpo.latent.state import LatentState

MOST_STEPS = 64
"""Maximum number of thoughts or answer tokens in a graph, since its size and the cost of recording grow with them."""
MOST_SHAPES = 32
"""Number of shapes kept per model, the most recently used ones. Each recorded shape holds buffers for a batch."""

Work = Thoughts | Answers


class Player(Protocol):
    """Runs a work after its buffers have been loaded."""

    def play(self, model: Recurrence) -> None: ...


class Recorded:
    """Work recorded as CUDA graphs, one per block.

    The graphs share their memory with those of ``neighbor``: only one graph runs at a time, and its results are read
    before the next one runs. The work first runs once outside a graph, as torch requires, so that libraries are
    initialised.
    """

    def __init__(self, model: Recurrence, work: Work, neighbor: "Recorded | None") -> None:
        self._work, self.graphs = work, []  # type: tuple[Work, list[torch.cuda.CUDAGraph]]
        pool = neighbor.graphs[0].pool() if neighbor is not None else torch.cuda.graph_pool_handle()
        stream, current = _side_stream(model.device), torch.cuda.current_stream(model.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in work.run(model):
                pass
        current.wait_stream(stream)
        clear_autocast_cache()
        try:
            run = work.run(model)
            for _ in range(work.blocks):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    next(run)
                self.graphs.append(graph)
            run.close()  # now another recording may overwrite the data that blocks pass on
        finally:
            clear_autocast_cache()

    def play(self, model: Recurrence) -> None:
        """Replay the blocks until all rows have ended."""
        for i, graph in enumerate(self.graphs):
            if i > 0 and not self._work.go_on():
                break
            graph.replay()


@lru_cache(maxsize=8)
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


PLAYERS: dict[str, Callable[[Recurrence, Work, "Recorded | None"], Player]] = {"cuda": Recorded}
"""Players of work with a fixed shape, by type of device; other devices have none."""


class Recordings:
    """The shapes that have occurred for one model, and their graphs."""

    def __init__(self) -> None:
        self._met: OrderedDict[Hashable, tuple[Work, Player] | None] = OrderedDict()

    def think(self, model: Recurrence, state: LatentState, steps: int, noise: Noise | None) -> LatentState:
        """As ``LatentModel.think``."""
        moments = [("latent", state.latent_step + i) for i in range(steps)]
        given = given_by(state, noise, moments, steps)
        key = ("think", steps, state.latent_step)
        work = self._done(model, key, given, lambda: Thoughts(given, steps, state.latent_step))
        return work.result(state) if isinstance(work, Thoughts) else model.think_eagerly(state, steps, noise)

    def generate(
        self, model: Recurrence, state: LatentState, max_new_tokens: int, chooser: Chooser, noise: Noise | None
    ) -> Generation:
        """As ``LatentModel.generate``."""
        given = given_by(state, noise, [("answer", 0)], max_new_tokens, chooser)
        rule = (type(chooser), chooser.temperature, *(getattr(chooser, name, None) for name in ("masks", "top_p")))
        key = ("generate", max_new_tokens, rule, model.tokens)
        work = self._done(model, key, given, lambda: Answers(model, given, state, chooser, max_new_tokens))
        if isinstance(work, Answers):
            return work.result()
        return generate_eagerly(model, state, max_new_tokens, chooser=chooser, noise=noise)

    def _done(self, model: Recurrence, key: Hashable, given: Given, make: Callable[[], Work]) -> Work | None:
        """Run the work on the given inputs; return None if their shape has not occurred before."""
        device = model.device.type
        precision = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        key = (key, given.layout(), precision, _weights(model))
        if key not in self._met:
            self._remember(key, None)
            return None
        found = self._met[key]
        if found is None:
            neighbor = next((player for _, player in filter(None, self._met.values())), None)
            work = make()
            found = (work, PLAYERS[device](model, work, neighbor if isinstance(neighbor, Recorded) else None))
        else:
            found[0].given.load(given)
        self._remember(key, found)
        found[1].play(model)
        return found[0]

    def _remember(self, key: Hashable, found: tuple[Work, Player] | None) -> None:
        self._met[key] = found
        self._met.move_to_end(key)
        while len(self._met) > MOST_SHAPES:
            self._met.popitem(last=False)


_RECORDINGS: WeakKeyDictionary[Recurrence, Recordings] = WeakKeyDictionary()


def recordings_for(
    model: Recurrence, state: LatentState, steps: int, chooser: Chooser | None, noise: Noise | None = None
) -> Recordings | None:
    """The model's recordings if graphs are used, None if steps run one by one.

    Graphs are used on CUDA, without gradients, for 1 to ``MOST_STEPS`` thoughts or answer tokens, with a chooser that
    works on buffers, and for models whose rows share prompts and whose forward pass copies no numbers between host and
    device. transformers marks such architectures with the private attribute ``_can_compile_fullgraph``; in versions
    without it, steps run one by one. Models with a dynamic RoPE copy numbers although they are marked. Graphs are not
    used with an adapter, which is switched off and on between calls (for the KL's reference), nor with noise that
    changes weights, which has no buffers.
    """
    if state.hidden.device.type not in PLAYERS or torch.is_grad_enabled() or not 1 <= steps <= MOST_STEPS:
        return None
    inner = model.model
    if state.prefix is None or (chooser is not None and not is_known(chooser)):
        return None
    if (
        not getattr(inner, "_can_compile_fullgraph", False)
        or has_adapter(inner)
        or is_sharded(model)  # each update gathers the weights to another place
        or isinstance(noise, ChangesWeights)
        or any(rope.get("rope_type") == "dynamic" for rope in ropes(inner.config))
    ):
        return None
    return _RECORDINGS.setdefault(model, Recordings())


@contextmanager
def step_by_step() -> Iterator[None]:
    """Use no graphs inside the block, for comparisons."""
    players = dict(PLAYERS)
    PLAYERS.clear()
    try:
        yield
    finally:
        PLAYERS.update(players)


def forget_recordings() -> None:
    """Free all graphs and their buffers, for example when memory runs out."""
    _RECORDINGS.clear()


def ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rotary position embeddings of a model: one for all layers, or one for each kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [one for one in rope.values() if isinstance(one, dict)]


def _weights(model: Recurrence) -> Hashable:
    """The addresses from which a graph reads weights. An optimiser does not change them; ``to`` may."""
    return tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
