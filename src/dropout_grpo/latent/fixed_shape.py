"""Thinking and answering with fixed shapes and fixed memory addresses, so that a CUDA graph can record them.

The computation is that of ``recurrence.py`` and ``decoding.py``; only its inputs differ. All tensors that it reads,
except weights, are copied to buffers (``BatchTensors``). A row's own keys and values are written to preallocated memory
(``RoomLayer``). Rows that have ended stay in the batch, and their tokens are masked out. A block of work copies nothing
to the host, so recording and replaying it gives the same result as running it. ``graphs.py`` decides when it is used.

Shapes: B rows, G prompts, S prompt positions, T own positions, L new positions, N key heads, E head size, D width,
F features of a site.
"""

from collections.abc import Generator, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from dropout_grpo.exploration.base import Noise
from dropout_grpo.latent.decoding import (
    AverageOverMasks,
    DecodingStrategy,
    Generation,
    Greedy,
    Sampling,
    blank,
    next_token,
)
from dropout_grpo.latent.recurrence import Recurrence, key_positions, keyed_noise
from dropout_grpo.latent.shared_prompt import OwnLayer, Prefix, cache_tensors, own_cache
from dropout_grpo.latent.state import LatentState, extended

BLOCK = 4
"""Answer tokens in a block of work. Whether all rows have ended is checked between blocks."""

PROMPT_BUCKET = 32
"""Prompts are padded to a multiple of this many positions, so that shapes recur."""

NoiseKey = tuple[str, int, str]
"""Phase, step and site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTensors:
    """The tensors of a batch, or the buffers that they are copied to.

    Attributes:
        hidden: [B, 1, D].
        next_position: int64 [B, 1].
        own: keys and values of each layer, [B, N, T, E]; empty if rows have no positions of their own yet.
        keys: the prompts' keys, one tensor per layer, [G, N, S, E], with S a multiple of ``PROMPT_BUCKET``.
        values: the prompts' values, in the same form.
        padding: added to the scores of the prompts' positions, [G, 1, 1, S].
        factors: the noise by phase, step and site, [B, 1, F].
        by_key: factors of attention weights by phase, step and site, [B, H, S + T + all later positions].
        seeds: seeds of a strategy that samples, int64 [B].
    """

    hidden: Tensor
    next_position: Tensor
    own: tuple[tuple[Tensor, Tensor], ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    padding: Tensor
    factors: Mapping[NoiseKey, Tensor]
    by_key: Mapping[NoiseKey, Tensor]
    seeds: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Each tensor once: a held mask is the same tensor at every step."""
        return list({id(tensor): tensor for tensor in self._references()}.values())

    def clone(self) -> "BatchTensors":
        """A copy of all tensors."""
        copies = {id(tensor): tensor.clone() for tensor in self.tensors()}

        def copy(tensor: Tensor) -> Tensor:
            return copies[id(tensor)]

        return BatchTensors(
            hidden=copy(self.hidden),
            next_position=copy(self.next_position),
            own=tuple((copy(key), copy(value)) for key, value in self.own),
            keys=tuple(map(copy, self.keys)),
            values=tuple(map(copy, self.values)),
            padding=copy(self.padding),
            factors={key: copy(factor) for key, factor in self.factors.items()},
            by_key={key: copy(factor) for key, factor in self.by_key.items()},
            seeds=None if self.seeds is None else copy(self.seeds),
        )

    def load(self, other: "BatchTensors") -> None:
        """Copy the contents of ``other``, which has the same ``layout``, into these buffers."""
        for buffer, tensor in zip(self.tensors(), other.tensors(), strict=True):
            buffer.copy_(tensor)

    def layout(self) -> Hashable:
        """Shapes, dtypes, keys of the noise, and which of them share a tensor."""
        numbers = {id(tensor): number for number, tensor in enumerate(self.tensors())}
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in self.tensors())
        keys = (tuple(self.factors), tuple(self.by_key))
        return shapes, tuple(numbers[id(t)] for t in self._references()), keys, len(self.own)

    def _references(self) -> Iterator[Tensor]:
        yield from (self.hidden, self.next_position, self.padding, *self.keys, *self.values)
        for pair in self.own:
            yield from pair
        yield from self.factors.values()
        yield from self.by_key.values()
        if self.seeds is not None:
            yield self.seeds


def batch_tensors(
    state: LatentState,
    noise: Noise | None,
    moments: list[tuple[str, int]],
    new: int,
    strategy: DecodingStrategy | None = None,
) -> BatchTensors:
    """The tensors of a batch.

    Args:
        state: a state whose rows share prompts.
        noise: drawn here and not inside the work, since a graph would keep the tensors that are cached when drawing.
        moments: phases and steps at which the work uses noise.
        new: number of positions that the work appends.
        strategy: a strategy for which ``runs_on_buffers`` is True.
    """
    prefix = state.prefix
    assert prefix is not None, "the rows have no prompt in common"
    length = prefix.keys[0].shape[-2]
    room = -length % PROMPT_BUCKET
    padding = prefix.padding
    if padding is None:
        padding = prefix.keys[0].new_zeros(prefix.groups, 1, 1, length)
    factors = {} if noise is None else {m: noise.factors(*m) for m in moments}
    by_key: dict[tuple[str, int], Mapping[str, Tensor]] = {}
    if (keyed := keyed_noise(noise)) is not None:
        positions = nn.functional.pad(key_positions(state, new), (room, 0), value=-1)
        by_key = {m: keyed.key_factors(*m, positions) for m in moments}
    return BatchTensors(
        hidden=state.hidden,
        next_position=state.next_position,
        own=tuple(cache_tensors(state.cache)),
        keys=tuple(_widened(key, room) for key in prefix.keys),
        values=tuple(_widened(value, room) for value in prefix.values),
        padding=nn.functional.pad(padding, (room, 0), value=torch.finfo(padding.dtype).min),
        factors={(*moment, site): f for moment, of_sites in factors.items() for site, f in of_sites.items()},
        by_key={(*moment, site): f for moment, of_sites in by_key.items() for site, f in of_sites.items()},
        seeds=strategy.seeds if isinstance(strategy, Sampling) else None,
    )


def runs_on_buffers(strategy: DecodingStrategy) -> bool:
    """True if the strategy can run on buffers: it has a known type and has not chosen a token yet."""
    if isinstance(strategy, AverageOverMasks) and strategy.log_weights is not None:
        return False
    return type(strategy) in (Greedy, Sampling, AverageOverMasks)  # a subclass may choose in its own way


class DrawnNoise:
    """Noise that has been drawn already."""

    def __init__(self, tensors: BatchTensors) -> None:
        self._tensors = tensors

    @property
    def masks_keys(self) -> bool:
        """Whether attention weights are multiplied."""
        return bool(self._tensors.by_key)

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """The factors drawn for this phase and step."""
        return _of_moment(self._tensors.factors, phase, step)

    def key_factors(self, phase: str, step: int, positions: Tensor) -> Mapping[str, Tensor]:
        """The factors drawn for this phase and step, for these positions and later ones."""
        return _of_moment(self._tensors.by_key, phase, step)

    def select(self, rows: Tensor) -> "DrawnNoise":
        """Not called: rows do not leave a batch of a fixed shape."""
        raise AssertionError("a row has left")


def _of_moment(drawn: Mapping[NoiseKey, Tensor], phase: str, step: int) -> dict[str, Tensor]:
    return {site: factor for (p, s, site), factor in drawn.items() if (p, s) == (phase, step)}


def _widened(positions: Tensor, room: int) -> Tensor:
    """Pad on the left with zeros: [G, N, S, E] -> [G, N, room + S, E]."""
    return nn.functional.pad(positions, (0, 0, room, 0)) if room else positions


class ThinkingWork:
    """``steps`` latent steps, in one block.

    Args:
        tensors: those of the first batch, which are copied to ``buffers``. Later batches are loaded into these.
        steps: number of thoughts.
        latent_step: number of thoughts before them.
    """

    blocks = 1

    def __init__(self, tensors: BatchTensors, steps: int, latent_step: int) -> None:
        self.buffers, self.steps, self.latent_step = tensors.clone(), steps, latent_step
        self._after: LatentState | None = None

    def run(self, model: Recurrence) -> Generator[None, None, None]:
        """Each ``next`` does one block of work on the contents of the buffers."""
        state = _state(self.buffers, self.steps, self.latent_step)
        self._after = model.think_eagerly(state, self.steps, DrawnNoise(self.buffers))
        yield

    def go_on(self) -> bool:
        """Not called, since there is one block."""
        return True

    def result(self, before: LatentState) -> LatentState:
        """A copy of the state after the thoughts; ``before`` is the state that was loaded."""
        assert self._after is not None, "nothing has been run"
        return replace(
            before,
            cache=_cache([(key.clone(), value.clone()) for key, value in cache_tensors(self._after.cache)]),
            hidden=self._after.hidden.clone(),
            attention_mask=extended(before.attention_mask, self.steps),
            next_position=before.next_position + self.steps,
            latent_step=before.latent_step + self.steps,
        )


class AnsweringWork:
    """Up to ``max_new_tokens`` answer tokens, ``BLOCK`` tokens per block.

    Args:
        model: model with the special tokens.
        tensors: those of the first batch, which are copied to ``buffers``. Later batches are loaded into these.
        state: the first batch's state.
        strategy: the first batch's strategy; the seeds of later ones are loaded.
        max_new_tokens: maximum number of answer tokens.
    """

    def __init__(
        self,
        model: Recurrence,
        tensors: BatchTensors,
        state: LatentState,
        strategy: DecodingStrategy,
        max_new_tokens: int,
    ) -> None:
        self.buffers, self.strategy, self.latent_step = tensors.clone(), strategy, state.latent_step
        self.blocks = -(-max_new_tokens // BLOCK)
        self.out = blank(model, state, max_new_tokens)
        self.going = torch.ones((), dtype=torch.bool, device=model.device)

    def run(self, model: Recurrence) -> Generator[None, None, None]:
        """Each ``next`` does one block of work on the contents of the buffers."""
        out, tokens = self.out, model.tokens
        length = out.token_ids.shape[1]
        out.token_ids.fill_(tokens.pad)
        for part in (out.mask, out.logprobs, out.entropy):
            part.zero_()
        state, noise = _state(self.buffers, length, self.latent_step), DrawnNoise(self.buffers)
        strategy = _on_buffers(self.strategy, self.buffers.seeds)
        alive = torch.ones_like(out.mask[:, 0])
        inputs = model.end_marker(len(alive))
        for position in range(length):
            state, token = next_token(model, state, inputs, position, strategy=strategy, noise=noise)
            ended = ~alive
            out.token_ids[:, position] = token.ids.masked_fill(ended, tokens.pad)
            out.mask[:, position] = alive
            out.logprobs[:, position] = token.logprobs.masked_fill(ended, 0.0)
            out.entropy[:, position] = token.entropy.masked_fill(ended, 0.0)
            alive = alive & ~tokens.end_answer(token.ids)
            inputs, strategy = token.ids[:, None], token.strategy
            if (position + 1) % BLOCK == 0 or position + 1 == length:
                self.going.copy_(alive.any())
                yield

    def go_on(self) -> bool:
        """True while a row has not ended. Waits for the device."""
        return bool(self.going)

    def result(self) -> Generation:
        """A copy of the answers, cut to the longest."""
        length = int(self.out.mask.any(0).sum())
        return self.out.each(lambda part: part[:, :length].clone())


def _on_buffers(strategy: DecodingStrategy, seeds: Tensor | None) -> DecodingStrategy:
    """The strategy, with its seeds in the buffer."""
    if isinstance(strategy, Sampling):
        assert seeds is not None, "there are no seeds to draw with"
        return Sampling(seeds, strategy.temperature, strategy.top_p)
    return strategy


class RoomLayer(OwnLayer):
    """One layer's keys and values in memory preallocated for ``positions`` positions, so that growing copies nothing.

    Copies of a layer share this memory, so only one continuation of a state may be computed.
    """

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, N, L, E] each; returns all, [B, N, T, E] each, as views of the room."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        assert end <= self.positions, "there is no memory for another position"
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


def _state(buffers: BatchTensors, more: int, latent_step: int) -> LatentState:
    """The state in the buffers, with room for ``more`` further positions."""
    own = buffers.own[0][0].shape[-2] if buffers.own else 0
    cache = own_cache([RoomLayer(own + more) for _ in buffers.keys])
    for layer, (key, value) in enumerate(buffers.own):
        cache.update(key, value, layer)
    return LatentState(
        cache=cache,
        hidden=buffers.hidden,
        attention_mask=buffers.next_position.new_ones(buffers.hidden.shape[0], own),
        next_position=buffers.next_position,
        latent_step=latent_step,
        prefix=Prefix(keys=buffers.keys, values=buffers.values, padding=buffers.padding, groups=len(buffers.padding)),
    )


def _cache(tensors: list[tuple[Tensor, Tensor]]) -> Cache:
    """An own cache with these keys and values."""
    cache = own_cache()
    for layer, (key, value) in enumerate(tensors):
        cache.update(key, value, layer)
    return cache
