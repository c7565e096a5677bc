"""Figures of the checks as SVG files, drawn only from the checks' details."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from evidence.pages.figures import BLUE, GREEN, INK, ORANGE, save
from evidence.theory.check import Check

Found = Mapping[str, Check]
Draw = Callable[[Found], Figure]


def save_plots(checks: Sequence[Check], folder: Path) -> list[Path]:
    """Writes one SVG for each figure whose checks are all given; returns the files."""
    found = {check.id: check for check in checks}
    files = []
    for name, (needs, draw) in FIGURES.items():
        if all(need in found for need in needs):
            files.append(folder / f"{name}.svg")
            save(files[-1], partial(draw, found))
    return files


def _axes(xlabel: str, ylabel: str = "", size: tuple[float, float] = (6.4, 3.6)) -> Axes:
    figure = Figure(figsize=size)
    return figure.add_subplot(xlabel=xlabel, ylabel=ylabel)


def _done(axes: Axes) -> Figure:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _unbiased(found: Found) -> Figure:
    exact, sampled = found["unbiased.exact"], found["unbiased.sampled"]
    axes = _axes("rollouts of a group, K", "factor c in E g = c grad J")
    ks = exact.column("K")
    curve = [2 + i / 20 for i in range(121)]
    axes.plot(curve, [(k - 1) / k for k in curve], color=BLUE, linestyle="--", label="(K-1)/K")
    axes.plot(ks, exact.column("factor found"), "o", color=BLUE, label="r - mean(r), exact sum")
    axes.axhline(1.0, color=ORANGE, linestyle="--")
    axes.plot(ks, exact.column("leave-one-out"), "s", color=ORANGE, label="leave-one-out, exact sum")
    assert sampled.interval is not None
    assert sampled.estimate is not None
    low, high = sampled.interval
    (k,) = sampled.column("K")
    error = [[sampled.estimate - low], [high - sampled.estimate]]
    # Shifted, so that it does not cover the exact dot.
    axes.errorbar([k + 0.15], [sampled.estimate], yerr=error, fmt="D", color=GREEN, capsize=4, label="sampled rollouts")
    axes.set_xticks(ks)
    axes.set_ylim(0.4, 1.1)
    axes.legend(loc="lower right")
    return _done(axes)


def _divided(found: Found) -> Figure:
    detail = found["divided.group"].detail
    axes = _axes("success rate of the question, J(x)", "factor c(x) in E g(x) = c(x) grad J(x)")
    axes.plot(
        detail["curve_success"], detail["curve_group"], color=ORANGE, label="divided by the group's standard deviation"
    )
    axes.plot(
        detail["curve_success"], detail["curve_none"], color=BLUE, label="not divided: the same for all questions"
    )
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower center")
    return _done(axes)


def _baseline(found: Found) -> Figure:
    cases = found["baseline.condition"].detail["cases"]
    axes = _axes("J / 2b*", "tr Cov g over that without baseline")
    x = [success / (2 * best) for success, best, _, _ in cases]
    for column, colour, label in ((3, ORANGE, "leave-one-out, K = 8"), (2, BLUE, "A = r - J")):
        y = [case[column] for case in cases]
        axes.semilogx(x, y, "o", color=colour, markersize=4, alpha=0.7, label=label)
    axes.axhline(1, color=INK, linewidth=1)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(loc="lower left")
    return _done(axes)


def _replay(found: Found) -> Figure:
    check = found["replay.bias"]
    figure = Figure(figsize=(8.2, 2.9))
    names = ["mask replayed", *(f"fresh, {name}" for name in check.column("update")[1:])]
    columns = ("bias of E g", "tr Cov g over replayed")
    for i, (column, label) in enumerate(zip(columns, ("bias, |E g - grad J| / |grad J|", columns[1]), strict=True)):
        axes = figure.add_subplot(1, 2, i + 1, xlabel=label)
        values = check.column(column)
        axes.barh(range(len(names)), values, color=[BLUE] + [ORANGE] * (len(names) - 1), height=0.6)
        axes.set_yticks(range(len(names)), names if i == 0 else [""] * len(names))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        if i == 1:
            axes.axvline(1, color=INK, linewidth=1)
    return figure


def _latent_gradient(found: Found) -> Figure:
    check = found["latent_gradient.differences"]
    axes = _axes("largest error of an entry, in units of the largest entry", size=(7.2, 4.2))
    names = check.column("parameter")
    for column, colour, marker in (
        ("error", BLUE, "o"),
        ("error, thoughts detached", ORANGE, "s"),
        ("error, thoughts and cache detached", GREEN, "x"),
    ):
        label = "back-propagated as it is" if column == "error" else column.removeprefix("error, ")
        axes.plot(check.column(column), range(len(names)), marker, color=colour, label=label, markersize=5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.legend(loc="center left", bbox_to_anchor=(0.25, 0.5))
    return _done(axes)


def _average(found: Found) -> Figure:
    check = found["average.measured"]
    axes = _axes("reward on unseen problems", size=(6.4, 2.4))
    for i, (_, value, low, high, *_) in enumerate(check.detail["rows"]):
        colour = INK if i == 0 else BLUE
        axes.hlines(i, low, high, color=colour, linewidth=3, alpha=0.4)
        axes.plot(value, i, "o", color=colour)
    axes.set_yticks(range(len(check.detail["rows"])), check.column("answer of"))
    axes.set_ylim(len(check.detail["rows"]) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return _done(axes)


def _holding(found: Found) -> Figure:
    check = found["holding.measured"]
    axes = _axes("share of mixed groups", size=(6.4, 2.2))
    names = check.column("masks")
    for i, row in enumerate(check.detail["rows"]):
        for shift, colour, (value, low, high) in ((-0.12, BLUE, row[1:4]), (0.12, ORANGE, row[4:7])):
            axes.hlines(i + shift, low, high, color=colour, linewidth=3, alpha=0.4)
            axes.plot(value, i + shift, "o", color=colour)
    keys = [Line2D([], [], color=c, marker="o", linewidth=3, alpha=0.7) for c in (BLUE, ORANGE)]
    axes.legend(keys, ["answers sampled", "answers greedy"], loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    return _done(axes)


def _coupling(found: Found) -> Figure:
    exact, measured = found["coupling.reused"], found["coupling.measured"]
    figure = Figure(figsize=(8.2, 3.2))
    left, right = figure.subplots(1, 2, sharey=True)
    scale = [2 * value for value in exact.column("Var g(theta)")]
    for column, colour, marker in (("mask and answer reused", BLUE, "o"), ("mask and answer fresh", ORANGE, "s")):
        ys = [value / whole for value, whole in zip(exact.column(column), scale, strict=True)]
        left.loglog(exact.column("|d| / |theta|"), ys, marker, color=colour, markersize=4, label=column)
    for column, colour, marker in (("reused, Var / 2 Var g", BLUE, "o"), ("fresh, Var / 2 Var g", ORANGE, "s")):
        right.loglog(measured.column("|d| / |theta|"), measured.column(column), marker, color=colour, markersize=4)
    for axes, title in ((left, "toy, exact"), (right, "trained model, measured")):
        axes.set(xlabel="|d| / |theta|", title=title)
        axes.title.set_size(10)
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
    left.set_ylabel("Var[g(theta + d) - g(theta)] / (2 Var g)")
    left.legend(loc="lower right")
    return figure


def _greedy(found: Found) -> Figure:
    check = found["greedy.bias"]
    figure = Figure(figsize=(8.2, 2.9))
    for i, column in enumerate(("|E g| / |grad J|", "angle, degrees")):
        axes = figure.add_subplot(1, 2, i + 1, xlabel="dropout rate p", ylabel=column)
        axes.plot(check.column("p"), check.column(column), "o-", color=BLUE, label="greedy answers")
        axes.axhline(1 - i, color=ORANGE, linestyle="--", label="sampled answers")
        axes.set_ylim(bottom=-1 if i else 0)
    figure.axes[0].legend(loc="upper left", bbox_to_anchor=(0, 0.92))
    return figure


def _filtered(found: Found) -> Figure:
    detail = found["filtered.objective"].detail
    axes = _axes("success rate of the question, J", "W(J), factor of grad J")
    for colour, (name, curve) in zip((BLUE, ORANGE), detail["curves"].items(), strict=True):
        axes.plot(detail["curve_success"], curve, color=colour, label=name)
    axes.axhline(detail["unfiltered"], color=INK, linestyle="--", linewidth=1, label="no filter, K = 8")
    axes.set_ylim(0, 1.1)
    axes.legend(loc="lower center")
    return _done(axes)


FIGURES: dict[str, tuple[tuple[str, ...], Draw]] = {
    "unbiased": (("unbiased.exact", "unbiased.sampled"), _unbiased),
    "divided": (("divided.group",), _divided),
    "coupling": (("coupling.reused", "coupling.measured"), _coupling),
    "greedy": (("greedy.bias",), _greedy),
    "filtered": (("filtered.objective",), _filtered),
    "baseline": (("baseline.condition",), _baseline),
    "replay": (("replay.bias",), _replay),
    "latent_gradient": (("latent_gradient.differences",), _latent_gradient),
    "average": (("average.measured",), _average),
    "holding": (("holding.measured",), _holding),
}
"""Name of the file, ids of the checks that it is drawn from, function that draws it."""
