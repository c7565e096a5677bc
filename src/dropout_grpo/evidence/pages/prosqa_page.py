"""The section on ProsQA of docs/RESULTS.md, and its figure, from docs/results/prosqa.json."""

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_ARMS = {
    "words": "words",
    "sft": "Coconut",
    "pause": "pause tokens",
    "weaker": "weaker Coconut",
    "masks": "Dropout-GRPO from there",
    "temperature": "temperature only from there",
}
_LINES = {
    "words": ("#6b7280", "-"),
    "sft": ("#2b5c9e", "-"),
    "pause": ("#c05a12", "--"),
    "masks": ("#2b5c9e", "-"),
    "temperature": ("#6b7280", ":"),
}
_STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9dcdf",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "dropout-grpo",  # equal data give an equal file
}


def section(folder: Path) -> list[str]:
    """Paragraphs and tables; writes ``prosqa.svg`` beside the data."""
    r = json.loads((folder / "prosqa.json").read_text(encoding="utf-8"))
    with matplotlib.rc_context(_STYLE):
        figure(r).savefig(folder / "prosqa.svg", format="svg", metadata={"Date": None, "Creator": None})
    intro = (folder / "prosqa.md").read_text(encoding="utf-8").rstrip()
    image = "![pass@1 on the published validation problems over updates](results/prosqa.svg)"
    commands = "\n".join(f"$ {line}" for line in r["commands"].values())
    return [intro, image, measures(r), pairs(r), seconds(r), f"```console\n{commands}\n```"]


def figure(r: dict[str, Any]) -> Figure:
    """Two panels: words, then Coconut and the control; GRPO from the weaker Coconut."""
    drawn = Figure(figsize=(8.4, 3.4), layout="constrained", facecolor="white")
    left, right = drawn.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    words = _points(r, "words")
    _curve(left, "words", words)
    for name in ("sft", "pause"):
        _curve(left, name, [(words[-1][0] + step, passed) for step, passed in _points(r, name)])
    left.axvline(words[-1][0], color="#d9dcdf", linewidth=1, zorder=0)
    left.set(xlabel="updates of the curriculum", ylabel="pass@1", ylim=(0, 1.06))
    begin = (0, _points(r, "weaker")[-1][1])
    for name in ("masks", "temperature"):
        _curve(right, name, [begin, *_points(r, name)])
    right.set_xlabel("GRPO steps")
    for axes in (left, right):
        axes.axhline(0.5, color="#9ca3af", linewidth=1, linestyle=":")
        axes.legend(loc="lower right")
    return drawn


def _points(r: dict[str, Any], name: str) -> list[tuple[int, float]]:
    return [(point["step"], point["eval/pass@1"]) for point in r["curves"][name]]


def _curve(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    colour, style = _LINES[name]
    axes.plot(*zip(*points, strict=True), style, color=colour, label=_ARMS[name].removesuffix(" from there"))


def measures(r: dict[str, Any]) -> str:
    """Every checkpoint on every file."""
    lines = ["| checkpoint | file | n | pass@1, percent | 95 % interval | pass@8 | maj@8 | model average |"]
    lines.append("|---" * 8 + "|")
    for name, evaluations in r["evaluations"].items():
        arm = _ARMS[name]
        for e in evaluations:
            low, high = e["pass@1"]["ci95"]
            others = (e["pass@k"][-1]["value"], e["maj@k"][-1]["value"], e["bma"]["value"])
            shares = " | ".join(f"{100 * value:.1f}" for value in others)
            lines.append(
                f"| {arm} | {Path(e['file']).name} | {e['n']} | {100 * e['pass@1']['value']:.1f} "
                f"| {100 * low:.1f} to {100 * high:.1f} | {shares} |"
            )
    return "\n".join(lines)


def pairs(r: dict[str, Any]) -> str:
    """Two checkpoints on the same problems."""
    lines = ["| from | to | file | difference, points | 95 % interval | wins | losses | McNemar p |"]
    lines.append("|---" * 8 + "|")
    for names, comparisons in r["pairs"].items():
        a, b = (_ARMS[name] for name in names.split())
        for c in comparisons:
            low, high = c["ci95"]
            lines.append(
                f"| {a} | {b} | {Path(c['file']).name} | {100 * c['difference']:.1f} "
                f"| {100 * low:.1f} to {100 * high:.1f} | {c['wins']} | {c['losses']} | {c['mcnemar_p']:.1g} |"
            )
    return "\n".join(lines)


def seconds(r: dict[str, Any]) -> str:
    """Where the time went, and what the runs were made with."""
    took = ", ".join(
        f"{_ARMS[name]} {run['seconds'][next(iter(run['seconds']))]:.0f}" for name, run in r["runs"].items()
    )
    mixed = "; ".join(
        f"{_ARMS[name]} {100 * run['mixed_groups'][0]:.0f} and {100 * run['mixed_groups'][1]:.0f} %"
        for name, run in r["runs"].items()
        if "mixed_groups" in run
    )
    first = r["runs"]["sft"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    return (
        f"Seconds of training: {took}; words and the weaker Coconut on all cores, the others side by side on one. "
        f"Mixed groups in the first and last ten steps: {mixed}. "
        f"{versions}; commit {first['commit']}."
    )
