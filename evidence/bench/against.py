"""Seconds per update and peak memory of this checkout and of an older commit, by the same commands in alternation.

python -m evidence.bench.against d6d968b FOLDER gsm8k_train.jsonl > docs/performance/against-NAME.json

Both versions run `dropout-grpo sft` and `grpo` as a user does, each in a process of its own, on the same problems of
GSM8K. The seconds are those of metrics.jsonl, without the first update. Peak memory is Linux's VmHWM of the whole
command, with loading, saving and the report.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from jsonargparse import CLI

from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import METRICS_FILE
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.read import read_metrics
from evidence.bench.memory import anonymous_of, peak_of
from evidence.places import ROOT

STEPS = 3
"""Updates of a command. The first is not counted."""

_VALIDATED = 16
_COMMAND = [sys.executable, "-m", "dropout_grpo"]

_SFT = "sft --curriculum.cot_epochs 0 --curriculum.max_latent_stage 1 --curriculum.save_stages false"
_GRPO = f"grpo --grpo.max_steps {STEPS} --grpo.beta 0.01 --grpo.max_completion_length 32 --exploration.phases [latent]"
JOBS = {"curriculum update": _SFT.split(), "GRPO update": _GRPO.split()}
"""Commands and their options but for recipe, model, files and run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    status: int
    peak: int  # bytes
    anonymous: int  # bytes at the peak of what is not a page of a file
    seconds: float
    first_line: float  # seconds until the first update was logged
    updates: list[float]  # seconds of the updates but the first
    steps: list[float]  # the same with rollouts


def against(
    commit: str,
    model: Path,
    gsm8k: Path,
    rounds: int = 2,
    old: tuple[str, ...] = (),
    new: tuple[str, ...] = (),
    longest: bool = False,
) -> None:
    """Times both versions and prints one JSON object.

    Args:
        commit: the older version.
        model: folder of a language model.
        gsm8k: GSM8K's file of training problems.
        rounds: runs of each command.
        old: further options for the older version, such as --curriculum.micro_batch_size=8, without which it is killed.
        new: further options for this version.
        longest: train on the longest problems instead of a sample, to measure memory.
    """
    with tempfile.TemporaryDirectory() as scratch:
        there, here = Path(scratch) / "old", ROOT
        _git("worktree", "add", "--detach", str(there), commit)
        try:
            problems = chosen(load_problems(gsm8k), longest=longest)
            save_problems(Path(scratch) / "train.json", problems)
            save_problems(Path(scratch) / "valid.json", problems[:_VALIDATED])
            ended: dict[str, dict[str, list[Ended]]] = {name: {"old": [], "new": []} for name in JOBS}
            for number in range(rounds):
                for name, job in JOBS.items():
                    for version, source, more in (("old", there, old), ("new", here, new)):
                        folder = Path(scratch) / f"{version}-{number}"
                        words = [*job, *_named(job[0], model, folder, Path(scratch))]
                        words += [word for word in more if word.startswith(_prefixes(job[0]))]
                        ended[name][version].append(run(source, words, folder / job[0]))
                        print(name, version, ended[name][version][-1], file=sys.stderr, flush=True)
        finally:
            _git("worktree", "remove", "--force", str(there))
    jobs = {name: {v: summary(runs) for v, runs in both.items()} for name, both in ended.items()}
    facts = {
        "kind": "against",
        "commit_before": commit,
        "model": model.name,
        "rounds": rounds,
        "old": old,
        "new": new,
        "longest": longest,
    }
    print(json.dumps({**facts, "jobs": jobs, "ratios": ratios(jobs), **provenance()}, indent=1))


def chosen(problems: list[Problem], *, longest: bool) -> list[Problem]:
    """As many problems as the updates of the curriculum need: the longest ones, or a sample."""
    count = 32 * STEPS
    if longest:
        return sorted(problems, key=lambda problem: -len(problem.question) - sum(map(len, problem.steps)))[:count]
    return random.Random(0).sample(problems, count)


def _named(command: str, model: Path, folder: Path, files: Path) -> list[str]:
    """The options that name model, files and run folder."""
    common = [
        "--recipe",
        "gsm8k-smollm2",
        "--data.valid",
        str(files / "valid.json"),
        "--run_dir",
        str(folder / command),
    ]
    if command == "sft":
        return ["--model.name_or_path", str(model), "--data.train", str(files / "train.json"), *common]
    checkpoint = folder / "sft" / "checkpoints" / "coconut"
    return ["--checkpoint", str(checkpoint), "--data.grpo", str(files / "train.json"), *common]


def _prefixes(command: str) -> tuple[str, ...]:
    return ("--param_dtype", "--curriculum.") if command == "sft" else ("--param_dtype", "--grpo.")


def run(source: Path, words: list[str], run_dir: Path) -> Ended:
    """Runs a command with the package in a folder, and watches its memory."""
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    log, metrics = run_dir.with_name(f"{run_dir.name}.log"), run_dir / METRICS_FILE
    log.parent.mkdir(parents=True, exist_ok=True)
    began, peak, anonymous, first_line = time.monotonic(), 0, 0, 0.0
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([*_COMMAND, *words], cwd=source, env=environment, stdout=file, stderr=file)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status")
            peak, anonymous = max(peak, peak_of(status)), max(anonymous, anonymous_of(status))
            if not first_line and metrics.is_file() and metrics.stat().st_size:
                first_line = time.monotonic() - began
            time.sleep(0.02)
    if process.returncode != 0:
        print(log.read_text(encoding="utf-8")[-2000:], file=sys.stderr)
    lines = [line for line in read_metrics(run_dir) if "loss" in line] if metrics.is_file() else []
    return Ended(
        status=process.returncode,
        peak=peak,
        anonymous=anonymous,
        seconds=time.monotonic() - began,
        first_line=first_line,
        updates=_updates(lines)[1:],
        steps=[line["step_time"] for line in lines[1:] if "step_time" in line],
    )


def _updates(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    if lines and "step_time" in lines[0]:
        return [line["step_time"] - line["rollout_time"] for line in lines]
    seconds = [0.0, *(line["seconds"] for line in lines)]  # since the training began
    return [after - before for before, after in pairwise(seconds)]


def summary(runs: Sequence[Ended]) -> dict[str, Any]:
    """Medians of some runs of a command; None for what a command that failed did not reach."""
    updates = [seconds for run in runs for seconds in run.updates]
    steps = [seconds for run in runs for seconds in run.steps]
    return {
        "status": [run.status for run in runs],
        "peak": max(run.peak for run in runs),
        "anonymous": max(run.anonymous for run in runs),
        "seconds": median(run.seconds for run in runs),
        "first_line": median(run.first_line for run in runs),
        "update": median(updates) if updates else None,
        "step": median(steps) if steps else None,
        "updates": updates,
    }


def ratios(jobs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Old divided by new: how many times as fast, and how many times the memory."""
    return {
        name: {
            key: both["old"][key] / both["new"][key]
            for key in ("update", "step", "peak", "anonymous")
            if both["old"][key] and both["new"][key]
        }
        for name, both in jobs.items()
    }


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    try:
        CLI(against, as_positional=True)
    except UserError as error:
        sys.exit(f"error: {error}")
