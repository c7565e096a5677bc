"""The demo's tables in ``docs/RESULTS.md``, from ``docs/results/demo-seed*.json``."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.pages.markdown import percent, percent_range, table
from evidence.studies.over_seeds import Comparison, comparisons_table

Demo = Mapping[str, Any]
"""The content of a demo run's ``results.json``."""

_ARMS = {"baseline": "Coconut baseline", "dropout_grpo": "Dropout-GRPO", "temperature_only": "temperature only"}
_UNDER_MASKS = ("pass@8", "maj@8", "bma")


def arms(demos: Sequence[Demo]) -> str:
    """All arms on all seeds."""
    columns = ["seed", "arm", "pass@1, percent", "95 % interval", "pass@8", "maj@8", "model average"]
    rows = [[d["seed"], name, *_measures(d[key])] for d in demos for key, name in _ARMS.items()]
    return table(columns, rows)


def _measures(arm: Mapping[str, Any]) -> list[str]:
    others = [percent(arm[key]) if key in arm else "" for key in _UNDER_MASKS]
    return [percent(arm["pass@1"]), percent_range(arm["ci95"]), *others]


def gains(demos: Sequence[Demo]) -> str:
    """Dropout-GRPO against the baseline, problem by problem, and the collapse without masks."""
    columns = ["seed", "test problems", "gain, points", "wins", "losses", "this network: McNemar p"]
    columns += ["collapse: groups without reward variance", "collapse: gradient norm"]
    rows = [
        [
            d["seed"],
            d["n_test"],
            percent(d["dropout_grpo"]["pass@1"] - d["baseline"]["pass@1"]),
            d["comparison"]["wins"],
            d["comparison"]["losses"],
            f"{d['comparison']['mcnemar_p']:.1g}",
            d["collapse"]["frac_reward_zero_std"],
            d["collapse"]["grad_norm"],
        ]
        for d in demos
    ]
    return table(columns, rows)


def means(demos: Sequence[Demo]) -> str:
    """Means and standard deviations over seeds."""
    rows = []
    for key, name in _ARMS.items():
        values = [d[key]["pass@1"] for d in demos]
        deviation = percent(statistics.stdev(values)) if len(values) > 1 else ""
        rows.append([name, percent(statistics.mean(values)), deviation])
    return table(["arm", "pass@1, mean over seeds, percent", "standard deviation, points"], rows)


def comparisons(demos: Sequence[Demo]) -> list[Comparison]:
    """Every pair of arms, over seeds."""
    passed = {key: [d[key]["pass@1"] for d in demos] for key in _ARMS}
    return [
        Comparison(arm=_ARMS[arm], other=_ARMS[other], of_arm=passed[arm], of_other=passed[other])
        for arm, other in (
            ("dropout_grpo", "baseline"),
            ("temperature_only", "baseline"),
            ("dropout_grpo", "temperature_only"),
        )
    ]


def compared(demos: Sequence[Demo]) -> str:
    """Every pair of arms, over seeds, as Markdown."""
    return comparisons_table(comparisons(demos))


def seconds(demos: Sequence[Demo]) -> str:
    """Seconds of each part."""
    names = list(demos[0]["seconds"])
    return table(["seed", *names], [[d["seed"], *(f"{d['seconds'][name]:.0f}" for name in names)] for d in demos])


def _of_all(make: Callable[[Sequence[Demo]], str]) -> Callable[[Path], str]:
    return lambda folder: make(read_demos(folder))


def read_demos(folder: Path) -> list[Demo]:
    """The recorded demos in order of their seeds."""
    demos = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("demo-seed*.json")]
    return sorted(demos, key=lambda demo: int(demo["seed"]))


BLOCKS = {
    "arms": _of_all(arms),
    "compared": _of_all(compared),
    "gains": _of_all(gains),
    "means": _of_all(means),
    "seconds": _of_all(seconds),
}
