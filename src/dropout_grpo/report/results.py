"""Headline and tables of results.json: the arms of a demo side by side."""

from collections.abc import Iterable, Mapping, Sequence

from dropout_grpo.report import markup, plots
from dropout_grpo.report.names import in_order, label
from dropout_grpo.report.svg import inline_svg
from dropout_grpo.runs.read import Record, Run, interval, mapping, number

_PLACE = "results.json"
_MEANINGS = {
    "pass@1": "pass@1: the plain network's greedy answer is right.",
    "pass@": "pass@k: at least one of k sampled answers is right.",
    "maj@": "maj@k: the most frequent of k sampled answers is right.",
    "coverage": "coverage: at least one of all sampled answers is right.",
    "bma": "BMA: the answer of the Bayesian model average over masks is right.",
}


def headline(run: Run) -> str:
    """Baseline to Dropout-GRPO in large type, next to the intervals; empty unless the run has both."""
    scores = arm_scores(run)
    if not {"baseline", "dropout_grpo"} <= scores.keys():
        return ""
    before, after = (_pass_at_1(scores[name]) for name in ("baseline", "dropout_grpo"))
    n_test = number(run.results, "n_test", _PLACE)
    on = f"on {n_test:,.0f} unseen problems" if n_test else "on unseen problems"
    alone = ""
    if "temperature_only" in scores:
        difference = markup.points(_pass_at_1(scores["temperature_only"]) - before)
        alone = f" GRPO with answer temperature alone, without masks: {difference} points.{_against_alone(run, scores)}"
    return (
        '<div class="headline"><div>'
        f'<p class="gain">{markup.percent(before)} <span class="arrow">→</span> '
        f'<span class="after">{markup.percent(after)}</span></p>'
        f"<p><strong>{markup.points(after - before)} points</strong> of pass@1 {on}, from the baseline to "
        f"Dropout-GRPO.{markup.text(_comparison(run) + alone)}</p></div>"
        f"{_intervals(scores)}</div>"
    )


def results_section(run: Run) -> str:
    """The arms of a demo side by side, and the collapse row: what GRPO sees without any exploration."""
    scores = arm_scores(run)
    if not scores:
        return ""
    n_test = number(run.results, "n_test", _PLACE)
    caption = f"Share of {n_test:,.0f} test problems" if n_test else "Share of the test problems"
    keys = metric_keys(scores.values())
    rows = [[label(name), *cells(arm, keys, f"{_PLACE}, {name!r}")] for name, arm in scores.items()]
    return markup.section("Results", markup.table(caption, ["", *columns(keys)], rows), meanings(keys), _collapse(run))


def arm_scores(run: Run) -> dict[str, Record]:
    """The arms of a demo, baseline first: every object of results.json that has a pass@1."""
    found = {
        name: value
        for name, value in run.results.items()
        if isinstance(value, dict) and number(value, "pass@1", f"{_PLACE}, {name!r}") is not None
    }
    return {name: found[name] for name in in_order(found)}


def _pass_at_1(scores: Record) -> float:
    value = number(scores, "pass@1", _PLACE)
    assert value is not None  # arm_scores chose the arms that have one
    return value


def metric_keys(records: Iterable[Record]) -> list[str]:
    """The fractions that a table has a column for, in order of appearance."""
    keys = dict.fromkeys(key for record in records for key in record)
    return [key for key in keys if key.startswith(tuple(_MEANINGS))]


def columns(keys: Sequence[str]) -> list[str]:
    """Headings of the metrics; pass@1 is the one that comes with an interval."""
    headings: list[str] = []
    for key in keys:
        headings += ["pass@1", "95 % interval"] if key == "pass@1" else [key.replace("bma", "BMA")]
    return headings


def cells(scores: Record, keys: Sequence[str], place: str) -> list[str]:
    """The metrics of one row, in percent; a dash where one was not measured."""
    row = []
    for key in keys:
        row.append(markup.percent(number(scores, key, place)))
        if key == "pass@1":
            row.append(markup.percent_interval(interval(scores, "ci95", place)))
    return row


def meanings(keys: Sequence[str]) -> str:
    """A sentence on each metric of a table."""
    sentences = [
        meaning
        for start, meaning in _MEANINGS.items()
        if any(key.startswith(start) and (key != "pass@1" or start == "pass@1") for key in keys)
    ]
    return f'<p class="note">{markup.text(" ".join(sentences))}</p>'


def _intervals(scores: Mapping[str, Record]) -> str:
    rows = [
        (label(name), _pass_at_1(arm), interval(arm, "ci95", f"{_PLACE}, {name!r}")) for name, arm in scores.items()
    ]
    described = "; ".join(
        f"{name} {markup.percent(value)} {markup.percent_interval(ends)}".rstrip() for name, value, ends in rows
    )
    return inline_svg(plots.intervals_figure(rows), label=f"pass@1 with 95 % intervals: {described}", name="intervals")


def _comparison(run: Run) -> str:
    if (found := _paired(run, "comparison")) is None:
        return ""
    wins, losses, p_text = found
    return (
        f" It solves {wins:,.0f} problems that the baseline does not, and loses {losses:,.0f} "
        f"(exact McNemar test, {p_text})."
    )


def _against_alone(run: Run, scores: Mapping[str, Record]) -> str:
    """Which of the two arms is ahead, and whether that could be chance."""
    if (found := _paired(run, "comparison_temperature_only")) is None:
        return ""
    wins, losses, p_text = found
    ahead = _pass_at_1(scores["dropout_grpo"]) - _pass_at_1(scores["temperature_only"])
    place = "level with it" if ahead == 0 else f"{abs(ahead) * 100:.1f} points {'ahead' if ahead > 0 else 'behind'}"
    return f" Dropout-GRPO is {place}: {wins:,.0f} problems won, {losses:,.0f} lost ({p_text})."


def _paired(run: Run, key: str) -> tuple[float, float, str] | None:
    """Wins, losses and the p-value in words of a paired comparison."""
    comparison = mapping(run.results, key, _PLACE)
    place = f"{_PLACE}, {key!r}"
    wins, losses, p = (number(comparison, name, place) for name in ("wins", "losses", "mcnemar_p"))
    if wins is None or losses is None or p is None:
        return None
    return wins, losses, "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"  # never broken over lines


def _collapse(run: Run) -> str:
    collapse = mapping(run.results, "collapse", _PLACE)
    place = f"{_PLACE}, 'collapse'"
    share, norm = number(collapse, "frac_reward_zero_std", place), number(collapse, "grad_norm", place)
    if share is None or norm is None:
        return ""
    return markup.table(
        "The collapse: GRPO on the same baseline, answered greedily and without any exploration",
        ["", "groups with equal rewards", "gradient norm"],
        [["No exploration", markup.percent(share), f"{norm:.3g}"]],
    )
