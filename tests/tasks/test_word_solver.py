"""The oracle of the word problems: right on a story solved by hand, and strict about its input."""

import pytest

from helpers.word_solver import solve

HAND_MADE = (
    "tom has 7 apples . on monday tom buys 6 apples . ann owns 9 pens . on tuesday tom loses 4 apples . "
    "how many apples does tom have now ?"
)


@pytest.mark.parametrize(
    ("old", "new", "answer", "steps"),
    [
        ("", "", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
        ("does tom have now", "are left", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
        ("buys 6", "drops 6", -3, ["<<7-6=1>>", "<<1-4=-3>>"]),
        ("tom loses 4", "tom quadruples the", 52, ["<<7+6=13>>", "<<13*4=52>>"]),
        ("apples does tom", "pens does ann", 9, []),
        ("ann owns 9 pens", "tom owns 9 pens", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
        ("ann owns 9 pens", "ann owns 9 apples", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
    ],
)
def test_the_solver_itself(old: str, new: str, answer: int, steps: list[str]) -> None:
    assert solve(HAND_MADE.replace(old, new)) == (answer, steps)
