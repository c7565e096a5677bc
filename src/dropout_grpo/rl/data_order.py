"""The order of the training problems: endless passes over each source, with sources interleaved by weight."""

from collections.abc import Sequence

import torch

from dropout_grpo.exploration.seeds import fold


class DataOrder:
    """A pure function from the number of a question to a problem, so that a resumed run continues where it stopped.

    Each pass over a source contains each of its problems once, in an order drawn for that pass. The next question comes
    from the source that is furthest behind its share, so after n questions the number from each source differs from its
    share of n by at most about one.

    Args:
        sources: indices of the problems of each source.
        weights: share of each source; they sum to 1.
        seed: seed of the orders.
    """

    def __init__(self, sources: Sequence[Sequence[int]], weights: Sequence[float], seed: int) -> None:
        self.sources, self.weights, self.seed = sources, weights, seed
        self._drawn: list[tuple[int, int]] = []  # source of each question so far, and its number within the source
        self._counts = [0] * len(sources)

    def indices(self, questions: range) -> list[int]:
        """Indices of the problems for these questions, which are counted from 0."""
        orders: dict[tuple[int, int], list[int]] = {}
        indices = []
        for question in questions:
            source, number = self._source(question)
            size = len(self.sources[source])
            key = (source, number // size)
            if key not in orders:
                orders[key] = self._shuffled(*key)
            indices.append(self.sources[source][orders[key][number % size]])
        return indices

    def _source(self, question: int) -> tuple[int, int]:
        """The source of a question, and how many questions were drawn from it before."""
        if len(self.sources) == 1:
            return 0, question
        while len(self._drawn) <= question:
            total = len(self._drawn) + 1
            behind = [weight * total - count for weight, count in zip(self.weights, self._counts, strict=True)]
            source = behind.index(max(behind))
            self._drawn.append((source, self._counts[source]))
            self._counts[source] += 1
        return self._drawn[question]

    def _shuffled(self, source: int, epoch: int) -> list[int]:
        """The order of one pass over a source."""
        seed = fold(torch.tensor(self.seed), epoch)
        if source:
            seed = fold(seed, source)
        generator = torch.Generator().manual_seed(int(seed))
        return torch.randperm(len(self.sources[source]), generator=generator).tolist()
