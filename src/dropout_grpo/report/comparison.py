"""Two or more runs side by side: their results, their curves with bands, their answers to the same problems."""

from collections.abc import Mapping, Sequence

from dropout_grpo.report.blocks import Chart, Section, Table
from dropout_grpo.report.charts import Curve, Estimate, by_k_figure, curves_figure
from dropout_grpo.report.evaluation import estimates
from dropout_grpo.report.formats import percent
from dropout_grpo.report.names import in_order, label
from dropout_grpo.report.results import arm_scores, cells, columns, meanings, metric_keys
from dropout_grpo.report.series import CURRICULUM, arms, series
from dropout_grpo.report.training import PASS_AT_1, bands, validation_size
from dropout_grpo.runs.files import MEASURES_FILE, RESULTS_FILE
from dropout_grpo.runs.read import JsonObject, Run, number, objects


def comparison_sections(runs: Mapping[str, Run]) -> list[Section]:
    """The sections of the page; all are false if no run has results."""
    return [
        _results(runs),
        Section(heading="Several answers", charts=_by_k(runs)),
        Section(heading="Training", charts=_training(runs)),
    ]


def _results(runs: Mapping[str, Run]) -> Section:
    """One row for each arm of a demo and each evaluated file of each run."""
    rows: dict[tuple[str, str], tuple[JsonObject, str]] = {}
    for name, run in runs.items():
        for arm, scores in arm_scores(run).items():
            rows[name, label(arm)] = scores, f"{RESULTS_FILE} of {name}, {arm!r}"
        for i, record in enumerate(objects(run.results, "evaluations", f"{RESULTS_FILE} of {name}")):
            rows[name, str(record.get("file", ""))] = record, f"{RESULTS_FILE} of {name}, evaluations[{i}]"
    keys = metric_keys(scores for scores, _ in rows.values())
    cells_of_rows = [[run, of, *cells(scores, keys, place)] for (run, of), (scores, place) in rows.items()]
    header = ["run", "of", *columns(keys)]
    table = Table(caption="Share of the problems", header=header, rows=cells_of_rows) if rows else None
    return Section(heading="Results", table=table, note=meanings(keys))


def _by_k(runs: Mapping[str, Run]) -> list[Chart]:
    """pass@k of all runs in one chart for each file."""
    files: dict[str, list[tuple[str, Sequence[Estimate]]]] = {}
    for name, run in runs.items():
        for i, record in enumerate(objects(run.measures, "evaluations", f"{MEASURES_FILE} of {name}")):
            curve = estimates(record, "pass@k", f"{MEASURES_FILE} of {name}, evaluations[{i}]")
            if len(curve) > 1:
                files.setdefault(str(record.get("file", "")), []).append((name, curve))
    charts = []
    for file, curves in files.items():
        title = f"pass@k on {file}"
        described = "; ".join(f"{name}: {percent(c[0].value)} to {percent(c[-1].value)}" for name, c in curves)
        charts.append(
            Chart(
                title=title,
                caption="At least one of k answers is right. Bands are 95 % intervals.",
                described=f"{title}. {described}",
                figure=by_k_figure(curves, None),
            )
        )
    return charts


def _training(runs: Mapping[str, Run]) -> list[Chart]:
    """Validation pass@1 of all runs: one chart for the curriculum, one for reinforcement learning."""
    charts = []
    for title, of_curriculum in (("Curriculum", True), ("Reinforcement learning", False)):
        curves: list[Curve] = []
        for name, run in runs.items():
            parts = [CURRICULUM] if of_curriculum else in_order(arms(run.metrics))
            for part in parts:
                if values := series(run.metrics, part, PASS_AT_1):
                    text = name if of_curriculum or len(parts) == 1 else f"{name}: {label(part)}"
                    curves.append(Curve(label=text, series=values, arm=len(curves), n=validation_size(run)))
        if curves:
            described = "; ".join(f"{c.label}: {percent(c.series.values[-1])} at the end" for c in curves)
            charts.append(
                Chart(
                    title=title,
                    caption=f"Validation pass@1.{bands(curves)}",
                    described=f"{title}, validation pass@1 by step. {described}",
                    figure=curves_figure(curves, ylabel="pass@1", percent=True),
                )
            )
    return charts


def described(runs: Mapping[str, Run]) -> str:
    """The names of the runs with their seeds, for the page's subtitle."""
    texts = []
    for name, run in runs.items():
        seed = number(run.results, "seed", f"{RESULTS_FILE} of {name}")
        texts.append(name if seed is None else f"{name} (seed {seed:.0f})")
    return " · ".join(texts)
