"""Reads thoughts through the language-model head, as Coconut, CODI and SIM-CoT do: which tokens they are close to.

Shapes: N questions, k seeds, B rows, n thoughts, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Exploration, Noise
from dropout_grpo.exploration.seeds import as_int64
from dropout_grpo.latent.casts import frozen_weights_cast
from dropout_grpo.latent.head import at_least_float32
from dropout_grpo.latent.recurrence import Recurrence

TOP_K = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtReading:
    """A hidden state as the language-model head reads it.

    Attributes:
        tokens: the likeliest tokens with their probabilities, falling.
        cosine: cosine of the angle between this state and the plain network's; 1 for the plain network.
    """

    tokens: tuple[tuple[str, float], ...]
    cosine: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtReadings:
    """The thoughts about one question.

    Each sequence has n + 1 states. The first n are the hidden states that thoughts 1 to n are made of. The last one is
    the state after all thoughts, which is not fed back.

    Attributes:
        plain: those of the plain network.
        masked: those under each seed's noise.
    """

    plain: tuple[ThoughtReading, ...]
    masked: tuple[tuple[ThoughtReading, ...], ...] = ()

    @property
    def mean_cosine(self) -> tuple[float, ...]:
        """For each state the mean of its cosines over the seeds; empty without seeds."""
        return tuple(sum(t.cosine for t in step) / len(step) for step in zip(*self.masked, strict=True))


@torch.no_grad()
def read_thoughts(
    model: Recurrence,
    ids: Tensor,
    mask: Tensor,
    exploration: Exploration | None,
    seeds: Sequence[int],
    top_k: int,
    latent_steps: int,
) -> list[ThoughtReadings]:
    """The thoughts about encoded questions, ids and mask [N, S]; see ``LatentModel.thoughts``."""
    if top_k < 1:
        raise UserError(f"top_k={top_k} must be at least 1.")
    if latent_steps < 0:
        raise UserError(f"latent_steps={latent_steps}: the number of thoughts must be 0 or more.")
    if len(seeds) and exploration is None:
        raise UserError("seeds without an exploration make no masks: give one, such as SharedDropout(p=0.1).")
    plain = _hidden_states(model, ids, mask, latent_steps, None)  # [N, n + 1, D]
    own = [tuple(ThoughtReading(tokens=tokens) for tokens in row) for row in _tokens(model, plain, top_k)]
    if exploration is None or not len(seeds):
        return [ThoughtReadings(plain=row) for row in own]
    k = len(seeds)
    rows = torch.tensor([as_int64(seed) for seed in seeds]).repeat(len(ids))  # [N * k]
    noise = model.noise(exploration, rows)
    if noise is None:  # every seed would give the plain thoughts
        return [ThoughtReadings(plain=row) for row in own]
    states = _hidden_states(model, ids.repeat_interleave(k, 0), mask.repeat_interleave(k, 0), latent_steps, noise)
    wide = at_least_float32(states.dtype)
    near = nn.functional.cosine_similarity(states.to(wide), plain.to(wide).repeat_interleave(k, 0), dim=-1)
    moved = [
        tuple(ThoughtReading(tokens=said, cosine=cosine) for said, cosine in zip(tokens, cosines, strict=True))
        for tokens, cosines in zip(_tokens(model, states, top_k), near.tolist(), strict=True)
    ]
    return [ThoughtReadings(plain=row, masked=tuple(moved[i * k : i * k + k])) for i, row in enumerate(own)]


def _hidden_states(model: Recurrence, ids: Tensor, mask: Tensor, steps: int, noise: Noise | None) -> Tensor:
    """The last hidden state after the prompt and after each thought, [B, n + 1, D]; each row reads its own prompt."""
    state = model.read(ids, mask, noise)
    states = [state.hidden]
    for _ in range(steps):
        state = model.think_eagerly(state, 1, noise)
        states.append(state.hidden)
    return torch.cat(states, dim=1)


def _tokens(model: Recurrence, states: Tensor, top_k: int) -> list[list[tuple[tuple[str, float], ...]]]:
    """The likeliest tokens of each state [B, n + 1, D] with their probabilities."""
    logits = head(model, states.flatten(0, 1)[:, None])[:, 0]  # [B * (n + 1), V]
    top = logits.to(at_least_float32(logits.dtype)).softmax(-1).topk(min(top_k, logits.shape[-1]))
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    said = [
        tuple((str(model.tokenizer.decode([token])), share) for token, share in zip(ids, shares, strict=True))
        for ids, shares in rows
    ]
    n = states.shape[1]
    return [said[i : i + n] for i in range(0, len(said), n)]


def head(model: Recurrence, hidden: Tensor) -> Tensor:
    """Logits [B, 1, V] of hidden states [B, 1, D].

    They come from the model's own forward pass, whose decoder is made to return these states, since some families scale
    or cap the head's output.
    """

    def instead(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = hidden
        return output

    handle = model.model.get_decoder().register_forward_hook(instead)
    try:
        with frozen_weights_cast(model):
            logits: Tensor = model.model(inputs_embeds=hidden, use_cache=False).logits
    finally:
        handle.remove()
    return logits
