"""The blocks of ``docs/models.md``, from ``docs/results/families.json``, which a slow test writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.pages.blocks import fill_file, unknown_block
from evidence.pages.markdown import table

GAPS = ("alone", "padded", "masked", "replay")
"""The largest differences from a family's own forward pass that are measured."""


def equal(family: Mapping[str, Any], tolerance: float) -> bool:
    """Whether a family that works gives the results of its own forward pass, and masks change them."""
    return family["masks_act"] and all(family[gap] < tolerance for gap in GAPS)


def blocks(record: Mapping[str, Any]) -> dict[str, str]:
    """The Markdown of every block by name."""
    families = record["families"]
    of: dict[str, list[str]] = {status: [] for status in ("works", "refused", "fails", "not built")}
    for name, family in families.items():
        of[family["status"]].append(name)
    sharing = sum(families[name]["shares_prompt"] for name in of["works"])
    working = []
    for name in of["works"]:
        family = families[name]
        gaps = ["0" if family[gap] == 0 else f"{family[gap]:.0e}" for gap in GAPS]
        prompt = "one copy" if family["shares_prompt"] else "a copy per rollout"
        good = "yes" if equal(family, record["tolerance"]) else "NO"
        working.append([name, family["dtype"], prompt, *gaps, ", ".join(family["lacks"]), good])
    refused = [[name, _cut(family["why"])] for name, family in families.items() if name in of["refused"] + of["fails"]]
    return {
        "summary": f"{len(of['works'])} families work, {sharing} of them with one copy of the prompt for each group. "
        f"{len(of['refused'])} are refused with a message, and {len(of['fails'])} fail without one. "
        f"{len(of['not built'])} are not built: transformers does not make them small, or needs more packages.",
        "working": table(["family", "dtype", "prompt", *GAPS, "lacks", "equal, and masks act"], working),
        "refused": table(["family", "message"], refused),
        "not_built": f"{', '.join(of['not built'])}.",
    }


def write_page(page: Path) -> None:
    """Fills the page from ``results/families.json`` next to it."""
    texts = blocks(json.loads((page.parent / "results" / "families.json").read_text(encoding="utf-8")))

    def block(name: str) -> str:
        if name not in texts:
            raise unknown_block(name, list(texts))
        return texts[name]

    fill_file(page, block)


def _cut(text: str) -> str:
    """The message without its list of modules."""
    before, mark, _ = text.partition("; its modules are ")
    return f"{before} ..." if mark else text
