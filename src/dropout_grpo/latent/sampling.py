"""How the next token is chosen from log-probabilities.

A chooser is an argument of ``generate``. It is immutable: ``after`` returns the chooser for the next position. Random
choices are a function of seeds.
"""

from typing import Protocol

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import stream, uniform


class Chooser(Protocol):
    """A rule for the next token. Logits are divided by ``temperature`` before the rule is applied."""

    @property
    def temperature(self) -> float: ...

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """Token ids [B] from log-probabilities [B, V]; ``position`` counts answer tokens from 0."""
        ...

    def after(self, logprob: Tensor) -> "Chooser":
        """The rule for the next position, given the log-probabilities [B] of the tokens chosen at this one."""
        ...

    def select(self, rows: Tensor) -> "Chooser":
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


class Sampled:
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

    def after(self, logprob: Tensor) -> "Sampled":
        """The same rule: the position is an argument of ``choose``."""
        return self

    def select(self, rows: Tensor) -> "Sampled":
        """The seeds of the rows that stay."""
        return Sampled(self.seeds[rows], self.temperature, self.top_p)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The probabilities [B, V] with those outside the nucleus set to 0. Of equal ones the first come first."""
    falling, order = probabilities.sort(dim=-1, descending=True, stable=True)
    inside = _cumulative(falling) - falling < top_p  # the most probable token always
    return probabilities.masked_fill(~torch.zeros_like(inside).scatter(-1, order, inside), 0.0)


def _cumulative(probabilities: Tensor) -> Tensor:
    """Sums along each row, [B, V]. CUDA adds up a single row in an order that changes from run to run; not so two."""
    rows = len(probabilities)
    return probabilities.expand(max(rows, 2), -1).cumsum(-1)[:rows]


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
