"""The table of checkpoints that are compared on the same problems, which several studies have."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.pages.markdown import percent, percent_range, table
from evidence.studies.over_seeds import holm, short_p


def pairs_table(pairs: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, str]) -> str:
    """One row per pair and file, as Markdown.

    The runs have one seed, so intervals and p-values are over the problems of these networks.

    Args:
        pairs: what ``compare`` found for each file, by the two names of the runs with a space between them.
        names: what each run is called in the table.
    """
    columns = ["from", "to", "file", "difference, points", "these networks: 95 % interval", "wins", "losses"]
    columns += ["McNemar p", "p, Holm"]
    found = [(runs, comparison) for runs, comparisons in pairs.items() for comparison in comparisons]
    rows = []
    for (runs, c), adjusted in zip(found, holm([c["mcnemar_p"] for _, c in found]), strict=True):
        before, after = (names[name] for name in runs.split())
        difference = [percent(c["difference"]), percent_range(c["ci95"])]
        counts = [c["wins"], c["losses"], short_p(c["mcnemar_p"]), short_p(adjusted)]
        rows.append([before, after, Path(c["file"]).name, *difference, *counts])
    return table(columns, rows)
