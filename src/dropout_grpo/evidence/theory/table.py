"""Checks as tables: for the terminal, and as Markdown for ``docs/theory.md``."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from dropout_grpo.evidence.theory.check import Check

_COLOURS = {"holds": "green", "fails": "bold red", "measured": "cyan"}
_ROUNDING = 1e-10
"""Exact sums of float64 differ by less than this; their last digits differ from machine to machine."""


def render(checks: Sequence[Check]) -> Table:
    """One line a check: claim, what was looked at, what was found, verdict."""
    table = Table(show_lines=True)
    table.add_column("claim", ratio=5)
    table.add_column("quantity", ratio=4)
    table.add_column("expected")
    table.add_column("found", min_width=16)
    table.add_column("verdict")
    for check in checks:
        verdict = f"[{_COLOURS[check.verdict]}]{check.verdict}[/]"
        table.add_row(check.claim, _plain(check.quantity), number(check.exact), found(check), verdict)
    return table


def overview(checks: Sequence[Check]) -> str:
    """The same as a Markdown table."""
    rows = [[c.claim, c.quantity, number(c.exact), found(c), c.verdict] for c in checks]
    return markdown(["claim", "quantity", "expected", "found", "verdict"], rows)


def numbers_of(check: Check) -> str:
    """The rows behind a check as a Markdown table, under a line with its verdict."""
    expected = "" if check.exact is None else f", expected {number(check.exact)}"
    line = f"*{check.claim}* **{check.verdict}**: {_cell(check.quantity)}: {found(check)}{expected}."
    return f"{line}\n\n{markdown(check.detail['columns'], check.detail['rows'])}"


def found(check: Check) -> str:
    """The estimate with its interval, if it has one."""
    if check.interval is None:
        return number(check.estimate)
    low, high = check.interval
    return f"{number(check.estimate)} [{number(low)}, {number(high)}]"


def number(value: Any) -> str:
    """Three digits; what is 0 but for rounding says so; text as it is."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if 0 < abs(value) < _ROUNDING:
        return "< 1e-10"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers on the right."""
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    lines = [
        [_cell(column) for column in columns],
        ["---:" if r else "---" for r in right],
        *([_cell(number(value)) for value in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A bar would end the cell, and a star would begin emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*")


def _plain(text: str) -> str:
    """Brackets mean markup to rich."""
    return text.replace("[", "\\[")
