"""Two or more runs side by side: their results, their curves with bands, their answers to the same problems."""

from collections.abc import Mapping, Sequence

from dropout_grpo.report import markup, plots
from dropout_grpo.report.evaluation import estimates
from dropout_grpo.report.names import in_order, label
from dropout_grpo.report.results import arm_scores, cells, columns, meanings, metric_keys
from dropout_grpo.report.series import CURRICULUM, arms, series
from dropout_grpo.report.svg import inline_svg
from dropout_grpo.report.training import PASS_AT_1, validation_size
from dropout_grpo.runs.files import MEASURES_FILE, RESULTS_FILE
from dropout_grpo.runs.read import Record, Run, number, objects


def comparison_sections(runs: Mapping[str, Run]) -> str:
    """The sections of the page; empty if no run has results."""
    return _results(runs) + _by_k(runs) + _training(runs)


def _results(runs: Mapping[str, Run]) -> str:
    """One row for each arm of a demo and each evaluated file of each run."""
    rows: dict[tuple[str, str], tuple[Record, str]] = {}
    for name, run in runs.items():
        for arm, scores in arm_scores(run).items():
            rows[name, label(arm)] = scores, f"{RESULTS_FILE} of {name}, {arm!r}"
        for i, record in enumerate(objects(run.results, "evaluations", f"{RESULTS_FILE} of {name}")):
            rows[name, str(record.get("file", ""))] = record, f"{RESULTS_FILE} of {name}, evaluations[{i}]"
    keys = metric_keys(scores for scores, _ in rows.values())
    cells_of_rows = [[run, of, *cells(scores, keys, place)] for (run, of), (scores, place) in rows.items()]
    if not rows:
        return ""
    table = markup.table("Share of the problems", ["run", "of", *columns(keys)], cells_of_rows)
    return markup.section("Results", table, meanings(keys))


def _by_k(runs: Mapping[str, Run]) -> str:
    """pass@k of all runs in one figure for each file."""
    files: dict[str, list[tuple[str, Sequence[plots.Estimate]]]] = {}
    for name, run in runs.items():
        for i, record in enumerate(objects(run.measures, "evaluations", f"{MEASURES_FILE} of {name}")):
            curve = estimates(record, "pass@k", f"{MEASURES_FILE} of {name}, evaluations[{i}]")
            if len(curve) > 1:
                files.setdefault(str(record.get("file", "")), []).append((name, curve))
    drawn = []
    for i, (file, curves) in enumerate(files.items()):
        title = f"pass@k on {file}"
        said = "; ".join(f"{name}: {markup.percent(c[0].value)} to {markup.percent(c[-1].value)}" for name, c in curves)
        svg = inline_svg(plots.by_k_figure(curves, None), label=f"{title}. {said}", name=f"runs-by-k-{i}")
        drawn.append(markup.figure(title, "At least one of k answers is right. Bands are 95 % intervals.", svg))
    return markup.section("Several answers", f'<div class="figures">{"".join(drawn)}</div>') if drawn else ""


def _training(runs: Mapping[str, Run]) -> str:
    """Validation pass@1 of all runs: one figure for the curriculum, one for reinforcement learning."""
    drawn = []
    for title, of_curriculum in (("Curriculum", True), ("Reinforcement learning", False)):
        curves: list[plots.Curve] = []
        for name, run in runs.items():
            parts = [CURRICULUM] if of_curriculum else in_order(arms(run.metrics))
            for part in parts:
                found = series(run.metrics, part, PASS_AT_1)
                if found:
                    text = name if of_curriculum or len(parts) == 1 else f"{name}: {label(part)}"
                    curves.append(plots.Curve(label=text, series=found, arm=len(curves), n=validation_size(run)))
        if curves:
            said = "; ".join(f"{c.label}: {markup.percent(c.series.values[-1])} at the end" for c in curves)
            svg = inline_svg(
                plots.curves_figure(curves, ylabel="pass@1", percent=True),
                label=f"{title}, validation pass@1 by step. {said}",
                name=f"runs-{'sft' if of_curriculum else 'rl'}",
            )
            bands = " Bands are 95 % intervals." if any(curve.n for curve in curves) else ""
            drawn.append(markup.figure(title, f"Validation pass@1.{bands}", svg))
    return markup.section("Training", f'<div class="figures">{"".join(drawn)}</div>') if drawn else ""


def described(runs: Mapping[str, Run]) -> str:
    """The names of the runs with their seeds, for the page's subtitle."""
    texts = []
    for name, run in runs.items():
        seed = number(run.results, "seed", f"{RESULTS_FILE} of {name}")
        texts.append(name if seed is None else f"{name} (seed {seed:.0f})")
    return " · ".join(texts)
