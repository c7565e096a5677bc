"""Reads the run folders of a study and computes its record, from which the tables are made."""

import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from dropout_grpo.commands.compare import compare as compare_runs
from dropout_grpo.distributed.device import default_device
from dropout_grpo.evaluation.statistics import compare, mcnemar, mean_interval
from dropout_grpo.runs.files import CONFIG_FILE, RESULTS_FILE, write_json
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.read import read_measures, read_metrics, read_results, read_run, read_samples
from dropout_grpo.training.machine import bf16_for
from evidence.studies.gsm8k_weights import SOURCE_FILE
from evidence.studies.over_seeds import t_interval
from evidence.studies.plan import Plan, Run, command_lines, places
from evidence.studies.rounds import Round, finished, folder_of, seconds_of_rounds

_ENDS = 10  # steps at the beginning and the end that mixed groups are averaged over
_POINTS = 20  # of the curve of mixed groups
_SIGNS = {"kl": max, "grad_norm": max, "entropy": min}
"""Metrics that show instability, and whether large or small values do."""

Metrics = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics.jsonl."""


def record_plan(plan: Plan, out: Path, split: str) -> dict[str, Any]:
    """The record of a study of arms.

    Returns:
        ``baselines`` and ``arms`` with pass@1, comparisons, mixed groups, signs of instability, seconds and commands;
        ``samples`` with pass@k under each noise; ``tables`` with the rows in order; what it was run with.
    """
    starts, arms = plan.of_kind("baseline"), plan.of_kind("arm")
    right = {name: {seed: solved(places(out, seed).test(name)) for seed in plan.seeds} for name in (*starts, *arms)}

    def to(others: Sequence[str], name: str) -> dict[str, Any]:
        return {other: pooled(right[other], right[name]) for other in others if other != name}

    def measured(run: Run) -> dict[str, Any]:
        folders = [places(out, seed).run(run.name) for seed in plan.seeds]
        return {
            **passed(right[run.name]),
            "options": dict(run.options),
            "seconds": fmean(seconds_of(folder) for folder in folders),
            "commands": command_lines(plan, run, out, plan.seeds[0]),
        }

    return {
        "split": split,
        "problems": len(next(iter(next(iter(right.values())).values()))),
        "seeds": list(plan.seeds),
        "baselines": {name: measured(run) for name, run in starts.items()},
        "arms": {
            name: {
                "label": run.label,
                "baseline": run.baseline,
                "group": run.settings.get("group"),
                "p": run.settings.get("p"),
                **measured(run),
                "to_baseline": pooled(right[run.baseline], right[name]),
                **training([read_metrics(places(out, seed).run(name)) for seed in plan.seeds]),
            }
            for name, run in arms.items()
        },
        "samples": record_samples(plan, out),
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


def record_samples(plan: Plan, out: Path) -> dict[str, Any]:
    """pass@k of the baselines under each noise, and the difference to the first noise of the plan, over seeds."""
    drawn = plan.of_kind("samples")
    measured = {
        name: [read_measures(places(out, seed).run(name))["evaluations"][0] for seed in plan.seeds] for name in drawn
    }
    shares = {name: [m["pass@k"][plan.k - 1]["value"] for m in measures] for name, measures in measured.items()}
    first = next(iter(shares.values()), [])
    record = {}
    for name, run in drawn.items():
        measures = measured[name]
        ahead = [share - other for share, other in zip(shares[name], first, strict=True)]
        record[name] = {
            "noise": run.settings["noise"],
            "label": run.label,
            "baseline": run.baseline,
            "answers": run.settings["answers"],
            "options": dict(run.options),
            "problems": measures[0]["n"],
            "num_samples": measures[0]["num_samples"],
            "k": plan.k,
            "pass@k": fmean(shares[name]),
            "ci95": t_interval(shares[name]),
            "by_seed": shares[name],
            "sample_pass@1": fmean(m["pass@k"][0]["value"] for m in measures),
            "to_first": {"difference": fmean(ahead), "ci95": t_interval(ahead)},
            "seconds": fmean(m["seconds"] for m in measures),
            "commands": command_lines(plan, run, out, plan.seeds[0]),
        }
    return record


def passed(right: Mapping[int, Sequence[bool]]) -> dict[str, Any]:
    """pass@1 of each seed, their mean and its interval (Student's t over seeds; None for one seed)."""
    shares = [sum(problems) / len(problems) for problems in right.values()]
    return {"pass@1": fmean(shares), "ci95": t_interval(shares), "by_seed": shares}


def pooled(first: Mapping[int, Sequence[bool]], second: Mapping[int, Sequence[bool]]) -> dict[str, Any]:
    """Paired comparison, problem by problem, pooled over seeds; ``seeds_ahead`` counts seeds that the second wins."""
    pairs = [(first[seed], second[seed]) for seed in first]
    comparison = compare([r for a, _ in pairs for r in a], [r for _, b in pairs for r in b])
    return {**comparison, "seeds_ahead": sum(sum(b) > sum(a) for a, b in pairs)}


def training(runs: Sequence[Metrics]) -> dict[str, Any]:
    """Mixed groups over time and signs of instability, averaged over the runs of all seeds."""
    mixed = [mixed_groups(run) for run in runs]
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


def mixed_groups(run: Metrics) -> list[float]:
    """The share of groups that differ in reward, step by step."""
    return [1 - record["frac_reward_zero_std"] for record in run if "frac_reward_zero_std" in record]


def _thinned(values: Sequence[float]) -> list[float]:
    """Means over equal intervals of the steps."""
    points = min(_POINTS, len(values))
    ends = [round(i * len(values) / points) for i in range(points + 1)]
    return [fmean(values[a:b]) for a, b in pairwise(ends)]


def solved(test: Path) -> list[bool]:
    """Whether the plain network solved each problem."""
    return [bool(line["plain_correct"]) for line in read_samples(test)]


def seconds_of(folder: Path) -> float:
    results = read_results(folder)
    assert results, f"{folder / RESULTS_FILE} is missing"
    return float(next(iter(results["seconds"].values())))


def record_rounds(
    settings: Mapping[str, Any], rounds: Sequence[Round], out: str, data: str, model: str = ""
) -> dict[str, Any]:
    """The record of a study whose settings list commands.

    Returns:
        ``commands``; ``names`` of the runs in tables; ``model``, where its weights come from; ``processor``, why
        products were in bf16 or not; ``problems``, the sizes of the written files; ``seconds`` of each round; ``runs``
        and ``curves`` of the trainings; ``evaluations``, the measures of the commands named ``eval-...``, an arm's
        seeds together; ``pilots``, those of other evaluations; ``pairs`` of evaluations on the same problems;
        ``transformers``, the answers that are equal there. The user's folder is written as ``DATA``.
    """
    lines = {name: words for each in rounds for name, words in each.items()}
    seeds = settings.get("seeds", ())
    arms: dict[str, list[Path]] = {}
    record: dict[str, Any] = {
        "commands": {name: shlex.join(words) for name, words in lines.items()},
        "cores": os.cpu_count(),
        "seeds": list(seeds),
        "processor": processors({name: folder_of(words) for name, words in lines.items()}),
        "names": {**settings["names"], **_names_of_seeds(settings["names"], seeds)},
        "model": _read(Path(f"{out}-model", SOURCE_FILE)),
        "problems": {file.stem: _length(file) for file in sorted(Path(f"{out}-data").glob("*.json"))},
        "seconds": seconds_of_rounds(out),
        "runs": {},
        "curves": {},
        "pilots": {},
        "transformers": {},
    }
    for name, words in lines.items():
        folder = folder_of(words)
        if name.startswith("eval-"):
            arms.setdefault(arm_of(name.removeprefix("eval-"), seeds), []).append(folder)
        elif metrics := read_metrics(folder):
            keys = ("step", "stage", "eval/pass@1")
            record["curves"][name] = [{k: line[k] for k in keys if k in line} for line in metrics if keys[-1] in line]
            record["runs"][name] = dict(read_results(folder))
            if mixed := mixed_groups(metrics):
                record["runs"][name] |= {"mixed_groups": [fmean(mixed[:_ENDS]), fmean(mixed[-_ENDS:])]}
                record["runs"][name]["over_steps"] = {"mixed_groups": _thinned(mixed), **over_steps(metrics)}
                record["runs"][name]["steps"] = len(mixed)
        elif measures := read_measures(folder):
            record["pilots"][name] = measures["evaluations"]
        elif name.startswith("transformers") and (same := read_results(folder)):
            before = record["transformers"].get("equal", {})
            record["transformers"] = {**same, "equal": before | same["equal"]}
    arms = {arm: folders for arm, folders in arms.items() if all(map(read_measures, folders))}  # those that have run
    record["evaluations"] = {arm: evaluated(folders) for arm, folders in arms.items()}
    tested = settings.get("tested")
    record["pairs"] = {
        f"{a} {b}": [c for c in compare_arms(arms[a], arms[b]) if not tested or Path(c["file"]).name in tested]
        for a, b in map(str.split, settings["pairs"])
        if {a, b} <= arms.keys()
    }
    text = json.dumps(record)
    if Path(model).exists():
        text = text.replace(model, Path(model).name)
    anonymous: dict[str, Any] = json.loads(text.replace(f"{data}/", "DATA/"))
    return anonymous


def processors(folders: Mapping[str, Path]) -> str:
    """Why runs multiplied in bf16 or not, as their config.json says; runs of another processor than most are named."""
    names: dict[str, list[str]] = {}
    for name, folder in folders.items():
        if reason := (_read(folder / CONFIG_FILE) or {}).get("reasons", {}).get("bf16"):
            names.setdefault(reason, []).append(name)
    most, *others = sorted(names, key=lambda reason: -len(names[reason])) or [bf16_for(default_device())[1]]
    return "; ".join([most, *(f"in {', '.join(names[reason])} {reason}" for reason in others)])


def arm_of(name: str, seeds: Sequence[int]) -> str:
    """The arm of a run: its name without the seed at its end."""
    arm, _, last = name.rpartition("-")
    return arm if last in map(str, seeds) else name


def _names_of_seeds(names: Mapping[str, str], seeds: Sequence[int]) -> dict[str, str]:
    return {f"{arm}-{seed}": f"{name}, seed {seed}" for arm, name in names.items() for seed in seeds}


def over_steps(run: Metrics) -> dict[str, list[float]]:
    """How reward, entropy and KL change over the steps; without those that a run does not have."""
    values = {name: [line[name] for line in run if line.get(name) is not None] for name in ("reward", "entropy", "kl")}
    return {name: _thinned(value) for name, value in values.items() if any(value)}


def evaluated(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The measures of an arm, file by file, from the run folder of each seed.

    With several seeds pass@1 is their mean, with an interval over problems, and ``by_seed`` has each; what is measured
    under masks is that of the first seed.
    """
    runs: list[list[dict[str, Any]]] = [read_measures(folder)["evaluations"] for folder in folders]
    if len(runs) == 1:
        return runs[0]
    shares = shares_solved(folders)
    return [
        {
            **of_seeds[0],
            "pass@1": {"value": fmean(solved), "ci95": list(mean_interval(solved))},
            "by_seed": [evaluation["pass@1"]["value"] for evaluation in of_seeds],
        }
        for of_seeds, solved in zip(zip(*runs, strict=True), shares.values(), strict=True)
    ]


def shares_solved(folders: Sequence[Path]) -> dict[str, list[float]]:
    """The share of an arm's seeds that solve each problem, by file."""
    shares: dict[str, list[float]] = {}
    for lines in zip(*map(read_samples, folders), strict=True):
        shares.setdefault(lines[0]["file"], []).append(fmean(line["plain_correct"] for line in lines))
    return shares


def compare_arms(first: Sequence[Path], second: Sequence[Path]) -> list[dict[str, Any]]:
    """The second arm against the first, file by file; each may have several seeds."""
    if len(first) == len(second) == 1:
        pairs = compare_runs(str(first[0]), str(second[0]))["comparisons"]
        return [{k: v for k, v in p.items() if k not in ("won", "lost")} for p in pairs]
    a, b = shares_solved(first), shares_solved(second)
    return [
        {"file": file, "n": len(a[file]), "pass@1": {"a": fmean(a[file]), "b": fmean(b[file])}}
        | compare_shares(a[file], b[file])
        for file in a
    ]


def compare_shares(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Like ``statistics.compare``, for two arms of several networks; entry i is the share that solves problem i.

    A win is a problem that a larger share of the second arm's networks solves. Each problem counts once, since the
    networks of an arm are alike: McNemar's exact test is of wins against losses, and the interval is that of the mean
    over problems. Where the arms have different numbers of networks, equal arms do not win and lose exactly alike: of
    two networks against one, where few networks solve a problem, more problems are won than lost by chance. The
    interval has no such lean.
    """
    ahead = [b - a for a, b in zip(first, second, strict=True)]
    wins, losses = sum(d > 0 for d in ahead), sum(d < 0 for d in ahead)
    low, high = mean_interval([(1 + d) / 2 for d in ahead])
    return {
        "wins": wins,
        "losses": losses,
        "mcnemar_p": mcnemar(wins, losses),
        "difference": fmean(ahead),
        "ci95": [2 * low - 1, 2 * high - 1],
    }


def record_each(rounds: Sequence[Round], record: Path, *, seconds: bool) -> list[Path]:
    """Records the results of each finished command by themselves.

    Args:
        rounds: the commands.
        record: file to write, with ``*`` for the name of the command.
        seconds: keep the seconds; not those of a busy machine.

    Returns:
        The files written.
    """
    files = []
    for name, words in ((name, words) for each in rounds for name, words in each.items() if finished(words)):
        results = {key: value for key, value in read_results(folder_of(words)).items() if seconds or key != "seconds"}
        files.append(record.with_name(record.name.replace("*", name)))
        write_json(files[-1], results)
    return files


def _length(file: Path) -> int:
    return len(_read(file))


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
