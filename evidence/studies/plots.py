"""The figures of the studies, from their records in ``docs/results``, where they are written too."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.pages.figures import BLUE, GREEN, INK, LIGHT, MUTED, ORANGE, PURPLE, RULE, save
from evidence.studies.over_seeds import Paired, paired
from evidence.studies.record import arm_of
from evidence.studies.tables import Record, read_record

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


def draw(folder: Path) -> None:
    """Writes the figures of what has been run."""
    for (name, table), figure in _FIGURES.items():
        record = read_record(folder, name)
        if record is not None and (table is None or table in record["tables"]):
            save(folder / (f"study-{table}.svg" if table else f"{name}.svg"), partial(figure, record))


def arms_figure(study: Record, name: str) -> Figure:
    """pass@1 of every arm of a table: each seed, the mean and its interval; the first arm's baseline as a line."""
    arms = [study["arms"][row["arm"]] for row in study["tables"][name]["rows"]]
    drawn = Figure(figsize=(7.2, 0.42 * len(arms) + 1.0))
    axes = drawn.add_subplot(xlabel="pass@1, percent")
    for place, arm in enumerate(arms):
        axes.plot([100 * share for share in arm["by_seed"]], [place] * len(arm["by_seed"]), "|", color=LIGHT)
        if arm["ci95"] is not None:
            axes.hlines(place, *(100 * end for end in arm["ci95"]), color=BLUE, linewidth=3, alpha=0.4)
        axes.plot(100 * arm["pass@1"], place, "o", color=BLUE)
    axes.axvline(100 * study["baselines"][arms[0]["baseline"]]["pass@1"], color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(arms)), [arm["label"] for arm in arms])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return drawn


def rates_figure(study: Record) -> Figure:
    """Difference to temperature alone over p, a line for each kind of mask, with intervals over seeds."""
    drawn = Figure(figsize=(7.2, 3.4))
    axes = drawn.add_subplot(xlabel="p", ylabel="to temperature alone, points")
    lines: dict[str, list[tuple[float, Paired]]] = {}
    (against,) = study["tables"]["rates"]["against"]
    of_temperature = study["arms"][against]["by_seed"]
    for row in study["tables"]["rates"]["rows"]:
        arm = study["arms"][row["arm"]]
        if arm["group"] is not None:
            lines.setdefault(arm["group"], []).append((arm["p"], paired(of_temperature, arm["by_seed"])))
    for place, (colour, (group, points)) in enumerate(zip(_COLOURS, lines.items(), strict=False)):
        rates = [p + 0.002 * place for p, _ in points]  # so that intervals do not hide each other
        middle = [100 * to.difference for _, to in points]
        for rate, (_, to) in zip(rates, points, strict=True):
            if to.ci95 is not None:
                low, high = (100 * end for end in to.ci95)
                axes.vlines(rate, low, high, color=colour, linewidth=2, alpha=0.4)
        axes.plot(rates, middle, "o-", color=colour, label=group)
    axes.axhline(0, color=INK, linewidth=1)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return drawn


def long_figure(study: Record) -> Figure:
    """Share of mixed groups over the steps of the long runs, mean over seeds."""
    drawn = Figure(figsize=(7.2, 3.0))
    axes = drawn.add_subplot(xlabel="GRPO steps", ylabel="mixed groups, percent")
    for colour, row in zip((MUTED, *_COLOURS), study["tables"]["long"]["rows"], strict=False):
        arm = study["arms"][row["arm"]]
        points = arm["mixed_curve"]
        steps = [(i + 0.5) * arm["steps"] / len(points) for i in range(len(points))]
        axes.plot(steps, [100 * share for share in points], color=colour, label=arm["label"])
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    return drawn


def prosqa_figure(record: Record) -> Figure:
    """Two panels: words, then Coconut and the control; GRPO from the weaker Coconut."""
    drawn = Figure(figsize=(8.4, 3.4))
    left, right = drawn.subplots(1, 2, width_ratios=(2, 1), sharey=True)

    def points(name: str) -> list[tuple[int, float]]:
        return [(point["step"], point["eval/pass@1"]) for point in record["curves"][name]]

    def line(axes: Axes, name: str, colour: str, style: str, at: list[tuple[int, float]]) -> None:
        label = record["names"][name].removesuffix(" from there")
        axes.plot(*zip(*at, strict=True), style, color=colour, label=label)

    words = points("words")
    last = words[-1][0]
    line(left, "words", MUTED, "-", words)
    line(left, "sft", BLUE, "-", [(last + step, passed) for step, passed in points("sft")])
    line(left, "pause", ORANGE, "--", [(last + step, passed) for step, passed in points("pause")])
    left.axvline(last, color=RULE, linewidth=1, zorder=0)
    left.set(xlabel="updates of the curriculum", ylabel="pass@1", ylim=(0, 1.06))
    begin = (0, points("weaker")[-1][1])
    line(right, "masks", BLUE, "-", [begin, *points("masks")])
    line(right, "temperature", MUTED, ":", [begin, *points("temperature")])
    right.set_xlabel("GRPO steps")
    for axes in (left, right):
        axes.axhline(0.5, color=LIGHT, linewidth=1, linestyle=":")
        axes.legend(loc="lower right")
    return drawn


def over_steps_figure(record: Record) -> Figure:
    """Mixed groups and entropy over the steps of GRPO, for each arm the mean over its seeds."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for name, run in record["runs"].items():
        if arm_of(name, record["seeds"]) in record["evaluations"] and "over_steps" in run:
            arms.setdefault(arm_of(name, record["seeds"]), []).append(run)
    drawn = Figure(figsize=(8.4, 3.4))
    left, right = drawn.subplots(1, 2)
    for axes, key, scale, label in (
        (left, "mixed_groups", 100, "mixed groups, percent"),
        (right, "entropy", 1, "entropy, nats per token"),
    ):
        axes.set(xlabel="GRPO steps", ylabel=label)
        for colour, (arm, runs) in zip((MUTED, *_COLOURS), arms.items(), strict=False):
            means = [scale * fmean(values) for values in zip(*(run["over_steps"][key] for run in runs), strict=True)]
            steps = [(i + 0.5) * runs[0]["steps"] / len(means) for i in range(len(means))]
            axes.plot(steps, means, color=colour, label=record["names"][arm])
        axes.set_ylim(bottom=0)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


_FIGURES: dict[tuple[str, str | None], Callable[[Record], Figure]] = {
    ("study", "variants"): partial(arms_figure, name="variants"),
    ("study", "rates"): rates_figure,
    ("study", "long"): long_figure,
    ("rivals", "rivals"): partial(arms_figure, name="rivals"),
    ("prosqa", None): prosqa_figure,
    ("gsm8k-qwen", None): over_steps_figure,
}
"""By record and table."""
