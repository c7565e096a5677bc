"""All sweeps as one figure: one row per job, one column per axis. Dots are measured, lines are fitted."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.bench.tables import ARM_LABELS, AXIS_LABELS, Result
from evidence.pages.figures import BLUE, ORANGE, save

_COLOURS = {"engine": BLUE, "plain": ORANGE}


def save_sweep_plot(result: Result, file: Path) -> None:
    """Writes the figure of a sweep result as SVG."""
    save(file, lambda: sweep_figure(result))


def sweep_figure(result: Result) -> Figure:
    """The figure. Every panel starts at 0 seconds, so that slopes can be compared."""
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
