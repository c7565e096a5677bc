"""The files of an evaluation: the summary of results.json, and from measures.json what k answers give."""

from collections.abc import Mapping, Sequence

from dropout_grpo.report import markup, plots
from dropout_grpo.report.plots import Estimate
from dropout_grpo.report.results import cells, columns, meanings, metric_keys
from dropout_grpo.report.svg import inline_svg
from dropout_grpo.runs.read import Record, Run, interval, number, objects

_BY_K = ("pass@k", "maj@k")


def evaluations_section(run: Run) -> str:
    """One column for each evaluated file; where it was measured with several answers, pass@k and maj@k over k."""
    evaluations = _by_place(run.results, "results.json")
    if not evaluations:
        return ""
    keys = metric_keys(evaluations.values())
    files = [str(record.get("file", "")) for record in evaluations.values()]
    found = [
        [markup.count(number(record, "n", place)), *cells(record, keys, place)] for place, record in evaluations.items()
    ]
    rows = [[name, *of_files] for name, *of_files in zip(["problems", *columns(keys)], *found, strict=True)]
    measured = _by_place(run.measures, "measures.json")
    return markup.section(
        "Evaluation",
        markup.table("Share of each file's problems", ["", *files], rows),
        meanings(keys),
        _figures(measured),
        _intervals(measured),
        _cost(evaluations),
    )


def _by_place(holder: Record, file: str) -> dict[str, Record]:
    """The evaluations that a file holds, each by its place in it."""
    records = objects(holder, "evaluations", file)
    return {f"{file}, evaluations[{i}]": record for i, record in enumerate(records)}


def _figures(measured: Mapping[str, Record]) -> str:
    drawn = [_figure(record, place, f"by-k-{i}") for i, (place, record) in enumerate(measured.items())]
    return f'<div class="figures">{"".join(drawn)}</div>' if any(drawn) else ""


def _figure(record: Record, place: str, name: str) -> str:
    """pass@k and maj@k of one file; empty where there is only one answer to each problem."""
    curves = [(key, found) for key in _BY_K if len(found := estimates(record, key, place)) > 1]
    if not curves:
        return ""
    plain = record.get("pass@1")
    drawing = plots.by_k_figure(curves, number(plain, "value", place) if isinstance(plain, dict) else None)
    title = f"pass@k and maj@k on {record.get('file', '')}"
    described = "; ".join(
        f"{key}: {markup.percent(curve[0].value)} at k = {curve[0].k}, {markup.percent(curve[-1].value)} at k = "
        f"{curve[-1].k}"
        for key, curve in curves
    )
    caption = "At least one of k answers is right; the vote of the first k is right. Bands are 95 % intervals."
    return markup.figure(title, caption, inline_svg(drawing, label=f"{title}. {described}", name=name))


def _intervals(measured: Mapping[str, Record]) -> str:
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
    return markup.table("pass@k and maj@k with 95 % intervals", header, rows) if rows else ""


def _cost(evaluations: Mapping[str, Record]) -> str:
    """Length of the plain answers and time, where they were measured."""
    rows: list[Sequence[str]] = []
    for place, record in evaluations.items():
        length, cut, seconds, speed = (
            number(record, key, place)
            for key in ("completions/mean_length", "completions/clipped_ratio", "seconds", "problems_per_second")
        )
        if length is not None and seconds is not None and speed is not None:
            file = str(record.get("file", ""))
            rows.append([file, f"{length:.1f}", markup.percent(cut), markup.duration(seconds), f"{speed:,.1f}"])
    header = ["file", "tokens per answer", "cut off", "time", "problems per second"]
    return markup.table("Length of the plain answers, and time", header, rows) if rows else ""


def _cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return [markup.percent(None), ""]
    return [markup.percent(estimate.value), markup.percent_interval((estimate.lo, estimate.hi))]


def estimates(record: Record, key: str, place: str) -> list[Estimate]:
    """A curve of measures.json; an entry without all its numbers is left out."""
    found = []
    for i, entry in enumerate(objects(record, key, place)):
        where = f"{place}, {key!r}[{i}]"
        k, value, ends = number(entry, "k", where), number(entry, "value", where), interval(entry, "ci95", where)
        if k is not None and value is not None and ends is not None:
            found.append(Estimate(k=int(k), value=value, lo=ends[0], hi=ends[1]))
    return found
