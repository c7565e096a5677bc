"""How the next token is chosen from log-probabilities. The rule is an argument, its randomness comes from seeds."""

from typing import Protocol

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import stream, uniform


class Chooser(Protocol):
    """A rule for the next token. ``temperature`` divides the logits before the rule sees them."""

    @property
    def temperature(self) -> float: ...

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """Token ids [B] from log-probabilities [B, V]; ``position`` counts answer tokens from 0."""
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

    def select(self, rows: Tensor) -> "Greedy":
        """The same rule for any rows."""
        return self


class Sample:
    """A draw at a temperature, by inverting the distribution function at a uniform that the row's seed determines.

    The token is a function of (seed, position, probabilities) alone, so a rollout does not depend on its batch.
    """

    def __init__(self, seeds: Tensor, temperature: float) -> None:
        self.seeds, self.temperature = seeds, temperature

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """A sample of each row, [B]."""
        u = uniform(self.seeds, stream(f"answer.{position}", 1, self.seeds.device))  # [B, 1]
        cumulative = logprobs.exp().cumsum(-1)
        total = cumulative[:, -1:]
        # Below the total even after rounding, so that the first entry above it has a probability above zero.
        target = torch.minimum(u.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total)))
        chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        return chosen.clamp(max=logprobs.shape[-1] - 1)  # beyond the end only if a log-prob is not a number

    def select(self, rows: Tensor) -> "Sample":
        """The seeds of the rows that stay."""
        return Sample(self.seeds[rows], self.temperature)


class AverageOverMasks:
    """Greedy under the Bayesian model average: the M rows of a question decode one common answer.

    The average policy is pibar(a|x) = (1/M) sum_m pi(a|x, m) over whole answers, so its next-token distribution given
    the prefix is sum_m w_m pi(a_t|x, m, prefix) with w_m proportional to pi(prefix|x, m). At the first token this is
    the plain average of the token probabilities.
    """

    temperature = 1.0

    def __init__(self, masks: int, prefix: Tensor | None = None) -> None:
        self.masks, self.prefix = masks, prefix  # prefix: log pi(prefix | x, m), [questions, M]

    def choose(self, logprobs: Tensor, position: int) -> Tensor:
        """One token a question, repeated for its M rows, [questions * M]."""
        rows = logprobs.view(-1, self.masks, logprobs.shape[-1])
        if self.prefix is None:
            self.prefix = rows.new_zeros(rows.shape[:2])
        weighted = self.prefix[..., None] + rows  # log of w_m pi(token | m) up to a constant, [questions, M, V]
        token = weighted.logsumexp(1).argmax(-1, keepdim=True)  # [questions, 1]
        self.prefix = weighted.gather(-1, token[:, None].expand(-1, self.masks, -1)).squeeze(-1)
        return token.expand(-1, self.masks).reshape(-1)

    def select(self, rows: Tensor) -> "AverageOverMasks":
        """The questions that stay: their rows leave together, having the same answer."""
        questions = rows.view(-1, self.masks)[:, 0] // self.masks
        return AverageOverMasks(self.masks, None if self.prefix is None else self.prefix[questions])
