"""Runs the commands of a study and records their results: ``make study``, ``make rivals``, ``make gsm8k``.

python -m evidence.studies.study --out runs/study
python -m evidence.studies.study --settings evidence/studies/prosqa.yaml --data FOLDER

A settings file has one of two forms. With ``tables`` (``study.yaml``, ``experiment.yaml``) it names baselines, arms and
tables; each run is repeated for every seed, with one thread. Tables that it calls optional (``rivals``) run only if
they are named. With ``rounds`` (``prosqa.yaml``, ``gsm8k.yaml``, ``demo.yaml``) it lists the commands themselves.

What has finished does not run again, and what was interrupted continues, so the same command resumes a study. Results
go to docs/results; ``make docs`` fills the tables and figures of the documents.

``--plan`` prints the hours that a study takes and runs nothing. For settings with tables: ``--only variants long``,
``--arms`` and ``--seeds 1 2`` run parts. ``--split valid --seeds 0 --out runs/pilot --record runs/pilot.json`` measures
on validation problems, to choose settings.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.distributed.device import default_device
from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import write_json
from dropout_grpo.training.machine import bf16_for, bf16_or_not
from evidence.pages.markdown import table
from evidence.places import RESULTS_FOLDER
from evidence.studies.plan import SETTINGS, Plan, plan_rounds, read_plan
from evidence.studies.record import record_each, record_plan, record_rounds
from evidence.studies.rounds import name_of, read_rounds, run_round, run_rounds, seconds_of_rounds


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a study, or the parts that the options name, and records the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="YAML file of the study")
    parser.add_argument("--out", help="folder of the run folders, or the beginning of their names")
    parser.add_argument("--record", type=Path, help="JSON file to write instead of the one in docs/results")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="commands at the same time")
    parser.add_argument("--collect", action="store_true", help="run nothing, and record what there is")
    parser.add_argument("--plan", action="store_true", help="print the hours and run nothing")
    tables = parser.add_argument_group("settings with tables")
    tables.add_argument("--only", nargs="*", default=[], metavar="TABLE", help="tables to make, optional ones too")
    tables.add_argument("--seeds", nargs="*", type=int, default=[], help="instead of those in the settings")
    tables.add_argument("--arms", nargs="*", default=[], metavar="ARM", help="rows to run; all if not given")
    tables.add_argument("--split", choices=("valid", "test"), default="test", help="problems to measure on")
    rounds = parser.add_argument_group("settings with rounds")
    rounds.add_argument("--data", default="data", help="folder of the files that the study reads")
    what = "what is trained, unless the settings have a model of their own: a hub name, folder or GGUF file"
    rounds.add_argument("--model", help=what)
    rounds.add_argument("--no_seconds", action="store_true", help="leave seconds out: the machine was busy")
    options = parser.parse_args(argv)
    try:
        is_plan = "tables" in yaml.safe_load(options.settings.read_text(encoding="utf-8"))
        study_of_arms(options) if is_plan else study_of_rounds(options)
    except (UserError, OSError, yaml.YAMLError) as error:
        print(f"study: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("study: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)


def study_of_arms(options: argparse.Namespace) -> None:
    """A study whose settings have tables."""
    whole = read_plan(options.settings)
    plan, out = whole.only(options.only, options.seeds, options.arms), Path(options.out or "runs/study")
    if options.plan:
        print(arithmetic(plan, options.workers, None if options.only else whole))
        return
    bf16 = bf16_or_not(load_recipe(plan.recipe).bf16, default_device())  # one choice for trainings and tests
    for each in () if options.collect else plan_rounds(plan, out, options.split):
        run_round(each, workers=options.workers, threads=1, extra=["--bf16", str(bf16).lower()])
    record = options.record or default_record(plan)
    write_json(record, record_plan(plan, out, options.split))
    print(record)


def study_of_rounds(options: argparse.Namespace) -> None:
    """A study whose settings list commands."""
    settings = yaml.safe_load(options.settings.read_text(encoding="utf-8"))
    out, model = options.out or settings["out"], options.model or settings.get("model", "")
    if model is None:
        raise UserError(f"{options.settings} has no model of its own: give a hub name, folder or GGUF file (--model).")
    if "hours" in settings:
        print(hours_of(settings, out), flush=True)
    if options.plan:
        return
    if not options.collect:
        run_rounds(read_rounds(settings, out, options.data, model), out, workers=options.workers)
    record = options.record or RESULTS_FOLDER / settings["record"]
    rounds = list(read_rounds(settings, out, options.data, model))
    if "*" in record.name:
        for file in record_each(rounds, record, seconds=not options.no_seconds):
            print(file)
        return
    write_json(record, record_rounds(settings, rounds, out, options.data, model))
    print(record)


def hours_of(settings: Mapping[str, Any], out: str) -> str:
    """The planned hours of each round, those that it has taken so far, and what the machine has."""
    planned, spent = settings["hours"], seconds_of_rounds(out)
    names = [name_of(lines) for lines in settings["rounds"]]
    rows = [[name, f"{planned[name]:.2f}", f"{spent.get(name, 0) / 3600:.2f}"] for name in names]
    both = sum(planned.values()), sum(spent.values()) / 3600
    rows.append(["together", *(f"{hours:.2f}" for hours in both)])
    return "\n\n".join(
        [
            table(["round", "planned hours", "hours so far"], rows),
            f"Planned for {settings['machine']}. Here: {os.cpu_count()} cores; {bf16_for(default_device())[1]}.",
        ]
    )


def default_record(plan: Plan) -> Path:
    """A file of its own for an optional table that is made alone, so that it does not replace the study's."""
    alone = list(plan.tables) if len(plan.tables) == 1 and not plan.default_tables else []
    return RESULTS_FOLDER / f"{alone[0] if alone else 'study'}.json"


def arithmetic(plan: Plan, workers: int, whole: Plan | None = None) -> str:
    """CPU seconds and hours of each table and of all together.

    Args:
        plan: what would run.
        workers: cores.
        whole: the plan that it is a part of; the time of its other tables is added at the end.
    """

    def hours(seconds: float) -> str:
        return f"{seconds / workers / 3600:.2f}"

    names, before, rows = tuple(plan.tables), 0.0, []
    for i, name in enumerate(names):
        part, so_far = plan.only([name], []), plan.only(names[: i + 1], []).core_seconds
        seconds = part.core_seconds
        rows.append([name, len(part.runs), f"{seconds:.0f}", hours(seconds), hours(so_far - before)])
        before = so_far
    parts = [
        "Tables share runs: the last column counts only what no table above it has.",
        table(["table", "runs per seed", "CPU seconds", "hours by itself", "hours it adds"], rows),
        f"{len(plan.seeds)} seeds, {plan.core_seconds:.0f} CPU seconds, {hours(plan.core_seconds)} hours on {workers} "
        "cores",
    ]
    whole = whole or plan
    for name in (name for name in whole.tables if name not in names):
        alone = whole.only([name], plan.seeds).core_seconds
        adds = whole.only([*names, name], plan.seeds).core_seconds - plan.core_seconds
        parts.append(
            f"not included, --only {name}: {alone:.0f} CPU seconds, {hours(alone)} hours; {hours(adds)} hours after "
            "the tables above"
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
