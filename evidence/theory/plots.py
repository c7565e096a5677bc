"""The page's three figures as SVG files, drawn only from the stored checks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from evidence.pages.figures import BLUE, GREEN, INK, ORANGE, save
from evidence.theory.check import Check

Draw = Callable[[Mapping[str, Check]], Figure]
_SIZE = (6.4, 3.6)  # inches


def save_plots(checks: Sequence[Check], folder: Path) -> list[Path]:
    """Writes one SVG for each figure whose checks are all there; returns the files."""
    by_id = {check.id: check for check in checks}
    files = []
    for name, (needs, draw) in FIGURES.items():
        if by_id.keys() >= set(needs):
            files.append(folder / f"{name}.svg")
            save(files[-1], partial(draw, by_id))
    return files


def _coupling(checks: Mapping[str, Check]) -> Figure:
    check = checks["coupling.reused"]
    figure = Figure(figsize=_SIZE)
    axes = figure.add_subplot(xlabel="|d| / |theta|", ylabel="Var[g(theta + d) - g(theta)] / (2 Var g)")
    scale = [2 * value for value in check.column("Var g(theta)")]
    for column, colour, marker in (("mask and answer reused", BLUE, "o"), ("mask and answer fresh", ORANGE, "s")):
        ys = [value / whole for value, whole in zip(check.column(column), scale, strict=True)]
        axes.loglog(check.column("|d| / |theta|"), ys, marker, color=colour, markersize=4, label=column)
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.legend(loc="lower right")
    return figure


def _factors(checks: Mapping[str, Check]) -> Figure:
    figure = Figure(figsize=_SIZE)
    axes = figure.add_subplot(xlabel="success rate of the question, J", ylabel="c in E g = c grad J")
    colours = iter((ORANGE, BLUE, GREEN))
    for check in (checks["divided.group"], checks["filtered.objective"]):
        for name, curve in check.curves.items():
            if name != "J":
                axes.plot(check.curves["J"], curve, color=next(colours), label=name)
    axes.axhline(7 / 8, color=INK, linestyle="--", linewidth=1, label="neither, K = 8: (K-1)/K")
    axes.set_ylim(0, 4.5)
    axes.legend(loc="upper center")
    return figure


def _baseline(checks: Mapping[str, Check]) -> Figure:
    cases = checks["baseline.condition"].curves["cases"]
    figure = Figure(figsize=_SIZE)
    axes = figure.add_subplot(xlabel="J / 2b*", ylabel="tr Cov g over that without baseline")
    x = [success / (2 * best) for success, best, _, _ in cases]
    for column, colour, label in ((3, ORANGE, "leave-one-out, K = 8"), (2, BLUE, "A = r - J")):
        axes.semilogx(x, [case[column] for case in cases], "o", color=colour, markersize=4, alpha=0.7, label=label)
    axes.axhline(1, color=INK, linewidth=1)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(loc="lower left")
    return figure


FIGURES: dict[str, tuple[tuple[str, ...], Draw]] = {
    "factors": (("divided.group", "filtered.objective"), _factors),
    "coupling": (("coupling.reused",), _coupling),
    "baseline": (("baseline.condition",), _baseline),
}
"""Name of the file, ids of the checks that it is drawn from, function that draws it."""
