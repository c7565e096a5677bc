"""The sweeps as one figure: a row a job, a column an axis, dots measured, lines fitted."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dropout_grpo.evidence.bench.tables import ARMS, AXES, Result

_COLOURS = {"engine": "#2b5c9e", "plain": "#c05a12"}
_STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9dcdf",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "dropout-grpo",  # equal data give an equal file
}


def save_sweep_plot(result: Result, file: Path) -> None:
    """Write the figure of a sweep result as SVG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_STYLE):
        sweep_figure(result).savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def sweep_figure(result: Result) -> Figure:
    """The figure; every panel begins at 0 seconds, so that a slope shows for what it is."""
    axes_found = list(dict.fromkeys(sweep["axis"] for sweep in result["results"]))
    jobs = list(dict.fromkeys(sweep["job"] for sweep in result["results"]))
    figure = Figure(figsize=(2.9 * len(axes_found), 2.6 * len(jobs)), layout="constrained", facecolor="white")
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
        axes.plot(values, arm["medians"], "o", color=_COLOURS[name], label=ARMS[name], markersize=4)
        axes.plot(ends, [fit["intercept"] + fit["slope"] * x for x in ends], color=_COLOURS[name], linewidth=1)
    axes.set_xlabel(AXES[sweep["axis"]])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
