"""The figures of the report, drawn with matplotlib. Each function returns a new one; pyplot is not used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dropout_grpo.evaluation.statistics import wilson_interval
from dropout_grpo.report.blocks import Chart
from dropout_grpo.report.formats import percent as as_percent
from dropout_grpo.report.series import Series, running_mean
from dropout_grpo.report.svg import ARM_COLOURS, INK, MUTED, RULE, STYLE

SIZE = (5.6, 3.2)  # inches of 72 SVG units: a text of 12 units stays legible on a phone
_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))  # distinguishable without colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a figure. A noisy one is drawn as its running mean, with the values faint behind it."""

    label: str
    series: Series
    arm: int = 0  # chooses colour and dashes
    noisy: bool = False
    n: int | None = None  # of shares of n problems, whose 95 % interval is drawn as a band
    faint: bool = False  # a companion of another curve: thin, and without an entry in the legend


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A measure of k answers with the ends of its interval."""

    k: int
    value: float
    lo: float
    hi: float


def curves_charts(
    title: str, caption: str, curves: Sequence[Curve], *, percent: bool = False, **options: Any
) -> list[Chart]:
    """One chart of the curves that have values, or none; the options are those of ``curves_figure``.

    It is described by where each curve starts and ends.
    """
    present = [curve for curve in curves if curve.series]
    if not present:
        return []
    show: Callable[[float], str] = as_percent if percent else "{:.3g}".format
    described = []
    for curve in present:
        if not curve.faint:
            steps, values = curve.series.steps, curve.series.values
            ends = f"{show(values[0])} at step {steps[0]}, {show(values[-1])} at step {steps[-1]}"
            described.append(f"{curve.label}: {ends}")
    figure = curves_figure(present, percent=percent, **options)
    words = f"{title} by step. {'; '.join(described)}"
    return [Chart(title=title, caption=caption, described=words, figure=figure)]


def curves_figure(
    curves: Sequence[Curve],
    *,
    ylabel: str,
    percent: bool = False,
    from_zero: bool = False,
    log: bool = False,
    marks: Sequence[tuple[int, int]] = (),
    healthy: tuple[float, str] | None = None,
) -> Figure:
    """Curves over steps.

    `percent` labels the axis in percent, within 0 and 100; `from_zero` starts it at 0; `log` makes it logarithmic if
    every value is positive, as a value of exactly 0 is seen on a linear axis only. `marks` are (step, stage) pairs,
    drawn as vertical lines, at which running means begin anew. `healthy` is the upper end of a shaded range and its
    name.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel=ylabel)
        for curve in curves:
            _draw_curve(axes, curve, [step for step, _ in marks])
        if percent:
            _shares(axes)
        if log and all(value > 0 for curve in curves for value in curve.series.values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
        elif from_zero:
            axes.set_ylim(bottom=0.0)
        if healthy is not None:
            limit, name = healthy
            axes.set_ylim(top=max(axes.get_ylim()[1], 2.0 * limit))
            axes.axhspan(axes.get_ylim()[0], limit, color=MUTED, alpha=0.12, lw=0)
            place = axes.get_yaxis_transform()
            axes.text(1.0, limit, name, transform=place, color=MUTED, size=10.5, ha="right", va="bottom")
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True))
        for i, (step, stage) in enumerate(marks):
            axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=":")
            name = f"stage {stage}" if i == 0 else str(stage)
            axes.text(step, 1.02, name, transform=axes.get_xaxis_transform(), color=MUTED, size=10.5, ha="left")
        if sum(not curve.faint for curve in curves) > 1:
            longest = max(len(curve.label) for curve in curves)
            figure.legend(loc="outside upper left", ncols=2 if longest <= 24 else 1, handlelength=2.4)
    return figure


def intervals_figure(rows: Sequence[tuple[str, float, tuple[float, float] | None]]) -> Figure:
    """One row for each (name, fraction, (lo, hi)): a dot with its interval, the first row on top."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 0.75 + 0.55 * len(rows)), layout="constrained")
        axes = figure.add_subplot(xlabel="pass@1 with its 95 % interval")
        for i, (_, value, ends) in enumerate(rows):
            colour = INK if i == 0 else ARM_COLOURS[(i - 1) % len(ARM_COLOURS)]
            if ends is not None:
                axes.hlines(i, *ends, color=colour, linewidth=3, alpha=0.45)
            axes.plot(value, i, "o", color=colour, markersize=8)
            axes.annotate(
                f"{value:.1%}".replace("%", " %"), (value, i), (0, 8), textcoords="offset points", ha="center"
            )
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(_percent)
        axes.axvline(rows[0][1], color=RULE, linewidth=1.2, zorder=0)
    return figure


def by_k_figure(curves: Sequence[tuple[str, Sequence[Estimate]]], plain: float | None) -> Figure:
    """Measures of k answers over k, each with the band of its intervals; ``plain`` is drawn as a level."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot(xlabel="k, answers to each problem")
        for arm, (label, estimates) in enumerate(curves):
            ks, colour = [e.k for e in estimates], ARM_COLOURS[arm % len(ARM_COLOURS)]
            axes.fill_between(ks, [e.lo for e in estimates], [e.hi for e in estimates], color=colour, alpha=0.18, lw=0)
            axes.plot(
                ks, [e.value for e in estimates], color=colour, lw=2.0, ls=_DASHES[arm % len(_DASHES)], label=label
            )
        if plain is not None:
            axes.axhline(plain, color=MUTED, linewidth=1.2, linestyle=":", label="plain pass@1")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        _shares(axes)
        figure.legend(loc="outside upper left", ncols=3, handlelength=2.4)
    return figure


def _shares(axes: Axes) -> None:
    """An axis of shares: in percent, from 0 at the lowest to 100 at the highest."""
    lo, hi = axes.get_ylim()
    margin = 0.02 * (hi - lo)  # so that a line at 0 or 100 % is not cut in half
    axes.set_ylim(max(lo, -margin), min(hi, 1.0 + margin))
    axes.yaxis.set_major_formatter(_percent)


def _draw_curve(axes: Axes, curve: Curve, breaks: Sequence[int]) -> None:
    steps, values = curve.series.steps, curve.series.values
    colour = ARM_COLOURS[curve.arm % len(ARM_COLOURS)]
    dashes = _DASHES[curve.arm % len(_DASHES)]
    if curve.n is not None and all(0 <= value <= 1 for value in values):
        ends = [wilson_interval(round(value * curve.n), curve.n) for value in values]
        axes.fill_between(steps, [lo for lo, _ in ends], [hi for _, hi in ends], color=colour, alpha=0.15, lw=0)
    if curve.faint:
        mean = running_mean(curve.series, _window(len(steps)), breaks)
        axes.plot(steps, mean.values, color=colour, linewidth=1.0, alpha=0.6)
    elif curve.noisy and len(steps) > 2:
        mean = running_mean(curve.series, _window(len(steps)), breaks)
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(steps, mean.values, color=colour, linewidth=2.0, linestyle=dashes, label=curve.label)
    else:
        axes.plot(steps, values, "o", color=colour, markersize=4.5)
        axes.plot(steps, values, color=colour, linewidth=2.0, linestyle=dashes, label=curve.label)


def _percent(value: float, _position: float) -> str:
    """The label of a tick, with decimals only where the ticks are that close."""
    return f"{round(100 * value, 6):g} %"


def _window(length: int) -> int:
    """An odd window of about a twentieth of the curve."""
    return 2 * (length // 40) + 1
