"""Several sources as one list of problems with weights."""

from typing import Any

import pytest

from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError


def made(count: int, name: str, **extra: Any) -> list[Problem]:
    return [Problem(id=i, question=f"{name} {i}", steps=(), answer=str(i), extra=extra) for i in range(count)]


def test_ids_are_numbered_through_and_columns_of_one_source_are_none_in_others() -> None:
    mixed = Mixture([made(2, "a", level=1, place="x"), made(3, "b", level=2)], [4, 1])
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
        ([made(1, "a")], [1, 2], "1 sources has 2 weights: give one each"),
        ([], [], "give one each"),
        ([made(1, "a"), []], [1, 2], "source 2 of the mixture has no problems"),
        ([made(1, "a"), made(1, "b")], [1, 0], "source 2 of the mixture has weight 0: use a number above 0"),
        ([made(1, "a")], [float("nan")], "weight nan"),
        ([made(1, "a")], [float("inf")], "weight inf"),
    ],
)
def test_refusals(sources: list[list[Problem]], weights: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(sources, weights)
