"""Numbers and tables by hand."""

from typing import Any

import pytest

from evidence.pages.markdown import number, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (3e-16, "< 1e-10"),
        (-3e-16, "< 1e-10"),
        (0.123456, "0.123"),
        (48474.43, "48474"),
        (37933056, "37,933,056"),
        ("held", "held"),
        (5.2e-06, "5.2e-06"),
    ],
)
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text


def test_table_by_hand() -> None:
    assert table(["name", "value*"], [["a|b", 0.123456789], ["c", 2]]) == "\n".join(
        ["| name | value\\* |", "| --- | ---: |", "| a\\|b | 0.123 |", "| c | 2 |"]
    )


def test_columns_of_formatted_numbers_are_on_the_right() -> None:
    rows = [["46.4", "3 %", "1e-05", "44 to 48"], ["", "-12.5 %", "7e-56", "1"]]
    assert table(["a", "b", "c", "d"], rows).splitlines()[1] == "| ---: | ---: | ---: | --- |"
