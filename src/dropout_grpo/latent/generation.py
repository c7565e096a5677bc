"""Decoding answers: token by token, rows that have ended leaving the batch.

``latent/fast/static.py`` has the same loop for graphs, in which no row leaves; both use ``next_token``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dropout_grpo.exploration.base import Noise
from dropout_grpo.latent.sampling import Chooser
from dropout_grpo.latent.state import LatentState, rectangle

if TYPE_CHECKING:
    from dropout_grpo.latent.model import LatentModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Answers of B rows, up to L tokens; where ``mask`` is 0 the row had ended."""

    token_ids: Tensor  # [B, L] int64, pad after the end
    mask: Tensor  # [B, L] bool, True up to and including EOS
    logprobs: Tensor  # [B, L] float32, at the chooser's temperature, 0 after the end
    entropy: Tensor  # [B, L] float32, nats, of the distribution each token was chosen from, 0 after the end

    def each(self, function: Callable[[Tensor], Tensor]) -> "Generation":
        """``function`` of all four: some rows, some tokens, a copy."""
        return Generation(
            token_ids=function(self.token_ids),
            mask=function(self.mask),
            logprobs=function(self.logprobs),
            entropy=function(self.entropy),
        )


@torch.no_grad()
def generate_eagerly(
    model: "LatentModel", state: LatentState, max_new_tokens: int, *, chooser: Chooser, noise: Noise | None
) -> Generation:
    """Decode after the end marker until EOS or ``max_new_tokens``; every token is the ``chooser``'s, under ``noise``.

    Rows of a group leave together as far as needed to keep groups rectangular, see ``state.rectangle``.
    """
    out = blank(model, state, max_new_tokens)
    rows = torch.arange(state.rows, device=model.device)  # the places in ``out`` of the rows still in the batch
    alive = torch.ones_like(rows, dtype=torch.bool)
    inputs = model.end_marker(state.rows)
    length = max_new_tokens
    for position in range(max_new_tokens):
        state, chosen, logprob, entropy = next_token(model, state, inputs, position, chooser=chooser, noise=noise)
        places = rows[alive]
        out.token_ids[places, position] = chosen[alive]
        out.mask[places, position] = True
        out.logprobs[places, position] = logprob[alive]
        out.entropy[places, position] = entropy[alive]
        alive = alive & (chosen != model.tokens.eos)
        if not alive.any():
            length = position + 1
            break
        stay = rectangle(alive, state.group_size)
        if len(stay) < len(rows):
            rows, alive, chosen = rows[stay], alive[stay], chosen[stay]
            state, chooser = state.select(stay), chooser.select(stay)
            noise = noise.select(stay) if noise is not None else None
        inputs = chosen[:, None]
    return out.each(lambda part: part[:, :length])


def next_token(
    model: "LatentModel", state: LatentState, inputs: Tensor, position: int, *, chooser: Chooser, noise: Noise | None
) -> tuple[LatentState, Tensor, Tensor, Tensor]:
    """Feed ``inputs`` [B, 1]: the state behind them, the token chosen next, its log-prob and the entropy, [B] each."""
    logits, state = model.logits(state, inputs, noise)
    logprobs = at_temperature(logits[:, -1], chooser.temperature).log_softmax(-1)  # [B, V]
    chosen = chooser.choose(logprobs, position)
    logprob = logprobs.gather(-1, chosen[:, None]).squeeze(-1)
    return state, chosen, logprob, torch.special.entr(logprobs.exp()).sum(-1)


def blank(model: "LatentModel", state: LatentState, max_new_tokens: int) -> Generation:
    """Answers of the state's rows in which nothing has been said."""
    shape, dtype = (state.rows, max_new_tokens), at_least_float32(state.hidden.dtype)
    return Generation(
        token_ids=torch.full(shape, model.tokens.pad, device=model.device),
        mask=torch.zeros(shape, dtype=torch.bool, device=model.device),
        logprobs=torch.zeros(shape, device=model.device, dtype=dtype),
        entropy=torch.zeros(shape, device=model.device, dtype=dtype),
    )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Log-probabilities feed a ratio, so half precision is widened for them."""
    return torch.promote_types(dtype, torch.float32)


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits in float32 or wider, divided by the temperature; 1 costs nothing, and is what most training has."""
    wide = logits.to(at_least_float32(logits.dtype))
    return wide if temperature == 1.0 else wide / temperature
