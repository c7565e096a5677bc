"""The tables of the studies, from their records in ``docs/results``.

A block of a page is named ``RECORD.FUNCTION``, or ``RECORD.FUNCTION.TABLE``: ``study.arms.variants`` is ``arms`` of the
table ``variants`` in ``study.json``. The record of ``demo`` is the list of ``demo-seed*.json`` in order of the seeds.
The blocks of ``experiment`` are in ``experiment.py``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dropout_grpo.errors import UserError
from evidence.pages.markdown import console, percent, percent_range, table
from evidence.studies import experiment
from evidence.studies.over_seeds import (
    Comparison,
    comparisons_table,
    detectable,
    distinct,
    holm,
    paired,
    short_holm,
    short_p,
    signed_range,
)
from evidence.studies.record import arm_of

Record = Mapping[str, Any]
"""What ``record_plan`` or ``record_rounds`` returns."""

Demo = Mapping[str, Any]
"""The content of a demo run's ``results.json``."""

_NOT_RUN = "*Not run yet.*"

_ALSO = {"variants": (("sampled", "no_replay"), ("sampled", "per_step"))}
"""Comparisons of a table besides those that its settings name: what replaying and holding the mask bring."""

_DEMO_ARMS = {"baseline": "Coconut baseline", "dropout_grpo": "Dropout-GRPO", "temperature_only": "temperature only"}
_DEMO_PAIRS = (
    ("dropout_grpo", "baseline"),
    ("temperature_only", "baseline"),
    ("dropout_grpo", "temperature_only"),
)


def block(folder: Path, name: str) -> str:
    """The Markdown of one block, or a note that it has not been run.

    Raises:
        UserError: there is no such table.
    """
    record_name, _, call = name.partition(".")
    if record_name == "experiment":
        return experiment.block(folder, call)
    function, *rest = call.split(".")
    tables = _DEMO_TABLES if record_name == "demo" else _TABLES
    if function not in tables:
        raise UserError(f"the page has a block {name!r}, but the tables are {', '.join(tables)}.")
    record = read_record(folder, record_name)
    if not record or (rest and rest[0] not in record["tables"]):
        return _NOT_RUN
    return tables[function](record, *rest)


def read_record(folder: Path, name: str) -> Any:
    """The record of that name; None if it has not been run."""
    if name == "demo":
        demos = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("demo-seed*.json")]
        return sorted(demos, key=lambda demo: int(demo["seed"]))
    file = folder / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


# Studies of arms.


def baselines(study: Record) -> str:
    """pass@1 of the Coconuts that arms start from."""
    columns = ["baseline", "pass@1, percent", "95 % interval over seeds", "by seed", "seconds"]
    rows = [
        [name, percent(b["pass@1"]), _interval(b["ci95"]), _by_seed(b), f"{b['seconds']:.0f}"]
        for name, b in study["baselines"].items()
    ]
    return table(columns, rows)


def arms(study: Record, name: str) -> str:
    """One table of the study: its arms."""
    columns = ["arm", "pass@1, percent", "95 % interval over seeds"]
    columns += ["mixed groups, first 10 steps, percent", "last 10", "seconds"]
    rows = []
    for row in study["tables"][name]["rows"]:
        arm = study["arms"][row["arm"]]
        mixed = [percent(arm["mixed_first"], 0), percent(arm["mixed_last"], 0)]
        rows.append([arm["label"], percent(arm["pass@1"]), _interval(arm["ci95"]), *mixed, f"{arm['seconds']:.0f}"])
    return table(columns, rows)


def compared(study: Record, name: str) -> str:
    """All comparisons of one table over seeds."""
    return comparisons_table(comparisons(study, name))


def comparisons(study: Record, name: str) -> list[Comparison]:
    """Every arm of a table with its baseline and with the arms that the table names, each pair once."""
    arms, starts, pairs = study["arms"], study["baselines"], []
    for row in study["tables"][name]["rows"]:
        arm = arms[row["arm"]]
        start, pooled = starts[arm["baseline"]], arm["to_baseline"]["ci95"]
        pairs.append(_comparison(arm, {**start, "label": f"baseline {arm['baseline']}"}, pooled))
        pairs += [_comparison(arm, arms[other], to["ci95"]) for other, to in row["to"].items()]
    present = {row["arm"] for row in study["tables"][name]["rows"]}
    pairs += [_comparison(arms[a], arms[b], None) for a, b in _ALSO.get(name, ()) if {a, b} <= present]
    return distinct(pairs)


def _comparison(arm: Record, other: Record, networks: Sequence[float] | None) -> Comparison:
    return Comparison(
        arm=arm["label"], other=other["label"], of_arm=arm["by_seed"], of_other=other["by_seed"], networks=networks
    )


def signs(study: Record, name: str) -> str:
    """Signs of instability of a table's arms, means over seeds."""
    columns = ["arm", "largest KL", "largest gradient norm", "lowest entropy", "fall of pass@1 from its best, points"]
    rows = []
    for row in study["tables"][name]["rows"]:
        arm = study["arms"][row["arm"]]
        fall = "" if arm["fall"] is None else percent(arm["fall"])
        rows.append([arm["label"], *(f"{arm['signs'][sign]:.3g}" for sign in ("kl", "grad_norm", "entropy")), fall])
    return table(columns, rows)


def samples(study: Record, name: str) -> str:
    """pass@k of the untrained baselines under each noise of a table, with greedy and with sampled answers.

    A difference is to the first row's sampled answers, over seeds.
    """
    drawn = [study["samples"][sample] for sample in study["tables"][name]["samples"]]
    first = drawn[0]
    columns = ["noise", "answers", "share right", f"pass@{first['k']}, percent", "95 % interval over seeds", "by seed"]
    columns += [f"to {first['label']}, points", "95 % interval over seeds", "p", "p, Holm"]
    tests = [paired(first["by_seed"], row["by_seed"]) for row in drawn[1:]]
    differences = [
        [f"{100 * test.difference:+.2f}", signed_range(test.ci95), short_p(test.p), corrected]
        for test, corrected in zip(tests, short_holm([test.p for test in tests]), strict=True)
    ]
    rows = []
    for row, difference in zip(drawn, [[""] * 4, *differences], strict=True):
        measured = [row["label"], row["answers"], percent(row["sample_pass@1"])]
        rows.append([*measured, percent(row["pass@k"]), _interval(row["ci95"]), _by_seed(row), *difference])
    notes = f"{first['num_samples']} answers to each of {first['problems']:,} validation problems of each seed."
    return f"{table(columns, rows)}\n\n{notes}"


def study_notes(study: Record) -> str:
    """Problems, seeds, versions and commit; older records have only the commit that they were written with."""
    commits = ", ".join(study["run_commits"]) if "run_commits" in study else study["commit"]
    return (
        f"{study['problems']:,} {study['split']} problems for each of the seeds {', '.join(map(str, study['seeds']))}. "
        f"{_versions(study)}; commit {commits}."
    )


def study_example(study: Record, name: str) -> str:
    """The commands of the last arm of a table and of its baseline, for the first seed."""
    arm = study["arms"][study["tables"][name]["rows"][-1]["arm"]]
    return console([*study["baselines"][arm["baseline"]]["commands"], *arm["commands"]])


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else percent_range(interval)


def _by_seed(measured: Record) -> str:
    return ", ".join(map(percent, measured["by_seed"]))


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


# Studies of one seed, whose settings list commands.


def measures(record: Record, part: str = "evaluations") -> str:
    """Every checkpoint on every test file. Where an arm has several seeds, pass@1 is their mean."""
    measured = [(record["names"][name], e) for name, files in record[part].items() for e in files]
    k = next(e["pass@k"][-1]["k"] for _, e in measured if "pass@k" in e)
    columns = ["checkpoint", "file", "n", "pass@1, percent", "95 % interval", f"pass@{k}", f"maj@{k}", "model average"]
    rows = []
    for name, e in measured:
        others = [e["pass@k"][-1], e["maj@k"][-1], e["bma"]] if "pass@k" in e else []
        row = [name, Path(e["file"]).name, e["n"], percent(e["pass@1"]["value"]), percent_range(e["pass@1"]["ci95"])]
        row += [*(percent(other["value"]) for other in others), *[""] * (3 - len(others))]
        rows.append([*row, ", ".join(map(percent, e.get("by_seed", [])))])
    several = any("by_seed" in e for _, e in measured)
    return table([*columns, "pass@1 by seed"], rows) if several else table(columns, [row[:-1] for row in rows])


def pilots(record: Record) -> str:
    """What was measured on validation problems to choose settings."""
    return measures(record, "pilots")


def pairs(record: Record) -> str:
    """Two arms on the same problems; intervals and p-values are over the problems of these networks.

    The last column is the smallest difference that the test finds in 80 % of cases, at this disagreement.
    """
    columns = ["from", "to", "file", "difference, points", "these networks: 95 % interval", "wins", "losses"]
    columns += ["these networks: McNemar p", "these networks: p, Holm"]
    columns.append("smallest difference found in 80 % of cases, points")
    tests = [(names.split(), test) for names, files in record["pairs"].items() for test in files]
    rows = []
    for ((a, b), c), adjusted in zip(tests, holm([c["mcnemar_p"] for _, c in tests]), strict=True):
        row = [record["names"][a], record["names"][b], Path(c["file"]).name, percent(c["difference"])]
        row += [percent_range(c["ci95"]), c["wins"], c["losses"], short_p(c["mcnemar_p"]), short_p(adjusted)]
        row.append(percent(detectable(c["ci95"])))
        rows.append(row)
    return table(columns, rows) if rows else _NOT_RUN


def curve(record: Record) -> str:
    """pass@1 on validation problems: after stages of the curriculum and GRPO steps, and at the end on all of them."""
    rows = []
    for name, points in record["curves"].items():
        for point in points:
            where = f"stage {point['stage']}, update" if "stage" in point else "step"
            rows.append([record["names"][name], f"{where} {point['step']}", percent(point["eval/pass@1"])])
        run = record["runs"][name]
        for end in run["evaluations"] if "mixed_groups" in run else ():  # GRPO is validated on fewer problems
            rows.append([record["names"][name], f"the end, on {end['n']} problems", percent(end["pass@1"])])
    return table(["run", "after", "pass@1, percent"], rows)


def notes(record: Record) -> str:
    """Model, problems, time, mixed groups, seeds, versions and commit."""
    names, runs, first = record["names"], record["runs"], next(iter(record["runs"].values()))
    seeds: Sequence[int] = record.get("seeds", ())
    parts = []
    if model := record.get("model"):
        files = ", ".join(f"{file} with SHA-256 {digest}" for file, digest in model["sha256"].items())
        parts.append(f"Model: {model['name']} ({files}). Precision: {record['processor']}.")
    if same := record.get("transformers"):
        equal, checkpoints = sum(same["equal"].values()), len(same["equal"])
        parts.append(
            f"By transformers alone, {equal:,} of {checkpoints * same['problems']:,} answers of {checkpoints} "
            "checkpoints are the same."
        )
    if record.get("problems"):
        parts.append(f"Problems: {', '.join(f'{name} {count:,}' for name, count in record['problems'].items())}.")
    if record.get("seconds"):
        hours: dict[str, float] = {}
        for round_, seconds in record["seconds"].items():
            of_arms = [names.get(arm_of(name, seeds), name) for name in round_.split("+")]
            name = "evaluation" if round_.startswith("eval-") else " and ".join(dict.fromkeys(of_arms))
            hours[name] = hours.get(name, 0.0) + seconds / 3600
        spent = "; ".join(f"{name} {each:.2f}" for name, each in hours.items())
        parts.append(f"Hours on {record['cores']} cores: {spent}; {sum(hours.values()):.1f} together.")
    else:
        took = [f"{names[name]} {next(iter(run['seconds'].values())):.0f}" for name, run in runs.items()]
        parts.append(f"Seconds of training: {', '.join(took)}.")
    ends: dict[str, list[Sequence[float]]] = {}  # of each arm, by seed
    for name, run in runs.items():
        if "mixed_groups" in run:
            ends.setdefault(names[arm_of(name, seeds)], []).append(run["mixed_groups"])
    mixed = [
        f"{arm} {' and '.join(percent(fmean(of_seeds), 0) for of_seeds in zip(*each, strict=True))} %"
        for arm, each in ends.items()
    ]
    parts.append(f"Mixed groups in the first and last ten steps: {'; '.join(mixed)}.")
    of_grpo = f", of GRPO {' and '.join(map(str, seeds))}" if seeds else ""
    others = sorted({run["seed"] for run in runs.values()} - {first["seed"], *seeds})
    of_pilots = f", of its pilots {' and '.join(map(str, others))}" if others else ""
    commits = ", ".join(dict.fromkeys(run["commit"] for run in runs.values()))
    return " ".join([*parts, f"Seed {first['seed']}{of_grpo}{of_pilots}; {_versions(first)}; commit {commits}."])


def example(record: Record) -> str:
    """The last training and its evaluation as they were run."""
    name = next(name for name in reversed(record["runs"]) if f"eval-{name}" in record["commands"])
    return console([record["commands"][name], record["commands"][f"eval-{name}"]])


# The demo.


def demo_arms(demos: Sequence[Demo]) -> str:
    """All arms on all seeds."""
    columns = ["seed", "arm", "pass@1, percent", "95 % interval", "pass@8", "maj@8", "model average"]
    rows = []
    for demo in demos:
        for key, name in _DEMO_ARMS.items():
            arm = demo[key]
            others = [percent(arm[measure]) if measure in arm else "" for measure in ("pass@8", "maj@8", "bma")]
            rows.append([demo["seed"], name, percent(arm["pass@1"]), percent_range(arm["ci95"]), *others])
    return table(columns, rows)


def demo_gains(demos: Sequence[Demo]) -> str:
    """Dropout-GRPO against the baseline, problem by problem, and the collapse without masks."""
    columns = ["seed", "test problems", "gain, points", "wins", "losses", "these networks: McNemar p"]
    columns += ["collapse: groups without reward variance", "collapse: gradient norm"]
    rows = []
    for demo in demos:
        pair, collapse = demo["comparison"], demo["collapse"]
        gain = percent(demo["dropout_grpo"]["pass@1"] - demo["baseline"]["pass@1"])
        row = [demo["seed"], demo["n_test"], gain, pair["wins"], pair["losses"], short_p(pair["mcnemar_p"])]
        rows.append([*row, collapse["frac_reward_zero_std"], collapse["grad_norm"]])
    return table(columns, rows)


def demo_means(demos: Sequence[Demo]) -> str:
    """Means and standard deviations over seeds."""
    rows = []
    for key, name in _DEMO_ARMS.items():
        values = [demo[key]["pass@1"] for demo in demos]
        rows.append([name, percent(fmean(values)), percent(stdev(values)) if len(values) > 1 else ""])
    return table(["arm", "pass@1, mean over seeds, percent", "standard deviation, points"], rows)


def demo_compared(demos: Sequence[Demo]) -> str:
    """Every pair of arms, over seeds."""
    shares = {key: [demo[key]["pass@1"] for demo in demos] for key in _DEMO_ARMS}
    return comparisons_table(
        [
            Comparison(arm=_DEMO_ARMS[arm], other=_DEMO_ARMS[other], of_arm=shares[arm], of_other=shares[other])
            for arm, other in _DEMO_PAIRS
        ]
    )


def demo_seconds(demos: Sequence[Demo]) -> str:
    """Seconds of each part, of the runs that had the machine to themselves."""
    timed = [demo for demo in demos if "seconds" in demo]
    if not timed:
        return "*Not measured on an idle machine yet.*"
    names = list(timed[0]["seconds"])
    return table(["seed", *names], [[d["seed"], *(f"{d['seconds'][name]:.0f}" for name in names)] for d in timed])


_TABLES: dict[str, Callable[..., str]] = {
    "baselines": baselines,
    "arms": arms,
    "compared": compared,
    "signs": signs,
    "samples": samples,
    "study_notes": study_notes,
    "study_example": study_example,
    "measures": measures,
    "pilots": pilots,
    "pairs": pairs,
    "curve": curve,
    "notes": notes,
    "example": example,
}
_DEMO_TABLES: dict[str, Callable[[Sequence[Demo]], str]] = {
    "arms": demo_arms,
    "gains": demo_gains,
    "means": demo_means,
    "compared": demo_compared,
    "seconds": demo_seconds,
}
