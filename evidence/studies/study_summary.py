"""Reads the run folders of the study and computes the values of its tables."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from dropout_grpo.evaluation.statistics import compare
from dropout_grpo.runs.files import RESULTS_FILE
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.read import read_measures, read_metrics, read_run, read_samples
from evidence.studies.over_seeds import t_interval
from evidence.studies.study_plan import Plan, command_lines, places

_ENDS = 10  # steps at the beginning and the end that mixed groups are averaged over
_POINTS = 20  # of the curve of mixed groups
_SIGNS = {"kl": max, "grad_norm": max, "entropy": min}
"""Metrics that show instability, and whether large or small values do."""


def summarize_study(plan: Plan, out: Path, split: str) -> dict[str, Any]:
    """The record of a study.

    Returns:
        ``baselines`` and ``arms`` with pass@1, comparisons, mixed groups, signs of instability, seconds and commands;
        ``samples`` with pass@k under each noise; ``tables`` with the rows in order; what it was run with.
    """
    right = {
        name: {seed: _right(places(out, seed).test(name)) for seed in plan.seeds}
        for name in (*plan.baselines, *plan.arms)
    }

    def to(others: Sequence[str], name: str) -> dict[str, Any]:
        return {other: pooled(right[other], right[name]) for other in others if other != name}

    arms = {}
    for name, arm in plan.arms.items():
        folders = [places(out, seed).run(name) for seed in plan.seeds]
        arms[name] = {
            "label": arm.label,
            "baseline": arm.baseline,
            "group": arm.group,
            "p": arm.p,
            "options": dict(arm.options),
            **passed(right[name]),
            "to_baseline": pooled(right[arm.baseline], right[name]),
            **training([read_metrics(folder) for folder in folders]),
            "seconds": fmean(_seconds(folder) for folder in folders),
            "commands": command_lines(plan, name, out, plan.seeds[0]),
        }
    baselines = {
        name: {
            **passed(right[name]),
            "options": dict(baseline.options),
            "seconds": fmean(_seconds(places(out, seed).run(name)) for seed in plan.seeds),
            "commands": command_lines(plan, name, out, plan.seeds[0]),
        }
        for name, baseline in plan.baselines.items()
    }
    return {
        "split": split,
        "problems": len(next(iter(next(iter(right.values())).values()))),
        "seeds": list(plan.seeds),
        "baselines": baselines,
        "arms": arms,
        "samples": sampled(plan, out),
        "tables": {
            name: {
                "against": list(t.against),
                "rows": [{"arm": arm, "to": to(t.against, arm)} for arm in t.rows],
                "samples": list(t.samples),
            }
            for name, t in plan.tables.items()
        },
        "run_commits": _commits(places(out, seed).run(name) for name in right for seed in plan.seeds),
        **provenance(),
    }


def _commits(folders: Iterable[Path]) -> list[str]:
    """The commits that the runs were made with; ``provenance`` is that of the record."""
    return sorted({str(read_run(folder).provenance.get("commit")) for folder in folders})


def sampled(plan: Plan, out: Path) -> dict[str, Any]:
    """pass@k of the baselines under each noise, and the difference to the first noise of the plan, over seeds."""
    measured = {
        name: [read_measures(places(out, seed).run(name))["evaluations"][0] for seed in plan.seeds]
        for name in plan.samples
    }
    passed_k = {name: [m["pass@k"][plan.k - 1]["value"] for m in measures] for name, measures in measured.items()}
    first = next(iter(passed_k.values()), [])
    found = {}
    for name, asked in plan.samples.items():
        measures, shares = measured[name], passed_k[name]
        ahead = [share - other for share, other in zip(shares, first, strict=True)]
        found[name] = {
            "noise": asked.noise,
            "label": asked.label,
            "baseline": asked.baseline,
            "answers": asked.answers,
            "options": dict(asked.options),
            "problems": measures[0]["n"],
            "num_samples": measures[0]["num_samples"],
            "k": plan.k,
            "pass@k": fmean(shares),
            "ci95": t_interval(shares),
            "by_seed": shares,
            "sample_pass@1": fmean(m["pass@k"][0]["value"] for m in measures),
            "to_first": {"difference": fmean(ahead), "ci95": t_interval(ahead)},
            "seconds": fmean(m["seconds"] for m in measures),
            "commands": command_lines(plan, name, out, plan.seeds[0]),
        }
    return found


def passed(right: Mapping[int, Sequence[bool]]) -> dict[str, Any]:
    """pass@1 of each seed, their mean and its interval (Student's t over seeds; None for one seed)."""
    shares = [sum(problems) / len(problems) for problems in right.values()]
    return {"pass@1": fmean(shares), "ci95": t_interval(shares), "by_seed": shares}


def pooled(first: Mapping[int, Sequence[bool]], second: Mapping[int, Sequence[bool]]) -> dict[str, Any]:
    """Paired comparison, problem by problem, pooled over seeds; ``seeds_ahead`` counts seeds that the second wins."""
    pairs = [(first[seed], second[seed]) for seed in first]
    found = compare([r for a, _ in pairs for r in a], [r for _, b in pairs for r in b])
    return {**found, "seeds_ahead": sum(sum(b) > sum(a) for a, b in pairs)}


def training(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Mixed groups over time and signs of instability, averaged over the runs of all seeds.

    Args:
        runs: the metrics of each run.
    """
    mixed = [[1 - record["frac_reward_zero_std"] for record in run if "frac_reward_zero_std" in record] for run in runs]
    curves = [_thinned(values) for values in mixed]
    best = [[record["eval/pass@1"] for record in run if "eval/pass@1" in record] for run in runs]
    return {
        "mixed_first": fmean(fmean(values[:_ENDS]) for values in mixed),
        "mixed_last": fmean(fmean(values[-_ENDS:]) for values in mixed),
        "mixed_curve": [fmean(points) for points in zip(*curves, strict=True)],
        "steps": len(mixed[0]),
        "signs": {
            name: fmean(worst((r[name] for r in run if r.get(name) is not None), default=0.0) for run in runs)
            for name, worst in _SIGNS.items()
        },
        "fall": fmean(max(values) - values[-1] for values in best) if all(best) else None,
    }


def _thinned(values: Sequence[float]) -> list[float]:
    """Means over equal intervals of the steps."""
    points = min(_POINTS, len(values))
    ends = [round(i * len(values) / points) for i in range(points + 1)]
    return [fmean(values[a:b]) for a, b in pairwise(ends)]


def _right(test: Path) -> list[bool]:
    """Whether the plain network solved each problem."""
    return [bool(line["plain_correct"]) for line in read_samples(test)]


def write_outcomes(plan: Plan, out: Path, file: Path) -> None:
    """Writes whether each problem was solved, by run and seed, as compressed JSON; ``read_outcomes`` reads it.

    2,000 problems are 500 hexadecimal digits, so 24 seeds of 10 runs are below 100 kB.
    """
    right = {
        name: {str(seed): _packed(_right(places(out, seed).test(name))) for seed in plan.seeds}
        for name in (*plan.baselines, *plan.arms)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(json.dumps(right).encode(), mtime=0))


def read_outcomes(file: Path) -> dict[str, dict[str, list[bool]]]:
    """What ``write_outcomes`` wrote: for each run and seed, whether each problem was solved."""
    found = json.loads(gzip.decompress(file.read_bytes()))
    return {name: {seed: _unpacked(bits) for seed, bits in seeds.items()} for name, seeds in found.items()}


def _packed(right: Sequence[bool]) -> str:
    """Bits as hexadecimal digits after a leading 1, which keeps their number."""
    return f"{int('1' + ''.join('01'[solved] for solved in right), 2):x}"


def _unpacked(digits: str) -> list[bool]:
    return [bit == "1" for bit in f"{int(digits, 16):b}"[1:]]


def _seconds(folder: Path) -> float:
    results = read_run(folder).results
    assert results, f"{folder / RESULTS_FILE} is missing"
    return float(next(iter(results["seconds"].values())))
