"""The tables on ProsQA in ``docs/RESULTS.md``, and their figure, from ``docs/results/prosqa.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.pages.figures import BLUE, LIGHT, MUTED, ORANGE, RULE, save
from evidence.pages.markdown import console, percent, percent_range, table
from evidence.studies.pairs_table import pairs_table

Record = Mapping[str, Any]
"""What ``prosqa.py`` writes."""

_ARMS = {
    "words": "words",
    "sft": "Coconut",
    "pause": "pause tokens",
    "weaker": "weaker Coconut",
    "masks": "Dropout-GRPO from there",
    "temperature": "temperature only from there",
}
_LINES = {
    "words": (MUTED, "-"),
    "sft": (BLUE, "-"),
    "pause": (ORANGE, "--"),
    "masks": (BLUE, "-"),
    "temperature": (MUTED, ":"),
}


def draw(folder: Path) -> None:
    """Writes ``prosqa.svg`` next to the data."""
    record = _read(folder)
    save(folder / "prosqa.svg", lambda: figure(record))


def figure(record: Record) -> Figure:
    """Two panels: words, then Coconut and the control; GRPO from the weaker Coconut."""
    drawn = Figure(figsize=(8.4, 3.4))
    left, right = drawn.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    words = _points(record, "words")
    _curve(left, "words", words)
    for name in ("sft", "pause"):
        _curve(left, name, [(words[-1][0] + step, passed) for step, passed in _points(record, name)])
    left.axvline(words[-1][0], color=RULE, linewidth=1, zorder=0)
    left.set(xlabel="updates of the curriculum", ylabel="pass@1", ylim=(0, 1.06))
    begin = (0, _points(record, "weaker")[-1][1])
    for name in ("masks", "temperature"):
        _curve(right, name, [begin, *_points(record, name)])
    right.set_xlabel("GRPO steps")
    for axes in (left, right):
        axes.axhline(0.5, color=LIGHT, linewidth=1, linestyle=":")
        axes.legend(loc="lower right")
    return drawn


def _points(record: Record, name: str) -> list[tuple[int, float]]:
    return [(point["step"], point["eval/pass@1"]) for point in record["curves"][name]]


def _curve(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    colour, style = _LINES[name]
    axes.plot(*zip(*points, strict=True), style, color=colour, label=_ARMS[name].removesuffix(" from there"))


def measures(record: Record) -> str:
    """Every checkpoint on every file."""
    columns = ["checkpoint", "file", "n", "pass@1, percent", "95 % interval", "pass@8", "maj@8", "model average"]
    rows = []
    for name, evaluations in record["evaluations"].items():
        for e in evaluations:
            others = (e["pass@k"][-1]["value"], e["maj@k"][-1]["value"], e["bma"]["value"])
            passed = [percent(e["pass@1"]["value"]), percent_range(e["pass@1"]["ci95"])]
            rows.append([_ARMS[name], Path(e["file"]).name, e["n"], *passed, *map(percent, others)])
    return table(columns, rows)


def pairs(record: Record) -> str:
    """Two checkpoints on the same problems."""
    return pairs_table(record["pairs"], _ARMS)


def notes(record: Record) -> str:
    """Seconds of training, mixed groups, versions and commit."""
    took = ", ".join(
        f"{_ARMS[name]} {run['seconds'][next(iter(run['seconds']))]:.0f}" for name, run in record["runs"].items()
    )
    mixed = "; ".join(
        f"{_ARMS[name]} {100 * run['mixed_groups'][0]:.0f} and {100 * run['mixed_groups'][1]:.0f} %"
        for name, run in record["runs"].items()
        if "mixed_groups" in run
    )
    first = record["runs"]["sft"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    return (
        f"Seconds of training: {took}. Words and the weaker Coconut use all cores; the others run in pairs, one core "
        f"each. Mixed groups in the first and last ten steps: {mixed}. {versions}; commit {first['commit']}."
    )


def commands(record: Record) -> str:
    """The commands as they were run."""
    return console(record["commands"].values())


def _read(folder: Path) -> Any:
    return json.loads((folder / "prosqa.json").read_text(encoding="utf-8"))


BLOCKS = {
    "measures": lambda folder: measures(_read(folder)),
    "pairs": lambda folder: pairs(_read(folder)),
    "notes": lambda folder: notes(_read(folder)),
    "commands": lambda folder: commands(_read(folder)),
}
