"""Tables, numbers and commands as Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_ROUNDING = 1e-10
"""Exact sums of float64 differ by less than this; their last digits differ from machine to machine."""

_NUMBER = re.compile(r"(< )?[+-]?[\d.,]+(e-?\d+)?( %)?")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table. Columns of numbers are aligned on the right.

    Args:
        columns: headings.
        rows: values; numbers are shortened by ``number``, text is not changed.
    """
    texts = [[number(value) for value in row] for row in rows]
    right = [all(_NUMBER.fullmatch(row[i]) or not row[i] for row in texts) for i in range(len(columns))]
    lines = [
        [escaped(column) for column in columns],
        ["---:" if r else "---" for r in right],
        *([escaped(text) for text in row] for row in texts),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: Any) -> str:
    """Three significant digits. Rounding errors of exact sums are shown as ``< 1e-10``; text is not changed."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if 0 < abs(value) < _ROUNDING:
        return "< 1e-10"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage, without the sign."""
    return f"{100 * share:.{digits}f}"


def percent_range(interval: Sequence[float]) -> str:
    """An interval of shares as percentages."""
    low, high = interval
    return f"{percent(low)} to {percent(high)}"


def console(commands: Iterable[str]) -> str:
    """Command lines as a fenced block."""
    lines = "\n".join(f"$ {command}" for command in commands)
    return f"```console\n{lines}\n```"


def escaped(text: str) -> str:
    """Text for a table cell: a bar would end the cell, and a star would begin emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*")
