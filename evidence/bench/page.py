"""The blocks of ``docs/performance.md``.

A block ``FILE.TABLE`` is a table of ``tables.py`` made from the result file ``performance/FILE.json`` next to the page.
The figure of a sweep is written to ``performance/FILE.svg``.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from evidence.bench.plots import save_sweep_plot
from evidence.bench.tables import OF_CASES, OF_SIZES, OF_SWEEPS, OF_TESTS, Result, tables
from evidence.pages.blocks import fill_file, unknown_block

_NO_RESULT = "*Not measured yet.*"


def read_results(folder: Path) -> dict[str, Result]:
    """The result files of a folder by name, without their ending."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def block(results: Mapping[str, Result], name: str) -> str:
    """The Markdown of one block; a block without a result file says so.

    Raises:
        UserError: there is no table of that name for the kind of result.
    """
    file, _, table = name.rpartition(".")
    known = tables(results[file]) if file in results else OF_CASES | OF_SIZES | OF_SWEEPS | OF_TESTS
    if table not in known:
        raise unknown_block(name, [f"{file}.{known_table}" for known_table in known])
    return known[table](results[file]) if file in results else _NO_RESULT


def write_page(page: Path) -> None:
    """Fills the page and draws the sweeps from the result files next to it."""
    folder = page.parent / "performance"
    results = read_results(folder)
    for name, result in results.items():
        if result["kind"] == "sweep":
            save_sweep_plot(result, folder / f"{name}.svg")
    fill_file(page, partial(block, results))
