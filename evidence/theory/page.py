"""The blocks of ``docs/theory.md``: ``checks`` is the table of all checks; a check's id gives the numbers behind it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from evidence.pages.blocks import fill_file, unknown_block
from evidence.theory.check import Check, checks_from_json
from evidence.theory.plots import save_plots
from evidence.theory.table import numbers_of, overview


def block(checks: Sequence[Check], name: str) -> str:
    """The Markdown of one block.

    Raises:
        UserError: there is no check with that id.
    """
    found = {check.id: check for check in checks}
    if name == "checks":
        return overview(checks)
    if name not in found:
        raise unknown_block(name, ["checks", *found])
    return numbers_of(found[name])


def write_page(page: Path) -> None:
    """Fills the page and draws its figures from ``theory/checks.json`` next to it."""
    folder = page.parent / "theory"
    checks = checks_from_json((folder / "checks.json").read_text(encoding="utf-8"))
    save_plots(checks, folder)
    fill_file(page, partial(block, checks))
