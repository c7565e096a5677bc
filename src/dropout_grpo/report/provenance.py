"""Where the run comes from: seconds of each part, versions, commit, the whole configuration."""

import json

from dropout_grpo.report import markup
from dropout_grpo.report.names import label
from dropout_grpo.runs.files import CONFIG_FILE, RESULTS_FILE, flat_options
from dropout_grpo.runs.read import Record, Run, mapping, number


def seconds_section(run: Run) -> str:
    """Seconds of each part of a demo, in the order of the file."""
    place = f"{RESULTS_FILE}, 'seconds'"
    seconds = mapping(run.results, "seconds", RESULTS_FILE)
    rows = [
        [label(name), markup.duration(spent)] for name in seconds if (spent := number(seconds, name, place)) is not None
    ]
    if not rows:
        return ""
    return markup.section("Time", markup.table("Wall-clock time of each part", ["part", "time"], rows))


def provenance_section(run: Run) -> str:
    """Versions and commit, and the configuration with every default resolved."""
    facts = config_facts(mapping(run.provenance, "versions", CONFIG_FILE))
    commit = run.provenance.get("commit")
    if commit is not None:
        facts.append(["commit", str(commit)])
    return markup.section(
        "How to get it again",
        _folded("Versions and commit", facts),
        _folded("Configuration, every default resolved", config_facts(mapping(run.provenance, "config", CONFIG_FILE))),
    )


def config_facts(config: Record) -> list[list[str]]:
    """Nested configuration as [option, value] pairs; a value that is not a string is shown as JSON."""
    return [
        [name, value if isinstance(value, str) else json.dumps(value)] for name, value in flat_options(config).items()
    ]


def _folded(title: str, facts: list[list[str]]) -> str:
    if not facts:
        return ""
    inner = markup.table(title, ["name", "value"], facts, kind="facts")
    return f"<details><summary>{markup.text(title)}</summary>{inner}</details>"
