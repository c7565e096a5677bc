"""The study's tables and figures in ``docs/RESULTS.md``, from ``docs/results/study.json`` and ``rivals.json``."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evidence.pages.figures import BLUE, GREEN, INK, LIGHT, MUTED, ORANGE, PURPLE, save
from evidence.pages.markdown import console, percent, percent_range, table
from evidence.studies.over_seeds import (
    Comparison,
    Paired,
    comparisons_table,
    distinct,
    paired,
    short_holm,
    short_p,
    signed_range,
)

Study = Mapping[str, Any]
"""What ``study_summary.summarize_study`` returns."""

TABLES = ("variants", "refinements", "rates", "group_size", "questions", "long")
STUDY_FILE, RIVALS_FILE = "study.json", "rivals.json"
_ALSO = {"variants": (("sampled", "no_replay"), ("sampled", "per_step"))}
"""Comparisons of a table besides those that its settings name: what replaying and holding the mask bring."""
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
_NOT_RUN = "*Not run yet.*"


def baselines(study: Study) -> str:
    """pass@1 of the Coconuts that arms start from."""
    columns = ["baseline", "pass@1, percent", "95 % interval over seeds", "by seed", "seconds"]
    rows = [
        [name, percent(b["pass@1"]), _interval(b["ci95"]), _by_seed(b), f"{b['seconds']:.0f}"]
        for name, b in study["baselines"].items()
    ]
    return table(columns, rows)


def rows(study: Study, name: str) -> str:
    """One table of the study: its arms, then all of its comparisons over seeds."""
    columns = ["arm", "pass@1, percent", "95 % interval over seeds"]
    columns += ["mixed groups, first 10 steps, percent", "last 10", "seconds"]
    lines = []
    for row in study["tables"][name]["rows"]:
        arm = study["arms"][row["arm"]]
        mixed = [percent(arm["mixed_first"], 0), percent(arm["mixed_last"], 0)]
        lines.append([arm["label"], percent(arm["pass@1"]), _interval(arm["ci95"]), *mixed, f"{arm['seconds']:.0f}"])
    return f"{table(columns, lines)}\n\n{comparisons_table(comparisons(study, name))}"


def comparisons(study: Study, name: str) -> list[Comparison]:
    """Every arm of a table with its baseline and with the arms that the table names, each pair once."""
    arms, starts, found = study["arms"], study["baselines"], []
    for row in study["tables"][name]["rows"]:
        arm = arms[row["arm"]]
        start, pooled = starts[arm["baseline"]], arm["to_baseline"]["ci95"]
        found.append(_comparison(arm, {**start, "label": f"baseline {arm['baseline']}"}, pooled))
        found += [_comparison(arm, arms[other], to["ci95"]) for other, to in row["to"].items()]
    present = {row["arm"] for row in study["tables"][name]["rows"]}
    found += [_comparison(arms[a], arms[b], None) for a, b in _ALSO.get(name, ()) if {a, b} <= present]
    return distinct(found)


def _comparison(arm: Mapping[str, Any], other: Mapping[str, Any], networks: Sequence[float] | None) -> Comparison:
    return Comparison(
        arm=arm["label"],
        other=other["label"],
        of_arm=arm["by_seed"],
        of_other=other["by_seed"],
        networks=networks,
    )


def signs(study: Study) -> str:
    """Signs of instability of the arms with and without refinements, means over seeds."""
    columns = ["arm", "largest KL", "largest gradient norm", "lowest entropy", "fall of pass@1 from its best, points"]
    lines = []
    for row in study["tables"]["refinements"]["rows"]:
        arm = study["arms"][row["arm"]]
        fall = "" if arm["fall"] is None else percent(arm["fall"])
        seen = [f"{arm['signs'][name]:.3g}" for name in ("kl", "grad_norm", "entropy")]
        lines.append([arm["label"], *seen, fall])
    return table(columns, lines)


def samples(study: Study) -> str:
    """pass@k of the untrained baselines under each noise of the rivals' table, with greedy and with sampled answers.

    A difference is to the first row's sampled answers, over seeds.
    """
    drawn = [study["samples"][name] for name in study["tables"]["rivals"]["samples"]]
    k = drawn[0]["k"]
    columns = ["noise", "answers", "share right", f"pass@{k}, percent", "95 % interval over seeds", "by seed"]
    columns += [f"to {drawn[0]['label']}, points", "95 % interval over seeds", "p", "p, Holm"]
    tested = [paired(drawn[0]["by_seed"], row["by_seed"]) for row in drawn[1:]]
    lines = []
    for row in drawn:
        measured = [row["label"], row["answers"], percent(row["sample_pass@1"])]
        lines.append([*measured, percent(row["pass@k"]), _interval(row["ci95"]), _by_seed(row)])
    lines[0] += [""] * 4
    adjusted = short_holm([test.p for test in tested])
    for line, test, corrected in zip(lines[1:], tested, adjusted, strict=True):
        line += [f"{100 * test.difference:+.2f}", signed_range(test.ci95), short_p(test.p), corrected]
    return table(columns, lines)


def samples_notes(study: Study) -> str:
    """Problems and samples of each seed."""
    first = study["samples"][study["tables"]["rivals"]["samples"][0]]
    return f"{first['num_samples']} answers to each of {first['problems']:,} validation problems of each seed."


def notes(study: Study) -> str:
    """Problems, seeds, versions and commit; older records have only the commit that they were written with."""
    versions = ", ".join(f"{name} {version}" for name, version in study["versions"].items())
    seeds = ", ".join(map(str, study["seeds"]))
    commits = ", ".join(study["run_commits"]) if "run_commits" in study else study["commit"]
    return (
        f"{study['problems']:,} {study['split']} problems for each of the seeds {seeds}. {versions}; commit {commits}."
    )


def commands(study: Study) -> str:
    """The commands of the first arm of each table, with its baseline, for the first seed."""
    first = [study["tables"][name]["rows"][0]["arm"] for name in study["tables"]]
    starts = dict.fromkeys(study["arms"][arm]["baseline"] for arm in first)
    lines = [line for name in starts for line in study["baselines"][name]["commands"]]
    lines += [line for arm in first for line in study["arms"][arm]["commands"]]
    drawn = [names[0] for found in study["tables"].values() if (names := found["samples"])]
    return console(dict.fromkeys([*lines, *(line for name in drawn for line in study["samples"][name]["commands"])]))


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else percent_range(interval)


def _by_seed(measured: Mapping[str, Any]) -> str:
    return ", ".join(map(percent, measured["by_seed"]))


def arms_figure(study: Study, name: str) -> Figure:
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


def rates_figure(study: Study) -> Figure:
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


def long_figure(study: Study) -> Figure:
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


_FIGURES: dict[str, Callable[[Study], Figure]] = {
    "variants": partial(arms_figure, name="variants"),
    "rates": rates_figure,
    "long": long_figure,
    "rivals": partial(arms_figure, name="rivals"),
}


def draw(folder: Path) -> None:
    """Writes the figures of the tables that have been run."""
    for name, figure in _FIGURES.items():
        study = _read(folder, _file(name))
        if study is not None and name in study["tables"]:
            save(folder / f"study-{name}.svg", partial(figure, study))


def figure_link(study: Study, name: str) -> str:
    """The figure of a table as Markdown."""
    del study
    alt = {
        "variants": "pass@1 of every variant",
        "rates": "difference over p",
        "long": "mixed groups over steps",
        "rivals": "pass@1 with every source of exploration",
    }
    return f"![{alt[name]}](results/study-{name}.svg)"


def _file(name: str) -> str:
    """The record that holds a table."""
    return RIVALS_FILE if name == "rivals" else STUDY_FILE


def _read(folder: Path, name: str) -> Any:
    file = folder / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _block(make: Callable[[Study], str], needs: str | None = None, *, file: str = STUDY_FILE) -> Callable[[Path], str]:
    """A block that says so if the study, or the table that it needs, has not been run."""

    def block(folder: Path) -> str:
        study = _read(folder, file)
        missing = study is None or (needs is not None and needs not in study["tables"])
        return _NOT_RUN if missing else make(study)

    return block


BLOCKS: dict[str, Callable[[Path], str]] = {
    "baselines": _block(baselines),
    **{name: _block(partial(rows, name=name), name, file=_file(name)) for name in (*TABLES, "rivals")},
    **{f"{name}_figure": _block(partial(figure_link, name=name), name, file=_file(name)) for name in _FIGURES},
    "rivals_samples": _block(samples, "rivals", file=RIVALS_FILE),
    "rivals_samples_notes": _block(samples_notes, "rivals", file=RIVALS_FILE),
    "rivals_baselines": _block(baselines, "rivals", file=RIVALS_FILE),
    "rivals_notes": _block(notes, "rivals", file=RIVALS_FILE),
    "rivals_commands": _block(commands, "rivals", file=RIVALS_FILE),
    "signs": _block(signs, "refinements"),
    "notes": _block(notes),
    "commands": _block(commands),
}
