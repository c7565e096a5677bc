"""The blocks of ``docs/RESULTS.md``: ``STUDY.TABLE`` is a table of a study, made from the files in ``docs/results``."""

from functools import partial
from pathlib import Path

from evidence.pages.blocks import fill_file, unknown_block
from evidence.studies import (
    demo_tables,
    gsm8k_tables,
    prosqa_tables,
    smollm2_tables,
    study_tables,
    sweep_tables,
)

_TABLES = {
    f"{study}.{name}": make
    for study, module in (
        ("study", study_tables),
        ("demo", demo_tables),
        ("sweep", sweep_tables),
        ("smollm2", smollm2_tables),
        ("gsm8k", gsm8k_tables),
        ("prosqa", prosqa_tables),
    )
    for name, make in module.BLOCKS.items()
}


def block(folder: Path, name: str) -> str:
    """The Markdown of one block.

    Raises:
        UserError: there is no such table.
    """
    if name not in _TABLES:
        raise unknown_block(name, list(_TABLES))
    return _TABLES[name](folder)


def write_page(page: Path) -> None:
    """Fills the page and draws its figures from the result files next to it."""
    folder = page.parent / "results"
    study_tables.draw(folder)
    prosqa_tables.draw(folder)
    fill_file(page, partial(block, folder))
