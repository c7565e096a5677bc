"""Thinking and answering with fixed shapes and fixed memory addresses, so that a CUDA graph can record them.

The computation is that of ``recurrence.py``; only its inputs differ. Inputs are copied to buffers
(``static_inputs.py``). A row's own keys and values are written to preallocated memory (``RoomLayer``). Rows that have
ended stay in the batch, and their tokens are masked out. A block of work copies nothing to the host, so recording and
replaying it gives the same result as running it. ``graphs.py`` decides when it is used.

Shapes: B rows, T own positions, N key heads, L new positions, E head size.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from dropout_grpo.latent.decoding import Generation, blank, next_token
from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.sampling import Chooser, Sampled
from dropout_grpo.latent.shared_prompt import OwnLayer, Prefix, cache_tensors, own_cache
from dropout_grpo.latent.state import LatentState, extended
from dropout_grpo.latent.static_inputs import Fixed, Given

BLOCK = 4
"""Answer tokens in a block of work. Whether all rows have ended is checked between blocks."""


class Thoughts:
    """``steps`` latent steps, in one block.

    Args:
        given: inputs of the first batch; those of later batches are loaded into its buffers.
        steps: number of thoughts.
        latent_step: number of thoughts before them.
    """

    blocks = 1

    def __init__(self, given: Given, steps: int, latent_step: int) -> None:
        self.given, self.steps, self.latent_step = given.buffers(), steps, latent_step
        self._after: LatentState | None = None

    def run(self, model: Recurrence) -> Generator[None, None, None]:
        """Each ``next`` does one block of work on the contents of the buffers."""
        state = _state(self.given, self.steps, self.latent_step)
        self._after = model.think_eagerly(state, self.steps, Fixed(self.given))
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


class Answers:
    """Up to ``max_new_tokens`` answer tokens, ``BLOCK`` tokens per block.

    Args:
        model: model with the special tokens.
        given: inputs of the first batch; those of later batches are loaded into its buffers.
        state: the first batch's state.
        chooser: the first batch's chooser; the seeds of later ones are loaded.
        max_new_tokens: maximum number of answer tokens.
    """

    def __init__(
        self, model: Recurrence, given: Given, state: LatentState, chooser: Chooser, max_new_tokens: int
    ) -> None:
        self.given, self.chooser, self.latent_step = given.buffers(), chooser, state.latent_step
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
        state, noise = _state(self.given, length, self.latent_step), Fixed(self.given)
        chooser = _on_buffers(self.chooser, self.given.seeds)
        alive = torch.ones_like(out.mask[:, 0])
        inputs = model.end_marker(len(alive))
        for position in range(length):
            state, token = next_token(model, state, inputs, position, chooser=chooser, noise=noise)
            ended = ~alive
            out.token_ids[:, position] = token.ids.masked_fill(ended, tokens.pad)
            out.mask[:, position] = alive
            out.logprobs[:, position] = token.logprobs.masked_fill(ended, 0.0)
            out.entropy[:, position] = token.entropy.masked_fill(ended, 0.0)
            alive = alive & ~tokens.end_answer(token.ids)
            inputs, chooser = token.ids[:, None], token.chooser
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


def _on_buffers(chooser: Chooser, seeds: Tensor | None) -> Chooser:
    """The chooser, with its seeds in the buffer."""
    if isinstance(chooser, Sampled):
        assert seeds is not None, "there are no seeds to draw with"
        return Sampled(seeds, chooser.temperature, chooser.top_p)
    return chooser


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


def _state(given: Given, more: int, latent_step: int) -> LatentState:
    """The state in the buffers, with room for ``more`` further positions."""
    own = given.own[0][0].shape[-2] if given.own else 0
    cache = own_cache([RoomLayer(own + more) for _ in given.keys])
    for layer, (key, value) in enumerate(given.own):
        cache.update(key, value, layer)
    return LatentState(
        cache=cache,
        hidden=given.hidden,
        attention_mask=given.next_position.new_ones(given.hidden.shape[0], own),
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
