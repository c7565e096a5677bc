"""The files of an evaluation: the summary of results.json, and from measures.json what k answers give."""

from collections.abc import Mapping, Sequence

from dropout_grpo.report.blocks import Chart, Section, Table
from dropout_grpo.report.charts import Estimate, by_k_figure
from dropout_grpo.report.formats import count, duration, percent, percent_interval
from dropout_grpo.report.results import cells, columns, meanings, metric_keys
from dropout_grpo.runs.files import MEASURES_FILE, RESULTS_FILE
from dropout_grpo.runs.read import JsonObject, Run, interval, number, objects

_BY_K = ("pass@k", "maj@k")


def evaluations_section(run: Run) -> Section:
    """One column for each evaluated file; where it was measured with several answers, pass@k and maj@k over k."""
    heading = "Evaluation"
    evaluations = _by_place(run.results, RESULTS_FILE)
    if not evaluations:
        return Section(heading=heading)
    keys = metric_keys(evaluations.values())
    of_files = [
        [count(number(record, "n", place)), *cells(record, keys, place)] for place, record in evaluations.items()
    ]
    table = Table(
        caption="Share of each file's problems",
        header=["", *(str(record.get("file", "")) for record in evaluations.values())],
        rows=[[name, *row] for name, *row in zip(["problems", *columns(keys)], *of_files, strict=True)],
    )
    measured = _by_place(run.measures, MEASURES_FILE)
    charts = [chart for place, record in measured.items() for chart in _charts(record, place)]
    tables = [*_intervals(measured), *_cost(evaluations)]
    return Section(heading=heading, table=table, note=meanings(keys), charts=charts, tables=tables)


def _by_place(holder: JsonObject, file: str) -> dict[str, JsonObject]:
    """The evaluations that a file holds, each by its place in it."""
    records = objects(holder, "evaluations", file)
    return {f"{file}, evaluations[{i}]": record for i, record in enumerate(records)}


def _charts(record: JsonObject, place: str) -> list[Chart]:
    """pass@k and maj@k of one file; none where there is only one answer to each problem."""
    curves = [(key, curve) for key in _BY_K if len(curve := estimates(record, key, place)) > 1]
    if not curves:
        return []
    plain = record.get("pass@1")
    title = f"pass@k and maj@k on {record.get('file', '')}"
    described = "; ".join(
        f"{key}: {percent(curve[0].value)} at k = {curve[0].k}, {percent(curve[-1].value)} at k = {curve[-1].k}"
        for key, curve in curves
    )
    return [
        Chart(
            title=title,
            caption="At least one of k answers is right; the vote of the first k is right. Bands are 95 % intervals.",
            described=f"{title}. {described}",
            figure=by_k_figure(curves, number(plain, "value", place) if isinstance(plain, dict) else None),
        )
    ]


def _intervals(measured: Mapping[str, JsonObject]) -> list[Table]:
    """pass@k and maj@k with their intervals, at powers of two and the largest k: a row for each file and k."""
    rows = []
    for place, record in measured.items():
        curves = [{e.k: e for e in estimates(record, key, place)} for key in _BY_K]
        largest = max((k for curve in curves for k in curve), default=0)
        if largest < 2:
            continue
        for k in sorted({largest} | {2**i for i in range(largest.bit_length())}):
            rows.append(
                [str(record.get("file", "")), str(k), *(cell for curve in curves for cell in _cells(curve.get(k)))]
            )
    header = ["file", "k", *(name for key in _BY_K for name in (key, "95 % interval"))]
    return [Table(caption="pass@k and maj@k with 95 % intervals", header=header, rows=rows)] if rows else []


def _cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return [percent(None), ""]
    return [percent(estimate.value), percent_interval((estimate.lo, estimate.hi))]


def _cost(evaluations: Mapping[str, JsonObject]) -> list[Table]:
    """Length of the plain answers and time, where they were measured."""
    rows: list[Sequence[str]] = []
    for place, record in evaluations.items():
        length, cut, seconds, speed = (
            number(record, key, place)
            for key in ("completions/mean_length", "completions/clipped_ratio", "seconds", "problems_per_second")
        )
        if length is not None:  # a training measures no time
            file, took = str(record.get("file", "")), "" if seconds is None else duration(seconds)
            rows.append([file, f"{length:.1f}", percent(cut), took, "" if speed is None else f"{speed:,.1f}"])
    header = ["file", "tokens per answer", "cut off", "time", "problems per second"]
    return [Table(caption="Length of the plain answers, and time", header=header, rows=rows)] if rows else []


def estimates(record: JsonObject, key: str, place: str) -> list[Estimate]:
    """A curve of measures.json; an entry without all its numbers is left out."""
    curve = []
    for i, entry in enumerate(objects(record, key, place)):
        where = f"{place}, {key!r}[{i}]"
        k, value, ends = number(entry, "k", where), number(entry, "value", where), interval(entry, "ci95", where)
        if k is not None and value is not None and ends is not None:
            curve.append(Estimate(k=int(k), value=value, lo=ends[0], hi=ends[1]))
    return curve
