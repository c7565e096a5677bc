"""The blocks of ``docs/performance.md`` and ``docs/performance/tables.md``.

A block ``FILE.TABLE`` is a table of ``tables.py`` made from the result file ``docs/performance/FILE.json``. The
figure of a sweep is ``docs/performance/FILE.svg``.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.bench.tables import (
    ARM_LABELS,
    AXIS_LABELS,
    OF_CASES,
    OF_COMMITS,
    OF_SIZES,
    OF_SWEEPS,
    OF_TESTS,
    Result,
    tables,
)
from evidence.pages.blocks import fill_file, unknown_block
from evidence.pages.figures import BLUE, ORANGE, save

_COLOURS = {"engine": BLUE, "plain": ORANGE}
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
    known = tables(results[file]) if file in results else OF_CASES | OF_SIZES | OF_SWEEPS | OF_TESTS | OF_COMMITS
    if table not in known:
        raise unknown_block(name, [f"{file}.{known_table}" for known_table in known])
    return known[table](results[file]) if file in results else _NO_RESULT


def write_page(page: Path) -> None:
    """Fills the page and ``performance/tables.md`` next to it, and draws the sweeps that they show."""
    folder = page.parent / "performance"
    results = read_results(folder)
    for file in (page, folder / "tables.md"):
        if not file.is_file():
            continue
        fill_file(file, partial(block, results))
        text = file.read_text(encoding="utf-8")
        for name, result in results.items():
            if result["kind"] == "sweep" and f"{name}.svg)" in text:
                save(folder / f"{name}.svg", partial(sweep_figure, result))


def sweep_figure(result: Result) -> Figure:
    """One row per job, one column per axis. Dots are measured, lines are fitted.

    Every panel starts at 0 seconds, so that slopes can be compared.
    """
    axes_found = list(dict.fromkeys(sweep["axis"] for sweep in result["results"]))
    jobs = list(dict.fromkeys(sweep["job"] for sweep in result["results"]))
    figure = Figure(figsize=(2.9 * len(axes_found), 2.6 * len(jobs)))
    grid = figure.subplots(len(jobs), len(axes_found), squeeze=False)
    for sweep in result["results"]:
        _panel(grid[jobs.index(sweep["job"])][axes_found.index(sweep["axis"])], sweep)
    for row, job in zip(grid, jobs, strict=True):
        row[0].set_ylabel(f"{job}, seconds")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _panel(axes: Axes, sweep: Result) -> None:
    values = sweep["values"]
    for name, arm in sweep["arms"].items():
        fit, ends = arm["fit"], [0, values[-1]]
        axes.plot(values, arm["medians"], "o", color=_COLOURS[name], label=ARM_LABELS[name], markersize=4)
        axes.plot(ends, [fit["intercept"] + fit["slope"] * x for x in ends], color=_COLOURS[name], linewidth=1)
    axes.set_xlabel(AXIS_LABELS[sweep["axis"]])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
