"""The table of checkpoints that are compared on the same problems, which several studies have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dropout_grpo.evidence.pages.markdown import percent, percent_range, table


def pairs_table(pairs: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, str]) -> str:
    """One row per pair and file, as Markdown.

    Args:
        pairs: what ``compare`` found for each file, by the two names of the runs with a space between them.
        names: what each run is called in the table.
    """
    columns = ["from", "to", "file", "difference, points", "95 % interval", "wins", "losses", "McNemar p"]
    rows = []
    for runs, comparisons in pairs.items():
        before, after = (names[name] for name in runs.split())
        for c in comparisons:
            difference = [percent(c["difference"]), percent_range(c["ci95"])]
            counts = [c["wins"], c["losses"], f"{c['mcnemar_p']:.1g}"]
            rows.append([before, after, Path(c["file"]).name, *difference, *counts])
    return table(columns, rows)
