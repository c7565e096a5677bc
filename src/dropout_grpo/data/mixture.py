"""Problems of several sources, to be drawn from each with its own weight."""

from collections.abc import Sequence
from dataclasses import replace

from dropout_grpo.data.problem import Problem, with_equal_columns
from dropout_grpo.errors import UserError


class Mixture(list[Problem]):
    """The problems of all sources, one source after the other. Only training with GRPO uses the weights.

    Ids are numbered through, so that no two problems share the seeds of their rollouts. Extra columns are those of
    all sources, with None where a source lacks one.

    Args:
        sources: the problems of each source, at least one.
        weights: share of the questions that come from each source, up to a common factor.

    Attributes:
        source_of: the index of each problem's source.
        weights: summing to 1.

    Raises:
        UserError: a source is empty, or the weights are not one positive number per source.
    """

    def __init__(self, sources: Sequence[Sequence[Problem]], weights: Sequence[float]) -> None:
        if len(weights) != len(sources) or not sources:
            raise UserError(f"a mixture of {len(sources)} sources has {len(weights)} weights: give one each.")
        for index, (problems, weight) in enumerate(zip(sources, weights, strict=True)):
            if not problems:
                raise UserError(f"source {index + 1} of the mixture has no problems: leave it out.")
            if not 0 < weight < float("inf"):
                raise UserError(f"source {index + 1} of the mixture has weight {weight}: use a number above 0.")
        together = with_equal_columns([problem for problems in sources for problem in problems])
        super().__init__(replace(problem, id=index) for index, problem in enumerate(together))
        self.source_of = [source for source, problems in enumerate(sources) for _ in problems]
        self.weights = tuple(weight / sum(weights) for weight in weights)
