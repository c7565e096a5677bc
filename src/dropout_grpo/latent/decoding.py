"""Decodes answers token by token, by a strategy: greedy, sampling, or greedy under the average over masks.

A strategy is an argument of ``generate``. It is immutable: ``after`` returns the strategy for the next position. Random
choices are a function of seeds. Rows that have ended leave the batch. ``latent/fixed_shape.py`` has the same loop for
CUDA graphs, where all rows stay in the batch; both use ``next_token``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Noise
from dropout_grpo.exploration.seeds import stream, uniform
from dropout_grpo.latent.head import at_least_float32, at_temperature
from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.state import LatentState, rectangle


class DecodingStrategy(Protocol):
    """A rule for the next token. Logits are divided by ``temperature`` before the rule is applied."""

    @property
    def temperature(self) -> float: ...

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """Token ids [B] from log-probabilities [B, V]; ``position`` counts answer tokens from 0."""
        ...

    def after(self, logprob: Tensor) -> "DecodingStrategy":
        """The rule for the next position, given the log-probabilities [B] of the tokens chosen at this one."""
        ...

    def select(self, rows: Tensor) -> "DecodingStrategy":
        """The rule for the rows that stay in the batch."""
        ...


class Greedy:
    """The most probable token. The temperature does not change it, only the log-probability that is recorded."""

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """Argmax, [B]."""
        return logprobs.argmax(-1)

    def after(self, logprob: Tensor) -> "Greedy":
        """The same rule."""
        return self

    def select(self, rows: Tensor) -> "Greedy":
        """The same rule for any rows."""
        return self


class Sampling:
    """A sample at a temperature: the inverse distribution function at a uniform number determined by the row's seed.

    The token depends only on (seed, position, probabilities), so a rollout does not depend on its batch.

    Args:
        seeds: int64 [B].
        temperature: logits are divided by it.
        top_p: samples come from the nucleus, the smallest set of the most probable tokens whose probabilities add up to
            ``top_p`` or more. The log-probabilities that are recorded stay those of the whole distribution.
    """

    def __init__(self, seeds: Tensor, temperature: float, top_p: float = 1.0) -> None:
        self.seeds, self.temperature, self.top_p = seeds, temperature, top_p

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """A sampled token id for each row, [B]."""
        u = uniform(self.seeds, stream(f"answer.{position}", 1, self.seeds.device))  # [B, 1]
        probabilities = logprobs.exp()
        if self.top_p < 1.0:
            probabilities = _nucleus(probabilities, self.top_p)
        cumulative = _cumulative(probabilities)
        total = cumulative[:, -1:]
        # Below the total even after rounding, so that the first entry above it has a non-zero probability.
        target = torch.minimum(u.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
        chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        return chosen.clamp(max=logprobs.shape[-1] - 1)  # beyond the end only if a log-prob is not a number

    def after(self, logprob: Tensor) -> "Sampling":
        """The same rule: the position is an argument of ``choose``."""
        return self

    def select(self, rows: Tensor) -> "Sampling":
        """The seeds of the rows that stay."""
        return Sampling(self.seeds[rows], self.temperature, self.top_p)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The probabilities [B, V] with those outside the nucleus set to 0. Of equal ones the first come first."""
    falling, order = probabilities.sort(dim=-1, descending=True, stable=True)
    inside = _cumulative(falling) - falling < top_p  # the most probable token always
    return probabilities.masked_fill(~torch.zeros_like(inside).scatter(-1, order, inside), 0.0)


def _cumulative(probabilities: Tensor) -> Tensor:
    """Sums along each row, [B, V]. CUDA adds up a single row in an order that changes from run to run; not so two."""
    rows = len(probabilities)
    with _without_torchs_refusal():
        return probabilities.expand(max(rows, 2), -1).cumsum(-1)[:rows]


@contextmanager
def _without_torchs_refusal() -> Iterator[None]:
    """Lift ``torch.use_deterministic_algorithms``, which refuses every cumulative sum on CUDA."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns)


class AverageOverMasks:
    """Greedy under the Bayesian model average: the M rows of a question decode one common answer.

    The average policy is pibar(a|x) = (1/M) sum_m pi(a|x, m) over whole answers. Given the tokens c chosen so far, its
    next-token distribution is sum_m w_m pi(a_t|x, m, c) with w_m proportional to pi(c|x, m). At the first token this is
    the plain average of the token probabilities.

    Args:
        masks: M, the number of masks.
        log_weights: log pi(c|x, m) up to a constant, [questions * M]; None at the first token.
    """

    temperature = 1.0

    def __init__(self, masks: int, log_weights: Tensor | None = None) -> None:
        self.masks, self.log_weights = masks, log_weights

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """One token per question, repeated for its M rows, [questions * M]."""
        weighted = logprobs if self.log_weights is None else self.log_weights[:, None] + logprobs
        token = weighted.view(-1, self.masks, logprobs.shape[-1]).logsumexp(1).argmax(-1)  # [questions]
        return token.repeat_interleave(self.masks)

    def after(self, logprob: Tensor) -> "AverageOverMasks":
        """The weights with the chosen token's log-probabilities added."""
        return type(self)(self.masks, logprob if self.log_weights is None else self.log_weights + logprob)

    def select(self, rows: Tensor) -> "AverageOverMasks":
        """The weights of the rows that stay. The rows of a question leave together, since they share an answer."""
        return type(self)(self.masks, None if self.log_weights is None else self.log_weights[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Answers of B rows, up to L tokens each."""

    token_ids: Tensor  # [B, L] int64, pad after the end
    mask: Tensor  # [B, L] bool, True up to and including EOS
    logprobs: Tensor  # [B, L] float32 or wider, at the strategy's temperature, 0 after the end
    entropy: Tensor  # [B, L] nats, of the whole distribution also where top_p is below 1, 0 after the end

    def each(self, function: Callable[[Tensor], Tensor]) -> "Generation":
        """Apply ``function`` to all four tensors."""
        return Generation(
            token_ids=function(self.token_ids),
            mask=function(self.mask),
            logprobs=function(self.logprobs),
            entropy=function(self.entropy),
        )


def require_finite_answers(answers: Generation, name_of: Callable[[int], str]) -> None:
    """Check that no token was chosen from logits that are not finite, for example because weights are damaged.

    Args:
        answers: answers of B rows.
        name_of: the name of a row, for messages.

    Raises:
        UserError: names the first row with such a token, and a remedy.
    """
    damaged = answers.logprobs.isnan().any(-1)
    if bool(damaged.any()):
        bf16 = torch.is_autocast_enabled(answers.logprobs.device.type)
        raise UserError(
            f"{name_of(int(damaged.nonzero()[0]))}: the model's logits are not finite. Its weights may be damaged"
            f"{', or too large for bf16: try bf16 false, or' if bf16 else ': use'} another checkpoint."
        )


@torch.no_grad()
def generate_eagerly(
    model: Recurrence, state: LatentState, max_new_tokens: int, *, strategy: DecodingStrategy, noise: Noise | None
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
        state, token = next_token(model, state, inputs, position, strategy=strategy, noise=noise)
        chosen, strategy, ended = token.ids, token.strategy, ~alive
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
            state, strategy = state.select(stay), strategy.select(stay)
            noise = noise.select(stay) if noise is not None else None
        inputs = chosen[:, None]
    return out.each(lambda part: part[:, :length])


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """The tokens chosen at one position."""

    ids: Tensor  # [B] int64
    logprobs: Tensor  # [B], of the ids
    entropy: Tensor  # [B] nats
    strategy: DecodingStrategy  # of the next position


def next_token(
    model: Recurrence,
    state: LatentState,
    inputs: Tensor,
    position: int,
    *,
    strategy: DecodingStrategy,
    noise: Noise | None,
) -> tuple[LatentState, NextToken]:
    """Feed ``inputs`` [B, 1] and choose the token after them; returns the state that includes ``inputs``."""
    logits, state = model.logits(state, inputs, noise)
    logprobs = at_temperature(logits[:, -1], strategy.temperature).log_softmax(-1)  # [B, V]
    chosen = strategy.choose(logprobs, position)
    logprob = logprobs.gather(-1, chosen[:, None]).squeeze(-1)
    entropy = 0.0 - logprobs.exp().mul_(logprobs).nansum(-1)  # not -0.0; where a logit is -inf, 0 times -inf
    return state, NextToken(ids=chosen, logprobs=logprob, entropy=entropy, strategy=strategy.after(logprob))


def blank(model: Recurrence, state: LatentState, max_new_tokens: int) -> Generation:
    """Empty answers of the state's rows."""
    shape, dtype = (state.rows, max_new_tokens), at_least_float32(state.hidden.dtype)
    return Generation(
        token_ids=torch.full(shape, model.tokens.pad, device=model.device),
        mask=torch.zeros(shape, dtype=torch.bool, device=model.device),
        logprobs=torch.zeros(shape, device=model.device, dtype=dtype),
        entropy=torch.zeros(shape, device=model.device, dtype=dtype),
    )
