"""Documents with text written by hand and numbers filled in from results.

A block stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``. Filling a document replaces the
text between the two marks and leaves the rest as it is.
"""

import re
from collections.abc import Callable
from pathlib import Path

from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import write_text

_BLOCK = re.compile(r"(<!-- begin: (?P<name>[\w.-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)

Make = Callable[[str], str]
"""The Markdown of the block with a given name. Raises UserError if there is no such block."""


def fill(text: str, make: Make) -> str:
    """Returns the document with every block replaced.

    Raises:
        UserError: the document names a block that ``make`` does not know.
    """
    return _BLOCK.sub(lambda match: f"{match[1]}\n{make(match['name'])}\n\n{match[3]}", text)


def fill_file(page: Path, make: Make) -> None:
    """Fills the blocks of a document in place."""
    write_text(page, fill(page.read_text(encoding="utf-8"), make))


def unknown_block(name: str, known: list[str]) -> UserError:
    """The error for a block that no table or figure is known for."""
    return UserError(f"the page has a block {name!r}, but the blocks are {', '.join(known)}.")
