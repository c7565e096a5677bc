"""The experiment of docs/experiment.md: runs it seed by seed, chooses its arms, and tests what the plan names.

python -m evidence.studies.experiment
python -m evidence.studies.experiment --trial

A seed's record is written when all its runs have ended. A seed that has one does not run again, so the experiment can
be divided over days and machines; all runs of a seed share one machine. The records are in docs/results/experiment, and
``make docs`` fills docs/results/experiment.md from them. ``--trial`` runs two other seeds with a tenth of the steps and
leaves docs alone.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy import stats

from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.distributed.device import default_device
from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import write_json
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.read import read_metrics, read_run
from dropout_grpo.tasks.word_problems import make_splits
from dropout_grpo.training.machine import bf16_or_not
from evidence.pages.markdown import percent, table
from evidence.places import RESULTS_FOLDER
from evidence.studies.over_seeds import Comparison, comparisons_table, paired, signed_range, t_interval
from evidence.studies.plan import Plan, Run, places, plan_rounds, read_plan
from evidence.studies.record import mixed_groups, seconds_of, solved
from evidence.studies.rounds import run_round

SETTINGS = Path(__file__).with_name("experiment.yaml")
CHOICE_SEEDS = (101, 102, 103, 104)
TRIAL_SEEDS = (1, 2)
GREEDY = ("prompt_005_t000", "prompt_010_t000")
HELD, FRESH = "latent_020_t100", "fresh_020_t100"

Record = Mapping[str, Any]
"""The record of a seed: for each run the problems that it solved, mixed groups, entropy, the share of updates whose
gradient was clipped, and seconds."""

_MAX_GRAD_NORM = 1.0
"""That of all runs, the default."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/experiment"), help="folder of the run folders")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="seeds at the same time, one core each"
    )
    parser.add_argument("--trial", action="store_true", help="seeds 1 and 2 with a tenth of the steps")
    options = parser.parse_args(argv)
    plan, folder, out = read_plan(SETTINGS), RESULTS_FOLDER / "experiment", options.out
    choice_seeds: Sequence[int] = CHOICE_SEEDS
    if options.trial:
        out = out.with_name(f"{out.name}-trial")
        plan, folder, choice_seeds = replace(_tenth(plan), seeds=TRIAL_SEEDS), out / "records", TRIAL_SEEDS
    try:
        run_seeds(plan.only(["choice"], choice_seeds), out, folder, "choice", options.workers)
        choices = read_records(folder, "choice")
        without, with_masks = chosen(plan, choices)
        print(f"chosen: {without} and {with_masks}", file=sys.stderr)
        run_seeds(tested(plan, without, with_masks), out, folder, "seed", options.workers)
    except (UserError, OSError) as error:
        print(f"experiment: error: {error}", file=sys.stderr)
        sys.exit(2)
    records = read_records(folder, "seed")
    print("\n\n".join(block(plan, choices, records) for block in BLOCKS.values()))


def _tenth(plan: Plan) -> Plan:
    steps = {"grpo.max_steps": "15", "grpo.eval_steps": "15", "grpo.save_steps": "15"}
    runs = {
        n: replace(run, options={k: v for k, v in run.options.items() if k not in steps})
        for n, run in plan.runs.items()
    }
    return replace(plan, common={**plan.common, **steps}, runs=runs)


def tested(plan: Plan, without: str, with_masks: str) -> Plan:
    """The part of the plan whose runs the tests need."""
    arms = [without, with_masks, *GREEDY, FRESH, HELD, f"demo_{without}", f"demo_{with_masks}"]
    return plan.only(["choice", "greedy", "holding", "demo"], [], arms)


def run_seeds(plan: Plan, out: Path, folder: Path, kind: str, workers: int) -> None:
    """Runs the seeds of a plan that have no record, a few at the same time, and writes their records."""
    left = [seed for seed in plan.seeds if not (folder / f"{kind}-{seed}.json").is_file()]
    bf16 = bf16_or_not(load_recipe(plan.recipe).bf16, default_device())
    for start in range(0, len(left), workers):
        few = replace(plan, seeds=tuple(left[start : start + workers]))
        for each in plan_rounds(few, out):
            run_round(each, workers=workers, threads=1, extra=["--bf16", str(bf16).lower()])
        for seed in few.seeds:
            write_json(folder / f"{kind}-{seed}.json", record_seed(few, out, seed))


def record_seed(plan: Plan, out: Path, seed: int) -> dict[str, Any]:
    """The record of one seed; the options of a run are those of the settings file."""

    def measured(run: Run) -> dict[str, Any]:
        where, metrics = places(out, seed), read_metrics(places(out, seed).run(run.name))
        mixed, entropy = mixed_groups(metrics), [line["entropy"] for line in metrics if "entropy" in line]
        norms = [line["grad_norm"] for line in metrics if "grad_norm" in line]
        return {
            "label": label(run),
            "solved": packed(solved(where.test(run.name))),
            "mixed": fmean(mixed) if mixed else None,
            "entropy": entropy[-1] if entropy else None,
            "clipped": fmean(norm > _MAX_GRAD_NORM for norm in norms),
            "seconds": seconds_of(where.run(run.name)),
        }

    runs = {**plan.of_kind("baseline"), **plan.of_kind("arm")}
    return {
        "seed": seed,
        "runs": {name: measured(run) for name, run in runs.items()},
        "run_commits": sorted({str(read_run(places(out, seed).run(n)).provenance.get("commit")) for n in runs}),
        **provenance(),
    }


def read_records(folder: Path, kind: str) -> list[Record]:
    """The records of one kind, ``choice`` or ``seed``, in the order of the seeds."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob(f"{kind}-*.json")]
    return sorted(records, key=lambda record: int(record["seed"]))


def packed(right: Sequence[bool]) -> str:
    """Bits as hexadecimal digits after a leading 1, which keeps their number: 500 digits for 2,000 problems."""
    return f"{int('1' + ''.join('01'[each] for each in right), 2):x}"


def unpacked(digits: str) -> list[bool]:
    """The inverse of ``packed``."""
    return [bit == "1" for bit in f"{int(digits, 16):b}"[1:]]


def chosen(plan: Plan, records: Sequence[Record]) -> tuple[str, str]:
    """The best arm without and with masks: most problems solved, then lower temperature, lower p, fewer phases."""

    def rank(name: str) -> tuple[float, ...]:
        run = plan.runs[name]
        greedy = run.options.get("grpo.answers") == "greedy"
        temperature = 0.0 if greedy else float(run.options.get("grpo.temperature", 1.0))
        right = sum(sum(unpacked(record["runs"][name]["solved"])) for record in records)
        phases = run.options.get("exploration.phases", "").count(",")
        return -right, temperature, float(run.settings.get("p", 0.0)), phases

    rows = plan.tables["choice"].rows
    bare = [name for name in rows if plan.runs[name].options["exploration.kind"] == "none"]
    return min(bare, key=rank), min((name for name in rows if name not in bare), key=rank)


def label(run: Run) -> str:
    """The label of a run, with the recipe if it is the demo's."""
    return f"demo's recipe: {run.label}" if run.name.startswith("demo_") else run.label


def shares(records: Sequence[Record], name: str) -> list[float]:
    """pass@1 of a run, by seed."""
    return [fmean(unpacked(record["runs"][name]["solved"])) for record in records]


def _comparison(plan: Plan, records: Sequence[Record], arm: str, other: str) -> Comparison:
    return Comparison(
        arm=label(plan.runs[arm]),
        other=label(plan.runs[other]),
        of_arm=shares(records, arm),
        of_other=shares(records, other),
    )


# The blocks of docs/results/experiment.md.


def choice(plan: Plan, choices: Sequence[Record], records: Sequence[Record]) -> str:
    """pass@1 of all arms on the seeds of the choice."""
    best, rows = chosen(plan, choices), []
    for name in plan.tables["choice"].rows:
        by_seed = shares(choices, name)
        mark = "chosen" if name in best else ""
        rows.append([plan.runs[name].label, percent(fmean(by_seed)), ", ".join(map(percent, by_seed)), mark])
    return table(["arm", "pass@1, percent", "by seed", ""], rows)


def contrast(plan: Plan, choices: Sequence[Record], records: Sequence[Record]) -> str:
    """The one test that decides."""
    without, with_masks = chosen(plan, choices)
    return comparisons_table([_comparison(plan, records, with_masks, without)])


def further(plan: Plan, choices: Sequence[Record], records: Sequence[Record]) -> str:
    """The other tests that the plan names, with Holm's correction over them."""
    without, with_masks = chosen(plan, choices)
    pairs = [(f"demo_{with_masks}", f"demo_{without}"), *((arm, without) for arm in GREEDY), (HELD, FRESH)]
    return comparisons_table([_comparison(plan, records, *pair) for pair in pairs])


def covariate(plan: Plan, choices: Sequence[Record], records: Sequence[Record]) -> str:
    """The contrast at equal shares of mixed groups: a line through the seeds' differences."""
    without, with_masks = chosen(plan, choices)
    mixed = [r["runs"][with_masks]["mixed"] - r["runs"][without]["mixed"] for r in records]
    gains = [b - a for a, b in zip(shares(records, without), shares(records, with_masks), strict=True)]
    line = stats.linregress(mixed, gains)
    half = float(stats.t.ppf(0.975, len(gains) - 2)) * line.intercept_stderr
    rows = [
        [
            "mixed groups, with masks minus without, points",
            f"{100 * fmean(mixed):+.2f}",
            signed_range(t_interval(mixed)),
        ],
        [
            "difference of pass@1 where both have as many, points",
            f"{100 * line.intercept:+.2f}",
            signed_range([line.intercept - half, line.intercept + half]),
        ],
        ["correlation of the two over seeds", f"{line.rvalue:+.2f}", ""],
    ]
    return table(["", "value", "95 % interval over seeds"], rows)


def subgroups(plan: Plan, choices: Sequence[Record], records: Sequence[Record]) -> str:
    """The contrast by number of steps, and by whether the baseline was right."""
    without, with_masks = chosen(plan, choices)
    by_group: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for record in records:
        steps = [len(problem.steps) for problem in _test_problems(plan, record["seed"])]
        start, a, b = (unpacked(record["runs"][name]["solved"]) for name in ("study", without, with_masks))
        groups = {f"{n} steps": [s == n for s in steps] for n in sorted(set(steps))}
        groups |= {"baseline right": start, "baseline wrong": [not right for right in start]}
        for group, members in groups.items():
            pairs = [pair for pair, member in zip(zip(a, b, strict=True), members, strict=True) if member]
            by_group[group].append((fmean(x for x, _ in pairs), fmean(y for _, y in pairs), len(pairs)))
    rows = []
    for group, values in by_group.items():
        of_without, of_with, counts = zip(*values, strict=True)
        test = paired(of_without, of_with)
        means = [percent(fmean(of_without)), percent(fmean(of_with))]
        rows.append([group, sum(counts), *means, f"{100 * test.difference:+.2f}", signed_range(test.ci95)])
    columns = ["problems", "n", "without masks", "with masks", "difference, points", "95 % interval over seeds"]
    return table(columns, rows)


def _test_problems(plan: Plan, seed: int) -> Sequence[Any]:
    settings = load_recipe(plan.recipe, {**plan.common, "data.word_problems.seed": str(seed)}).data.word_problems
    return make_splits(settings, ["test"])["test"]


def notes(plan: Plan, choices: Sequence[Record], records: Sequence[Record]) -> str:
    """Seeds, hours, commits, and how often gradients were clipped."""
    every, arms = [*choices, *records], plan.of_kind("arm")
    commits = sorted({commit for record in every for commit in record["run_commits"]})
    hours = sum(run["seconds"] for record in every for run in record["runs"].values()) / 3600
    clipped = fmean(run["clipped"] for record in records for name, run in record["runs"].items() if name in arms)
    return (
        f"Seeds of the choice: {_seeds(choices)}; of the tests: {_seeds(records)}. {hours:.1f} core hours of training; "
        f"commits {', '.join(commits)}. In the arms of the tests gradients were clipped in {percent(clipped)} % of the "
        "updates."
    )


def _seeds(records: Sequence[Record]) -> str:
    return ", ".join(str(record["seed"]) for record in records)


Block = Callable[[Plan, Sequence[Record], Sequence[Record]], str]
BLOCKS: dict[str, Block] = {
    "contrast": contrast,
    "further": further,
    "choice": choice,
    "covariate": covariate,
    "subgroups": subgroups,
    "notes": notes,
}


def block(folder: Path, name: str) -> str:
    """The Markdown of one block. Nothing is tested before all seeds have run, as the plan says."""
    plan, records = read_plan(SETTINGS), read_records(folder / "experiment", "seed")
    choices = read_records(folder / "experiment", "choice")
    if [record["seed"] for record in choices] != list(CHOICE_SEEDS):
        return "*Not run yet.*"
    if name != "choice" and [record["seed"] for record in records] != list(plan.seeds):
        return f"*{len(records)} of {len(plan.seeds)} seeds have run. Nothing is tested before all have.*"
    return BLOCKS[name](plan, choices, records)


if __name__ == "__main__":
    main()
