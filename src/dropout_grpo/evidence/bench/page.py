"""Fill docs/performance.md from result files: prose is written by hand, numbers are not.

A block of the page stands between ``<!-- begin: FILE.TABLE -->`` and ``<!-- end: FILE.TABLE -->``, where FILE is a
result file's name without its ending and TABLE one of ``tables.py``. A sweep's figure is written to
``performance/FILE.svg`` beside the page.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from dropout_grpo.errors import UserError
from dropout_grpo.evidence.bench.plots import save_sweep_plot
from dropout_grpo.evidence.bench.tables import OF_CASES, OF_SWEEPS, OF_TESTS, Result, tables
from dropout_grpo.runs.folder import write_text

_BLOCK = re.compile(r"(<!-- begin: (?P<name>[\w-]+\.\w+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)


def write_page(page: Path, folder: Path) -> None:
    """Fill the page's blocks from the JSON files of a folder, and draw the sweeps.

    Raises:
        UserError: a block names a table that there is not.
    """
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    for name, result in results.items():
        if result["kind"] == "sweep":
            save_sweep_plot(result, page.parent / "performance" / f"{name}.svg")
    write_text(page, fill(page.read_text(encoding="utf-8"), results))


def fill(text: str, results: Mapping[str, Result]) -> str:
    """The page with every block made anew; a block whose file is missing says so.

    Raises:
        UserError: a block names a table that there is not.
    """

    def block(match: re.Match[str]) -> str:
        name, _, table = match["name"].rpartition(".")
        known = tables(results[name]) if name in results else OF_CASES | OF_SWEEPS | OF_TESTS
        if table not in known:
            raise UserError(f"the page has a block {match['name']!r}, but the tables are {', '.join(known)}.")
        body = known[table](results[name]) if name in results else "*Not measured yet.*"
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return _BLOCK.sub(block, text)
