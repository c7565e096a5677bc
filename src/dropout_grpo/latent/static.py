"""Thinking and answering as work of one fixed shape, in places of memory that stay: what a CUDA graph can record.

The verbs are the engine's own; what differs is what they are given. Inputs are copied to buffers (``Given``), the own
keys and values of a row are written into room made beforehand (``RoomLayer``), and rows that have ended go on, their
tokens masked out. Nothing is read back to the host inside a block of work, so a block does the same whether it is run
or recorded and replayed. ``graphs.py`` decides when.

Shapes: B rows, G prompts, S prompt positions, T own positions, N key heads, E head size, D width, F features of a site.
"""

from collections.abc import Generator, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache

from dropout_grpo.exploration.base import Noise
from dropout_grpo.latent.attention import OwnLayer, Prefix, cache_tensors, own_cache
from dropout_grpo.latent.generation import Generation, blank, cut, next_token
from dropout_grpo.latent.sampling import AverageOverMasks, Chooser, Greedy, Sample
from dropout_grpo.latent.state import LatentState

if TYPE_CHECKING:
    from dropout_grpo.latent.model import LatentModel

BLOCK = 4
"""Answer tokens in a block of work; only between blocks is it asked whether all rows have ended."""
PROMPT_BUCKET = 32
"""Prompts are widened to a multiple of this many positions, so that shapes come again."""

Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """All tensors that a piece of work reads, the weights apart.

    Attributes:
        hidden: [B, 1, D].
        next_position: int64 [B, 1].
        own: keys and values of each layer, [B, N, T, E]; empty where rows have no positions of their own yet.
        keys: of the prompts, a layer each, [G, N, S, E] with S a multiple of ``PROMPT_BUCKET``.
        values: likewise.
        padding: added to the scores of the prompts' positions, [G, 1, 1, S].
        factors: the noise by phase, step and site, [B, 1, F].
        seeds: of a chooser that draws, int64 [B].
    """

    hidden: Tensor
    next_position: Tensor
    own: tuple[tuple[Tensor, Tensor], ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    padding: Tensor
    factors: Mapping[Place, Tensor]
    seeds: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Each once: masks that are held are the same tensor at every step."""
        return list({id(tensor): tensor for tensor in self._references()}.values())

    def buffers(self) -> "Given":
        """A copy at places of its own."""
        copies = {id(tensor): tensor.clone() for tensor in self.tensors()}

        def copy(tensor: Tensor) -> Tensor:
            return copies[id(tensor)]

        return Given(
            hidden=copy(self.hidden),
            next_position=copy(self.next_position),
            own=tuple((copy(key), copy(value)) for key, value in self.own),
            keys=tuple(map(copy, self.keys)),
            values=tuple(map(copy, self.values)),
            padding=copy(self.padding),
            factors={place: copy(factor) for place, factor in self.factors.items()},
            seeds=None if self.seeds is None else copy(self.seeds),
        )

    def load(self, other: "Given") -> None:
        """Into these buffers what is in others of the same ``layout``."""
        for buffer, tensor in zip(self.tensors(), other.tensors(), strict=True):
            buffer.copy_(tensor)

    def layout(self) -> Hashable:
        """Shapes, dtypes, places of the noise, and which of them share a tensor."""
        numbers = {id(tensor): number for number, tensor in enumerate(self.tensors())}
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in self.tensors())
        return shapes, tuple(numbers[id(t)] for t in self._references()), tuple(self.factors), len(self.own)

    def _references(self) -> Iterator[Tensor]:
        yield from (self.hidden, self.next_position, self.padding, *self.keys, *self.values)
        for pair in self.own:
            yield from pair
        yield from self.factors.values()
        if self.seeds is not None:
            yield self.seeds


def given_by(
    state: LatentState, noise: Noise | None, moments: list[tuple[str, int]], chooser: Chooser | None = None
) -> Given:
    """What a state, the noise at these moments (phase and step) and a chooser give to work of a fixed shape.

    Args:
        state: its rows share prompts.
        noise: drawn here, outside of the work: a graph would hold on to whatever tensors its drawing has cached.
        moments: at which the work asks for noise.
        chooser: one that ``is_known``.
    """
    prefix = state.prefix
    assert prefix is not None, "the rows have no prompt in common"
    length = prefix.keys[0].shape[-2]
    room = -length % PROMPT_BUCKET
    padding = prefix.padding
    if padding is None:
        padding = prefix.keys[0].new_zeros(prefix.groups, 1, 1, length)
    factors = {} if noise is None else {m: noise.factors(*m) for m in moments}
    return Given(
        hidden=state.hidden,
        next_position=state.next_position,
        own=tuple(cache_tensors(state.cache)),
        keys=tuple(_widened(key, room) for key in prefix.keys),
        values=tuple(_widened(value, room) for value in prefix.values),
        padding=nn.functional.pad(padding, (room, 0), value=torch.finfo(padding.dtype).min),
        factors={(phase, step, site): f for (phase, step), found in factors.items() for site, f in found.items()},
        seeds=chooser.seeds if isinstance(chooser, Sample) else None,
    )


class Thoughts:
    """``steps`` latent steps, in one block.

    Args:
        given: of the first batch; later ones are loaded into its buffers.
        steps: thoughts.
        latent_step: thoughts that there were before.
    """

    blocks = 1

    def __init__(self, given: Given, steps: int, latent_step: int) -> None:
        self.given, self.steps, self.latent_step = given.buffers(), steps, latent_step
        self._after: LatentState | None = None

    def run(self, model: "LatentModel") -> Generator[None, None, None]:
        """Each ``next`` is a block of work on what is in the buffers."""
        state = _state(self.given, self.steps, self.latent_step)
        self._after = model.think_eagerly(state, self.steps, Fixed(self.given.factors))
        yield

    def go_on(self) -> bool:
        """Never asked: there is one block."""
        return True

    def result(self, before: LatentState) -> LatentState:
        """The state after the thoughts, in memory of its own; ``before`` is the one that was loaded."""
        assert self._after is not None, "nothing has been run"
        mask = before.attention_mask
        return replace(
            before,
            cache=_cache([(key.clone(), value.clone()) for key, value in cache_tensors(self._after.cache)]),
            hidden=self._after.hidden.clone(),
            attention_mask=torch.cat([mask, mask.new_ones(len(mask), self.steps)], dim=1),
            next_position=before.next_position + self.steps,
            latent_step=before.latent_step + self.steps,
        )


class Answers:
    """Up to ``max_new_tokens`` answer tokens, ``BLOCK`` of them a block.

    Args:
        model: for the special tokens.
        given: of the first batch; later ones are loaded into its buffers.
        state: of the first batch.
        chooser: of the first batch; a later one's seeds are loaded.
        max_new_tokens: at most.
    """

    def __init__(
        self, model: "LatentModel", given: Given, state: LatentState, chooser: Chooser, max_new_tokens: int
    ) -> None:
        self.given, self.chooser, self.latent_step = given.buffers(), chooser, state.latent_step
        self.blocks = -(-max_new_tokens // BLOCK)
        self.out = blank(model, state, max_new_tokens)
        self.going = torch.ones((), dtype=torch.bool, device=model.device)

    def run(self, model: "LatentModel") -> Generator[None, None, None]:
        """Each ``next`` is a block of work on what is in the buffers."""
        out, tokens = self.out, model.tokens
        length = out.token_ids.shape[1]
        out.token_ids.fill_(tokens.pad)
        for part in (out.mask, out.logprobs, out.entropy):
            part.zero_()
        state, noise = _state(self.given, length, self.latent_step), Fixed(self.given.factors)
        chooser = _on_buffers(self.chooser, self.given.seeds)
        alive = torch.ones_like(out.mask[:, 0])
        inputs = model.end_marker(len(alive))
        for position in range(length):
            state, chosen, logprob, entropy = next_token(model, state, inputs, position, chooser=chooser, noise=noise)
            ended = ~alive
            out.token_ids[:, position] = chosen.masked_fill(ended, tokens.pad)
            out.mask[:, position] = alive
            out.logprobs[:, position] = logprob.masked_fill(ended, 0.0)
            out.entropy[:, position] = entropy.masked_fill(ended, 0.0)
            alive = alive & (chosen != tokens.eos)
            inputs = chosen[:, None]
            if (position + 1) % BLOCK == 0 or position + 1 == length:
                self.going.copy_(alive.any())
                yield

    def go_on(self) -> bool:
        """Has a row not ended? Waits for the device."""
        return bool(self.going)

    def result(self) -> Generation:
        """The answers, in memory of their own, as long as the longest."""
        length = int(self.out.mask.any(0).sum())
        short = cut(self.out, length)
        return Generation(
            token_ids=short.token_ids.clone(),
            mask=short.mask.clone(),
            logprobs=short.logprobs.clone(),
            entropy=short.entropy.clone(),
        )


def is_known(chooser: Chooser) -> bool:
    """Can the chooser be set up anew on buffers? One of another type, or that has begun, cannot."""
    if isinstance(chooser, AverageOverMasks) and chooser.prefix is not None:
        return False
    return type(chooser) in (Greedy, Sample, AverageOverMasks)  # a subclass may choose in its own way


def _on_buffers(chooser: Chooser, seeds: Tensor | None) -> Chooser:
    """A chooser that has not begun: each run must start its own."""
    if isinstance(chooser, Sample):
        assert seeds is not None, "there are no seeds to draw with"
        return Sample(seeds, chooser.temperature)
    return AverageOverMasks(chooser.masks) if isinstance(chooser, AverageOverMasks) else chooser


class Fixed:
    """Noise that was drawn beforehand."""

    def __init__(self, factors: Mapping[Place, Tensor]) -> None:
        self._factors = factors

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """What was drawn for the moment."""
        return {site: factor for (p, s, site), factor in self._factors.items() if (p, s) == (phase, step)}

    def select(self, rows: Tensor) -> "Fixed":
        """Rows do not leave work of a fixed shape."""
        raise AssertionError("a row has left")


class RoomLayer(OwnLayer):
    """One layer's keys and values, written in place into room for ``positions`` of them: nothing is copied to grow.

    Copies of a layer share the room, so of all states that follow from one only a single line may go on.
    """

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, N, L, E] each; returns all, [B, N, T, E] each, as views of the room."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        assert end <= self.positions, "there is no room for another position"
        if self.room is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.room = (self._make(key_states), self._make(value_states))
        keys, values = self.room
        keys[..., begin:end, :] = key_states
        values[..., begin:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _make(self, like: Tensor) -> Tensor:
        return like.new_empty(*like.shape[:-2], self.positions, like.shape[-1])


def _state(given: Given, more: int, latent_step: int) -> LatentState:
    """The state in the buffers, with room for ``more`` positions after those it has."""
    cache = Cache(layers=[RoomLayer((given.own[0][0].shape[-2] if given.own else 0) + more) for _ in given.keys])
    for layer, (key, value) in enumerate(given.own):
        cache.update(key, value, layer)
    return LatentState(
        cache=cache,
        hidden=given.hidden,
        # Added to the scores of however many own positions: each new position comes alone and sees them all. Made by
        # hand, for what transformers would make of a mask [B, T] copies numbers from the host.
        attention_mask=given.hidden.new_zeros(1, 1, 1, 1),
        next_position=given.next_position,
        latent_step=latent_step,
        prefix=Prefix(keys=given.keys, values=given.values, padding=given.padding, groups=len(given.padding)),
    )


def _cache(tensors: list[tuple[Tensor, Tensor]]) -> Cache:
    """An own cache with these keys and values."""
    cache = own_cache()
    for layer, (key, value) in enumerate(tensors):
        cache.update(key, value, layer)
    return cache


def _widened(positions: Tensor, room: int) -> Tensor:
    """[G, N, S, E] -> [G, N, room + S, E], zeros first."""
    return nn.functional.pad(positions, (0, 0, room, 0)) if room else positions
