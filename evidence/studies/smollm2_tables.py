"""The tables on SmolLM2 in ``docs/RESULTS.md``, from ``docs/results/gsm8k-smollm2.json``."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evidence.pages.markdown import console, percent, percent_range, table
from evidence.studies.pairs_table import pairs_table

Record = Mapping[str, Any]
"""What ``smollm2.py`` writes."""

FILE = "gsm8k-smollm2.json"
NO_RECORD = "No run is recorded yet: `make gsm8k DATA=FOLDER` makes the tables."

_NAMES = {
    "words": "chain of thought in words",
    "coconut": "Coconut",
    "masks-sampled": "held masks, sampled answers",
    "masks-greedy": "held masks, greedy answers",
    "temperature": "temperature alone",
    "deterministic": "deterministic",
    "sft": "curriculum",
}

_ROUNDS = {
    "sft": "curriculum",
    "masks-sampled": "GRPO with sampled answers",
    "masks-greedy": "GRPO with greedy answers",
    "deterministic": "deterministic GRPO",
    "eval": "evaluation",
}
"""Names of the rounds by their first commands; the evaluations count together."""


def measures(record: Record) -> str:
    """Every checkpoint on every test file."""
    k = record["evaluations"]["coconut"][0]["pass@k"][-1]["k"]
    columns = ["checkpoint", "file", "n", "pass@1, percent", "95 % interval", f"pass@{k}", f"maj@{k}", "model average"]
    rows = []
    for name in ("words", *(name for name in record["evaluations"] if name != "words")):
        for e in record["evaluations"][name]:
            sampled = [e[curve][-1]["value"] for curve in ("pass@k", "maj@k") if curve in e]
            averaged = [e["bma"]["value"]] if "bma" in e else []
            others = [percent(share) for share in (*sampled, *averaged)]
            passed = [percent(e["pass@1"]["value"]), percent_range(e["pass@1"]["ci95"])]
            row = [_NAMES[name], Path(e["file"]).name, e["n"], *passed, *others]
            rows.append(row + [""] * (len(columns) - len(row)))
    return table(columns, rows)


def pairs(record: Record) -> str:
    """Two checkpoints on the same problems."""
    return pairs_table(record["pairs"], _NAMES)


def curve(record: Record) -> str:
    """pass@1 on the validation problems: stages of the curriculum, GRPO steps."""
    rows = []
    for name, points in record["curves"].items():
        for point in points:
            where = f"stage {point['stage']}, update" if "stage" in point else "step"
            rows.append([_NAMES[name], f"{where} {point['step']}", percent(point["eval/pass@1"])])
    return table(["run", "after", "pass@1, percent"], rows)


def notes(record: Record) -> str:
    """The problems, the hours and the versions in one paragraph."""
    rounds: dict[str, float] = defaultdict(float)
    for names, seconds in record["seconds"].items():
        first_command = "eval" if names.startswith("eval-") else names.split("+")[0]
        rounds[_ROUNDS[first_command]] += seconds
    spent = ", ".join(f"{name} {seconds / 3600:.2f}" for name, seconds in rounds.items())
    total = sum(record["seconds"].values()) / 3600
    counts = ", ".join(f"{name} {count:,}" for name, count in record["problems"].items())
    mixed = "; ".join(
        f"{_NAMES[name]} {100 * run['mixed_groups'][0]:.0f} and {100 * run['mixed_groups'][1]:.0f} %"
        for name, run in record["runs"].items()
        if "mixed_groups" in run
    )
    first = record["runs"]["sft"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    return (
        f"Problems: {counts}. "
        f"Hours on {record['cores']} cores: {spent}; {total:.1f} together. Mixed groups in the first and last ten "
        f"steps: {mixed}. Seed {first['seed']}; {versions}; commit {first['commit']}."
    )


def commands(record: Record) -> str:
    """The commands as they were run."""
    return console(record["commands"].values())


def _of(make: Callable[[Record], str], without: str = "") -> Callable[[Path], str]:
    def block(folder: Path) -> str:
        file = folder / FILE
        return make(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else without

    return block


BLOCKS = {
    "measures": _of(measures, NO_RECORD),
    "pairs": _of(pairs),
    "curve": _of(curve),
    "notes": _of(notes),
    "commands": _of(commands),
}
