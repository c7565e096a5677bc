"""``python -m dropout_grpo.evidence.theory.page [docs/theory.md]``: run all checks, then redo the page.

Prose is written by hand, numbers are not: every table of the page stands between ``<!-- begin: NAME -->`` and
``<!-- end: NAME -->``, where NAME is ``checks`` for all of them or a check's id, and is replaced from
``theory/checks.json`` beside the page, which this writes along with the figures.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from dropout_grpo.errors import UserError
from dropout_grpo.evidence.theory.check import Check, checks_from_json, checks_to_json
from dropout_grpo.evidence.theory.checks import run
from dropout_grpo.evidence.theory.plots import save_plots
from dropout_grpo.evidence.theory.table import numbers_of, overview
from dropout_grpo.runs.folder import write_text

_BLOCK = re.compile(r"(<!-- begin: (?P<name>[\w.]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)


def fill(text: str, checks: Sequence[Check]) -> str:
    """The page with every block made anew.

    Raises:
        UserError: a block is named after a check that there is not.
    """
    found = {check.id: check for check in checks}

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name != "checks" and name not in found:
            raise UserError(f"the page has a block {name!r}, but the checks are {', '.join(found)}.")
        body = overview(checks) if name == "checks" else numbers_of(found[name])
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return _BLOCK.sub(block, text)


def write_page(page: Path, checks: Sequence[Check]) -> None:
    """Write ``theory/checks.json`` and the figures beside the page, and fill its blocks from the former."""
    folder = page.parent / "theory"
    text = checks_to_json(checks)
    write_text(folder / "checks.json", text)
    save_plots(checks_from_json(text), folder)
    write_text(page, fill(page.read_text(encoding="utf-8"), checks_from_json(text)))


if __name__ == "__main__":
    write_page(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/theory.md"), run())
