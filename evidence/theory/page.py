"""The blocks of ``docs/theory.md``: ``checks`` is the table of all checks; a check's id gives the numbers behind it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evidence.pages.blocks import fill_file, unknown_block
from evidence.pages.markdown import escaped, number, table
from evidence.theory.check import Check, checks_from_json
from evidence.theory.plots import save_plots


def block(checks: Sequence[Check], name: str) -> str:
    """The Markdown of one block.

    Raises:
        UserError: there is no check with that id.
    """
    if name == "checks":
        return table(
            ["claim", "quantity", "expected", "value", "verdict"],
            [[c.claim, c.quantity, number(c.expected), value_of(c, expected=False), c.verdict] for c in checks],
        )
    by_id = {check.id: check for check in checks}
    if name not in by_id:
        raise unknown_block(name, ["checks", *by_id])
    check = by_id[name]
    line = f"*{escaped(check.claim)}* **{check.verdict}**: {escaped(check.quantity)}: {value_of(check)}."
    return f"{line}\n\n{table(check.columns, check.rows)}"


def value_of(check: Check, *, expected: bool = True) -> str:
    """The value with its interval, if it has one, and the expected value."""
    text = number(check.value)
    if check.interval is not None:
        low, high = check.interval
        text += f" [{number(low)}, {number(high)}]"
    return text if check.expected is None or not expected else f"{text}, expected {number(check.expected)}"


def write_page(page: Path) -> None:
    """Fills the page and draws its figures from ``theory/checks.json`` next to it."""
    folder = page.parent / "theory"
    checks = checks_from_json((folder / "checks.json").read_text(encoding="utf-8"))
    save_plots(checks, folder)
    fill_file(page, partial(block, checks))
