"""The table of the sweep over explorations in ``docs/RESULTS.md``, from ``docs/results/sweep.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.pages.markdown import console, percent, table


def arms(record: Mapping[str, Any]) -> str:
    """One row per exploration."""
    columns = ["exploration", "pass@1, percent", "mixed groups, first 10 steps, percent", "last 10"]
    columns += ["reward, last 10 steps", "seconds"]
    rows = [
        [
            arm["arm"],
            percent(arm["final"]),
            percent(arm["mixed_first_10"], 0),
            percent(arm["mixed_last_10"], 0),
            f"{arm['reward_last_10']:.3f}",
            f"{arm['seconds']:.0f}",
        ]
        for arm in record["arms"]
    ]
    return table(columns, rows)


def command(record: Mapping[str, Any]) -> str:
    """The command as it was run."""
    return console([record["command"]])


def _read(folder: Path) -> Any:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


BLOCKS = {"arms": lambda folder: arms(_read(folder)), "command": lambda folder: command(_read(folder))}
