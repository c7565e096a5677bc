"""The blocks of ``docs/models.md``: the families that work, and the messages of those that are refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from evidence.pages.blocks import fill_file, unknown_block
from evidence.pages.markdown import table
from evidence.studies.families import RESULT, TOLERANCE

_GAPS = ("alone", "padded", "masked", "replay")


def summary(families: dict[str, dict[str, Any]]) -> str:
    """How many families there are of each status."""
    counts = {status: _with(families, status) for status in ("works", "refused", "fails", "not built")}
    sharing = [name for name, found in counts["works"].items() if found["shares_prompt"]]
    return (
        f"{len(counts['works'])} families work, {len(sharing)} of them with one copy of the prompt for each group. "
        f"{len(counts['refused'])} are refused with a message. {len(counts['fails'])} fail without one. "
        f"{len(counts['not built'])} are not built: transformers does not make them small, or needs more packages."
    )


def working(families: dict[str, dict[str, Any]]) -> str:
    """One row per family that works."""
    rows = []
    for name, found in _with(families, "works").items():
        gaps = ["0" if found[gap] == 0 else f"{found[gap]:.0e}" for gap in _GAPS]
        good = found["masks_act"] and all(found[gap] < TOLERANCE for gap in _GAPS)
        shares = "one copy" if found["shares_prompt"] else "a copy per rollout"
        rows.append([name, found["dtype"], shares, *gaps, ", ".join(found["lacks"]), "yes" if good else "NO"])
    columns = ["family", "dtype", "prompt", "alone", "padded", "masked", "replay", "lacks", "equal, and masks act"]
    return table(columns, rows)


def refused(families: dict[str, dict[str, Any]]) -> str:
    """One row per family that is refused or fails."""
    rows = [[name, _cut(found["why"])] for name, found in families.items() if found["status"] in ("refused", "fails")]
    return table(["family", "message"], rows)


def not_built(families: dict[str, dict[str, Any]]) -> str:
    """The names of the families that are not built."""
    return ", ".join(_with(families, "not built")) + "."


BLOCKS = {"summary": summary, "working": working, "refused": refused, "not_built": not_built}


def block(families: dict[str, dict[str, Any]], name: str) -> str:
    """The Markdown of one block.

    Raises:
        UserError: there is no such block.
    """
    if name not in BLOCKS:
        raise unknown_block(name, list(BLOCKS))
    return BLOCKS[name](families)


def write_page(page: Path) -> None:
    """Fills the page from ``results/families.json`` next to it."""
    found = json.loads((page.parent / "results" / RESULT).read_text(encoding="utf-8"))
    fill_file(page, partial(block, found["families"]))


def _with(families: dict[str, dict[str, Any]], status: str) -> dict[str, dict[str, Any]]:
    return {name: found for name, found in families.items() if found["status"] == status}


def _cut(text: str) -> str:
    """The message without its list of modules."""
    before, mark, _ = text.partition("; its modules are ")
    return f"{before} ..." if mark else text
