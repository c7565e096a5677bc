"""Checks as tables: for the terminal, and as Markdown for ``docs/theory.md``."""

from collections.abc import Sequence

from rich.table import Table

from evidence.pages.markdown import escaped, number, table as markdown_table
from evidence.theory.check import Check

_COLOURS = {"holds": "green", "fails": "bold red", "measured": "cyan"}


def render(checks: Sequence[Check]) -> Table:
    """A table for the terminal, one row per check: claim, quantity, expected value, found value, verdict."""
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
    """The same table as Markdown."""
    rows = [[c.claim, c.quantity, number(c.exact), found(c), c.verdict] for c in checks]
    return markdown_table(["claim", "quantity", "expected", "found", "verdict"], rows)


def numbers_of(check: Check) -> str:
    """A line with the verdict of a check, then the numbers behind it as a Markdown table."""
    expected = "" if check.exact is None else f", expected {number(check.exact)}"
    line = f"*{escaped(check.claim)}* **{check.verdict}**: {escaped(check.quantity)}: {found(check)}{expected}."
    return f"{line}\n\n{markdown_table(check.detail['columns'], check.detail['rows'])}"


def found(check: Check) -> str:
    """The estimate, with its interval if it has one."""
    if check.interval is None:
        return number(check.estimate)
    low, high = check.interval
    return f"{number(check.estimate)} [{number(low)}, {number(high)}]"


def _plain(text: str) -> str:
    """Escapes brackets, which rich would read as markup."""
    return text.replace("[", "\\[")
