"""Several sources as one list of problems with weights."""

from typing import Any

import pytest

from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError


def problems(count: int, name: str, **extra: Any) -> list[Problem]:
    return [Problem(id=i, question=f"{name} {i}", steps=(), answer=str(i), extra=extra) for i in range(count)]


def test_ids_are_numbered_through_and_columns_of_one_source_are_none_in_others() -> None:
    mixed = Mixture([problems(2, "a", level=1, place="x"), problems(3, "b", level=2)], [4, 1])
    assert [problem.question for problem in mixed] == ["a 0", "a 1", "b 0", "b 1", "b 2"]
    assert [problem.id for problem in mixed] == [0, 1, 2, 3, 4]
    assert mixed.source_of == [0, 0, 1, 1, 1]
    assert mixed.weights == (0.8, 0.2)
    assert [dict(problem.extra) for problem in mixed] == [{"level": 1, "place": "x"}] * 2 + [
        {"level": 2, "place": None}
    ] * 3


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([problems(1, "a")], [1, 2], "1 sources has 2 weights: give one each"),
        ([], [], "give one each"),
        ([problems(1, "a"), []], [1, 2], "source 2 of the mixture has no problems"),
        ([problems(1, "a"), problems(1, "b")], [1, 0], "source 2 of the mixture has weight 0: use a number above 0"),
        ([problems(1, "a")], [float("nan")], "weight nan"),
        ([problems(1, "a")], [float("inf")], "weight inf"),
    ],
)
def test_refusals(sources: list[list[Problem]], weights: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(sources, weights)
