"""Decodes answers token by token. Rows that have ended leave the batch.

``latent/static.py`` has the same loop for CUDA graphs, where all rows stay in the batch; both use ``next_token``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Noise
from dropout_grpo.latent.recurrence import Recurrence, at_least_float32, at_temperature
from dropout_grpo.latent.sampling import Chooser
from dropout_grpo.latent.state import LatentState, rectangle


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Answers of B rows, up to L tokens each."""

    token_ids: Tensor  # [B, L] int64, pad after the end
    mask: Tensor  # [B, L] bool, True up to and including EOS
    logprobs: Tensor  # [B, L] float32 or wider, at the chooser's temperature, 0 after the end
    entropy: Tensor  # [B, L] nats, of the distribution that each token was chosen from, 0 after the end

    def each(self, function: Callable[[Tensor], Tensor]) -> "Generation":
        """Apply ``function`` to all four tensors."""
        return Generation(
            token_ids=function(self.token_ids),
            mask=function(self.mask),
            logprobs=function(self.logprobs),
            entropy=function(self.entropy),
        )


def require_finite_answers(answers: Generation, place: Callable[[int], str]) -> None:
    """Check that no token was chosen from logits that are not finite, for example because weights are damaged.

    Args:
        answers: answers of B rows.
        place: returns the name of a row for messages.

    Raises:
        UserError: names the first row with such a token, and a remedy.
    """
    damaged = answers.logprobs.isnan().any(-1)
    if bool(damaged.any()):
        raise UserError(
            f"{place(int(damaged.nonzero()[0]))}: the model's logits are not finite. Its weights may be damaged, or "
            "too large for bf16: try --bf16 false, or another checkpoint."
        )


@torch.no_grad()
def generate_eagerly(
    model: Recurrence, state: LatentState, max_new_tokens: int, *, chooser: Chooser, noise: Noise | None
) -> Generation:
    """Decode after the end marker until EOS or ``max_new_tokens`` tokens, without graphs.

    Rows that have ended leave the batch, as long as all groups keep the same number of rows (``state.rectangle``).
    """
    out = blank(model, state, max_new_tokens)
    rows = torch.arange(state.rows, device=model.device)  # rows of ``out`` that are still in the batch
    alive = torch.ones_like(rows, dtype=torch.bool)
    inputs = model.end_marker(state.rows)
    length = max_new_tokens
    for position in range(max_new_tokens):
        state, token = next_token(model, state, inputs, position, chooser=chooser, noise=noise)
        chosen, chooser, ended = token.ids, token.chooser, ~alive
        out.token_ids[rows, position] = chosen.masked_fill(ended, model.tokens.pad)
        out.mask[rows, position] = alive
        out.logprobs[rows, position] = token.logprobs.masked_fill(ended, 0.0)
        out.entropy[rows, position] = token.entropy.masked_fill(ended, 0.0)
        alive = alive & ~model.tokens.end_answer(chosen)
        going = alive.cpu()  # the only wait for the device
        if not going.any():
            length = position + 1
            break
        stay = rectangle(going, state.group_size)
        if len(stay) < len(rows):
            stay = stay.to(rows.device)
            rows, alive, chosen = rows[stay], alive[stay], chosen[stay]
            state, chooser = state.select(stay), chooser.select(stay)
            noise = noise.select(stay) if noise is not None else None
        inputs = chosen[:, None]
    return out.each(lambda part: part[:, :length])


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """The tokens chosen at one position."""

    ids: Tensor  # [B] int64
    logprobs: Tensor  # [B], of the ids
    entropy: Tensor  # [B] nats
    chooser: Chooser  # of the next position


def next_token(
    model: Recurrence, state: LatentState, inputs: Tensor, position: int, *, chooser: Chooser, noise: Noise | None
) -> tuple[LatentState, NextToken]:
    """Feed ``inputs`` [B, 1] and choose the token after them; returns the state that includes ``inputs``."""
    logits, state = model.logits(state, inputs, noise)
    logprobs = at_temperature(logits[:, -1], chooser.temperature).log_softmax(-1)  # [B, V]
    chosen = chooser.choose(logprobs, position)
    logprob = logprobs.gather(-1, chosen[:, None]).squeeze(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1)
    return state, NextToken(ids=chosen, logprobs=logprob, entropy=entropy, chooser=chooser.after(logprob))


def blank(model: Recurrence, state: LatentState, max_new_tokens: int) -> Generation:
    """Empty answers of the state's rows."""
    shape, dtype = (state.rows, max_new_tokens), at_least_float32(state.hidden.dtype)
    return Generation(
        token_ids=torch.full(shape, model.tokens.pad, device=model.device),
        mask=torch.zeros(shape, dtype=torch.bool, device=model.device),
        logprobs=torch.zeros(shape, device=model.device, dtype=dtype),
        entropy=torch.zeros(shape, device=model.device, dtype=dtype),
    )
