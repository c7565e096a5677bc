"""Headline and tables of results.json: the arms of a demo side by side."""

from collections.abc import Iterable, Sequence
from typing import Any

from dropout_grpo.report.blocks import Chart, Section, Table
from dropout_grpo.report.charts import intervals_figure
from dropout_grpo.report.formats import percent, percent_interval
from dropout_grpo.report.names import in_order, label
from dropout_grpo.runs.files import RESULTS_FILE
from dropout_grpo.runs.read import JsonObject, Run, interval, mapping, number

_MEANINGS = {
    "pass@1": "pass@1: the plain network's greedy answer is right.",
    "pass@": "pass@k: at least one of k sampled answers is right.",
    "maj@": "maj@k: the most frequent of k sampled answers is right.",
    "coverage": "coverage: at least one of all sampled answers is right.",
    "bma": "BMA: the answer of the Bayesian model average over masks is right.",
}


def headline(run: Run) -> dict[str, Any] | None:
    """Baseline to Dropout-GRPO, next to the intervals of all arms; None unless the run has both.

    Returns:
        ``before`` and ``after``: pass@1; ``alone``: that of the arm without masks, or None; ``n_test``; ``chart``;
        ``against_baseline`` and ``against_alone``: paired comparisons, or None.
    """
    scores = arm_scores(run)
    if not {"baseline", "dropout_grpo"} <= scores.keys():
        return None
    pass_at_1 = {name: number(arm, "pass@1", RESULTS_FILE) for name, arm in scores.items()}
    return {
        "before": pass_at_1["baseline"],
        "after": pass_at_1["dropout_grpo"],
        "alone": pass_at_1.get("temperature_only"),
        "n_test": number(run.results, "n_test", RESULTS_FILE),
        "against_baseline": _paired(run, "comparison"),
        "against_alone": _paired(run, "comparison_temperature_only"),
        "chart": _intervals(scores),
    }


def results_section(run: Run) -> Section:
    """The arms of a demo side by side, and the collapse row: what GRPO sees without any exploration."""
    scores = arm_scores(run)
    if not scores:
        return Section(heading="Results")
    n_test = number(run.results, "n_test", RESULTS_FILE)
    keys = metric_keys(scores.values())
    table = Table(
        caption=f"Share of {n_test:,.0f} test problems" if n_test else "Share of the test problems",
        header=["", *columns(keys)],
        rows=[[label(name), *cells(arm, keys, f"{RESULTS_FILE}, {name!r}")] for name, arm in scores.items()],
    )
    return Section(heading="Results", table=table, note=meanings(keys), tables=_collapse(run))


def arm_scores(run: Run) -> dict[str, JsonObject]:
    """The arms of a demo, baseline first: every object of results.json that has a pass@1."""
    scores = {
        name: value
        for name, value in run.results.items()
        if isinstance(value, dict) and number(value, "pass@1", f"{RESULTS_FILE}, {name!r}") is not None
    }
    return {name: scores[name] for name in in_order(scores)}


def metric_keys(records: Iterable[JsonObject]) -> list[str]:
    """The fractions that a table has a column for, in order of appearance."""
    keys = dict.fromkeys(key for record in records for key in record)
    return [key for key in keys if key.startswith(tuple(_MEANINGS))]


def columns(keys: Sequence[str]) -> list[str]:
    """Headings of the metrics; pass@1 is the one that comes with an interval."""
    headings: list[str] = []
    for key in keys:
        headings += ["pass@1", "95 % interval"] if key == "pass@1" else [key.replace("bma", "BMA")]
    return headings


def cells(scores: JsonObject, keys: Sequence[str], place: str) -> list[str]:
    """The metrics of one row, in percent; a dash where one was not measured."""
    row = []
    for key in keys:
        row.append(percent(number(scores, key, place)))
        if key == "pass@1":
            row.append(percent_interval(interval(scores, "ci95", place)))
    return row


def meanings(keys: Sequence[str]) -> str:
    """A sentence on each metric of a table."""
    return " ".join(
        meaning
        for start, meaning in _MEANINGS.items()
        if any(key.startswith(start) and (key != "pass@1" or start == "pass@1") for key in keys)
    )


def _intervals(scores: dict[str, JsonObject]) -> Chart:
    rows = []
    for name, arm in scores.items():
        place = f"{RESULTS_FILE}, {name!r}"
        rows.append((label(name), number(arm, "pass@1", place) or 0.0, interval(arm, "ci95", place)))
    described = "; ".join(f"{name} {percent(value)} {percent_interval(ends)}".rstrip() for name, value, ends in rows)
    title = "pass@1 with 95 % intervals"
    return Chart(title=title, caption="", described=f"{title}: {described}", figure=intervals_figure(rows))


def _paired(run: Run, key: str) -> dict[str, float] | None:
    """Wins, losses and the p-value of a paired comparison."""
    comparison = mapping(run.results, key, RESULTS_FILE)
    place = f"{RESULTS_FILE}, {key!r}"
    wins, losses, p = (number(comparison, name, place) for name in ("wins", "losses", "mcnemar_p"))
    if wins is None or losses is None or p is None:
        return None
    return {"wins": wins, "losses": losses, "p": p}


def _collapse(run: Run) -> list[Table]:
    collapse = mapping(run.results, "collapse", RESULTS_FILE)
    place = f"{RESULTS_FILE}, 'collapse'"
    share, norm = number(collapse, "frac_reward_zero_std", place), number(collapse, "grad_norm", place)
    if share is None or norm is None:
        return []
    return [
        Table(
            caption="The collapse: GRPO on the same baseline, answered greedily and without any exploration",
            header=["", "groups with equal rewards", "gradient norm"],
            rows=[["No exploration", percent(share), f"{norm:.3g}"]],
        )
    ]
