"""The paper's experiment tables on the embedded word problems: ``make study``.

python -m evidence.studies.study --out runs/study

Runs every baseline and arm of the settings file (``study.yaml``) for every seed, one per core, with one thread each.
Tables that the settings call optional (``rivals``) run only if they are named. Every run has its own run folder,
made by the functions behind the commands ``data``, ``sft``, ``grpo`` and ``eval``. What has finished does not run
again, and what was interrupted continues, so the same command resumes a study. Results go to docs/results/study.json;
``make docs`` fills the tables and figures of docs/RESULTS.md.

``--plan`` prints the arithmetic and runs nothing. ``--only variants long`` and ``--seeds 1 2`` run parts. ``--split
valid --seeds 0 --out runs/pilot --record runs/pilot.json`` measures on validation problems, to choose settings.
"""

import argparse
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch

from dropout_grpo.commands.data import write_data
from dropout_grpo.commands.evaluate import evaluate
from dropout_grpo.commands.train import grpo, sft
from dropout_grpo.config.recipe import CheckpointOptions, Recipe
from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.distributed.device import default_device
from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import RESULTS_FILE, write_json
from dropout_grpo.training.machine import bf16_or_not, keep_freed_memory, number_of_threads
from evidence.pages.markdown import table
from evidence.places import RESULTS_FOLDER
from evidence.studies.study_plan import (
    SETTINGS,
    Plan,
    arm_options,
    baseline_options,
    places,
    read_plan,
    samples_options,
    test_options,
)
from evidence.studies.study_summary import summarize_study, write_outcomes

Split = Literal["valid", "test"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One baseline, arm or set of samples with one seed."""

    plan: Plan
    name: str
    seed: int
    out: Path
    split: Split
    bf16: bool  # decided once for the whole study

    @property
    def seconds(self) -> float:
        """CPU seconds according to the plan."""
        return self.plan.runs[self.name].seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study, or the parts that the options name, and records the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="YAML file of the baselines, arms and tables")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the run folders")
    parser.add_argument(
        "--record",
        type=Path,
        help="JSON file to write; docs/results/study.json, or TABLE.json of an optional table alone",
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="TABLE", help="tables to make, optional ones too")
    parser.add_argument(
        "--seeds", nargs="*", type=int, default=[], help="seeds to run, instead of those in the settings"
    )
    parser.add_argument(
        "--arms", nargs="*", default=[], metavar="ARM", help="rows of these tables to run; all if not given"
    )
    parser.add_argument("--outcomes", type=Path, help="file for every problem's outcome, .json.gz")
    parser.add_argument("--split", choices=("valid", "test"), default="test", help="problems to measure on")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs side by side, one thread each")
    parser.add_argument("--plan", action="store_true", help="print the arithmetic and run nothing")
    options = parser.parse_args(argv)
    try:
        whole = read_plan(options.settings)
        plan = whole.only(options.only, options.seeds, options.arms)
        if options.plan:
            print(arithmetic(plan, options.workers, None if options.only else whole))
            return
        run_study(plan, options.out, options.split, options.workers)
        record = options.record or default_record(plan)
        write_json(record, summarize_study(plan, options.out, options.split))
        if options.outcomes is not None:
            write_outcomes(plan, options.out, options.outcomes)
    except UserError as error:
        print(f"study: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(record)


def default_record(plan: Plan) -> Path:
    """A file of its own for an optional table that is made alone, so that it does not replace the study's."""
    alone = list(plan.tables) if len(plan.tables) == 1 and not plan.default_tables else []
    return RESULTS_FOLDER / f"{alone[0] if alone else 'study'}.json"


def arithmetic(plan: Plan, workers: int, whole: Plan | None = None) -> str:
    """CPU seconds of every run, hours of each table and of all together.

    Args:
        plan: what would run.
        workers: cores.
        whole: the plan that it is a part of; the time of its other tables is added at the end.
    """
    seeds = len(plan.seeds)

    def hours(seconds: float) -> str:
        return f"{seconds / workers / 3600:.2f}"

    runs = [[name, run.seconds, seeds * run.seconds] for name, run in plan.runs.items()]
    names, before, tables = tuple(plan.tables), 0.0, []
    for i, name in enumerate(names):
        part, so_far = plan.only([name], []), plan.only(names[: i + 1], []).core_seconds
        seconds = part.core_seconds
        tables.append([name, len(part.runs), f"{seconds:.0f}", hours(seconds), hours(so_far - before)])
        before = so_far
    parts = [
        table(["run", "seconds per seed", "all seeds"], runs),
        "Tables share runs: the last column counts only what no table above it has.",
        table(["table", "runs per seed", "CPU seconds", "hours by itself", "hours it adds"], tables),
        f"{seeds} seeds, {plan.core_seconds:.0f} CPU seconds, {hours(plan.core_seconds)} hours on {workers} cores",
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


def run_study(plan: Plan, out: Path, split: Split, workers: int) -> None:
    """Runs what has not finished: first all baselines, then all arms and samples, expensive ones first.

    Raises:
        UserError: some runs failed; names them and their log.
    """
    out.mkdir(parents=True, exist_ok=True)
    bf16 = bf16_or_not(load_recipe(plan.recipe).bf16, default_device())
    for names in (plan.baselines, {**plan.arms, **plan.samples}):
        tasks = [
            Task(plan=plan, name=name, seed=seed, out=out, split=split, bf16=bf16)
            for seed in plan.seeds
            for name in names
        ]
        tasks = [task for task in tasks if not finished(task)]
        _run_all(sorted(tasks, key=lambda task: -task.seconds), min(workers, len(tasks)))


def _run_all(tasks: Sequence[Task], workers: int) -> None:
    """Runs tasks in worker processes, or in this process where there is one worker."""
    start, left = time.monotonic(), sum(task.seconds for task in tasks)
    planned = left
    failed = []
    for task, error in _outcomes(tasks, workers):
        left -= task.seconds
        took = time.monotonic() - start
        ahead = took * left / (planned - left)
        outcome = "done" if error is None else f"failed: {error}"
        print(f"seed {task.seed} {task.name}: {outcome}; {ahead / 60:.0f} minutes left", file=sys.stderr, flush=True)
        if error is not None:
            failed.append(f"{task.name} of seed {task.seed} ({log_file(task)})")
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(failed)}. The same command runs them again.")


def _outcomes(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Exception | None]]:
    """Each task when it ends, with what it raised."""
    if workers < 2:
        with number_of_threads(1):
            keep_freed_memory()
            for task in tasks:
                yield task, _raised_by(task)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker) as pool:
        futures = {pool.submit(_raised_by, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _raised_by(task: Task) -> Exception | None:
    """Runs a task; returns what it raised, so that one failed run does not end the others."""
    try:
        run_task(task)
    except Exception as error:
        with log_file(task).open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        return error
    return None


def _start_worker() -> None:
    """One thread per worker."""
    torch.set_num_threads(1)
    keep_freed_memory()


def finished(task: Task) -> bool:
    """True if the run and, after training, its evaluation have results."""
    where = places(task.out, task.seed)
    if task.name in task.plan.samples:
        return (where.run(task.name) / RESULTS_FILE).is_file()
    return all((folder / RESULTS_FILE).is_file() for folder in (where.run(task.name), where.test(task.name)))


def log_file(task: Task) -> Path:
    """Where a run's progress goes."""
    return places(task.out, task.seed).folder / f"{task.name}.log"


def run_task(task: Task) -> None:
    """Trains one baseline or arm and measures it, or draws samples; called in a worker."""
    log_file(task).parent.mkdir(parents=True, exist_ok=True)
    with log_file(task).open("a", encoding="utf-8") as log, redirect_stderr(log), redirect_stdout(log):
        if task.name in task.plan.samples:
            _draw_samples(task)
            return
        if task.name in task.plan.baselines:
            _train_baseline(task)
        else:
            _train_arm(task)
        _measure(task)


def _train_baseline(task: Task) -> None:
    where = places(task.out, task.seed)
    recipe = _recipe(task, baseline_options(task.plan, task.name, task.out, task.seed))
    data = where.data(task.name)
    if not (data / "test.json").is_file():  # the last file to be written
        shutil.rmtree(data, ignore_errors=True)
        write_data(data, recipe.data)
    if not (where.run(task.name) / RESULTS_FILE).is_file():
        sft(recipe)


def _train_arm(task: Task) -> None:
    where = places(task.out, task.seed)
    if not (where.run(task.name) / RESULTS_FILE).is_file():
        start = where.checkpoint(task.plan.arms[task.name].baseline, "coconut")
        recipe = _recipe(task, arm_options(task.plan, task.name, task.out, task.seed))
        grpo(recipe, str(start), CheckpointOptions())


def _draw_samples(task: Task) -> None:
    where, start = places(task.out, task.seed), task.plan.samples[task.name].baseline
    recipe = _recipe(task, samples_options(task.plan, task.name, task.out, task.seed))
    checkpoint, problems = where.checkpoint(start, "coconut"), where.data(start) / "valid.json"
    evaluate(recipe, str(checkpoint), [str(problems)], CheckpointOptions())


def _measure(task: Task) -> None:
    where = places(task.out, task.seed)
    if (where.test(task.name) / RESULTS_FILE).is_file():
        return
    is_baseline = task.name in task.plan.baselines
    checkpoint = where.checkpoint(task.name, "coconut" if is_baseline else "grpo")
    data = where.data(task.name if is_baseline else task.plan.arms[task.name].baseline)
    recipe = _recipe(task, test_options(task.plan, task.name, task.out, task.seed))
    evaluate(recipe, str(checkpoint), [str(data / f"{task.split}.json")], CheckpointOptions())


def _recipe(task: Task, options: dict[str, str]) -> Recipe:
    """The recipe of a run; it resumes a folder that an interrupted study has left."""
    begun = Path(options["run_dir"]).is_dir()
    given = {**options, "bf16": str(task.bf16).lower(), "resume": str(begun).lower()}
    return load_recipe(task.plan.recipe, given)


if __name__ == "__main__":
    main()
