"""The table of completions, as it is printed."""

import io
import math

from rich.console import Console

from dropout_grpo.rl.logging import completions_table


def printed(*args: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(completions_table(*args))  # type: ignore[arg-type]
    return stream.getvalue()


def test_rows_show_answers_rewards_and_advantages() -> None:
    text = printed(3, ["2 + 3 ?"], [["### 5", "### 6", ""]], [[1.0, 0.0, math.nan]], [[0.5, -0.5, 0.0]], ["5"])
    assert "step 3" in text
    rows = [line for line in text.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells == [
        ["2 + 3 ? (5)", "### 5", "1.00", "+0.50"],
        ["", "### 6", "0.00", "-0.50"],
        ["", "", "none", "+0.00"],
    ]


def test_long_texts_are_cut_and_markup_is_text() -> None:
    text = printed(1, ["x" * 100], [["[red]no[/red]\nmarkup"]], [[0.0]], [[0.0]], ["5"])
    assert "x" * 56 + " ..." in text
    assert "x" * 57 not in text
    assert "[red]no[/red] markup" in text
