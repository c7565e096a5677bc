"""Where the run comes from: seconds of each part, versions, commit, the whole configuration."""

import json

from dropout_grpo.report import markup
from dropout_grpo.report.names import label
from dropout_grpo.report.read import Record, Run, mapping, number

_PLACE = "config.json"


def seconds_section(run: Run) -> str:
    """Seconds of each part of a demo, in the order of the file."""
    place = "results.json, 'seconds'"
    seconds = mapping(run.results, "seconds", "results.json")
    rows = [
        [label(name), markup.duration(spent)] for name in seconds if (spent := number(seconds, name, place)) is not None
    ]
    if not rows:
        return ""
    return markup.section("Time", markup.table("Wall-clock time of each part", ["part", "time"], rows))


def provenance_section(run: Run) -> str:
    """Versions and commit, and the configuration with every default resolved."""
    facts = flatten(mapping(run.provenance, "versions", _PLACE))
    commit = run.provenance.get("commit")
    if commit is not None:
        facts.append(["commit", str(commit)])
    return markup.section(
        "How to get it again",
        _folded("Versions and commit", facts),
        _folded("Configuration, every default resolved", flatten(mapping(run.provenance, "config", _PLACE))),
    )


def flatten(config: Record, prefix: str = "") -> list[list[str]]:
    """Nested configuration as [dotted key, value] pairs; whatever is not a string is shown as JSON."""
    rows: list[list[str]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append([f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)])
    return rows


def _folded(title: str, facts: list[list[str]]) -> str:
    if not facts:
        return ""
    inner = markup.table(title, ["name", "value"], facts, kind="facts")
    return f"<details><summary>{markup.text(title)}</summary>{inner}</details>"
