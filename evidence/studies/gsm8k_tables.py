"""The tables on GSM8K in ``docs/RESULTS.md``, from ``docs/results/gsm8k-small.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evidence.pages.markdown import console, percent, percent_range, table


def measures(record: Mapping[str, Any]) -> str:
    """One row per evaluated file."""
    columns = ["file", "n", "pass@1, percent", "95 % interval", "pass@4", "maj@4", "model average"]
    rows = []
    for e in record["metrics"]["evaluations"]:
        others = (e["pass@k"][-1]["value"], e["maj@k"][-1]["value"], e["bma"]["value"])
        passed = e["pass@1"]
        rows.append([e["file"], e["n"], percent(passed["value"]), percent_range(passed["ci95"]), *map(percent, others)])
    return table(columns, rows)


def notes(record: Mapping[str, Any]) -> str:
    """Losses, gains, seconds and versions in one paragraph."""
    losses = ", ".join(f"{u['loss']:.2f}" for u in record["last_updates"])
    cpu = ", ".join(f"{name} {seconds:.0f}" for name, seconds in record["cpu_seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in record["eval"]["versions"].items())
    after, before = record["grpo"]["evaluations"][0], record["sft"]["evaluations"][0]
    return (
        f"Loss of the last update in each stage: {losses}. pass@1 on {before['n']} validation problems is "
        f"{percent(before['pass@1'])} % after the curriculum and {percent(after['pass@1'])} % after GRPO, in which "
        f"{percent(record['mixed_groups'])} % of the groups were mixed. Seconds of CPU: {cpu}. {versions}; commit "
        f"{record['eval']['commit']}."
    )


def commands(record: Mapping[str, Any]) -> str:
    """The commands as they were run."""
    return console(record["commands"].values())


def _read(folder: Path) -> Any:
    return json.loads((folder / "gsm8k-small.json").read_text(encoding="utf-8"))


BLOCKS = {
    "measures": lambda folder: measures(_read(folder)),
    "notes": lambda folder: notes(_read(folder)),
    "commands": lambda folder: commands(_read(folder)),
}
