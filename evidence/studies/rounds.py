"""Runs rounds of commands: the commands of a round share the cores, and a round starts when the one before has ended.

A command is a line that a user can type, as words, and has its own run folder (``--run_dir`` or ``--out``). What has
results does not run again, and what was interrupted is resumed. Output goes to the run folder's name with ``.log``.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from glob import escape, glob
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.cli.main import main
from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import RESULTS_FILE, checkpoint_folder, write_json
from dropout_grpo.training.machine import number_of_threads

Words = Sequence[str]
Round = Mapping[str, Words]
"""Command lines by name."""

_PROGRAMS = {"dropout-grpo": ["-m", "dropout_grpo"], "torchrun": ["-m", "torch.distributed.run"], "python": []}
_RESUMABLE = ("sft", "grpo", "eval", "demo")
_INTERRUPTED = (130, 143)  # statuses after Ctrl-C and SIGTERM


def read_rounds(settings: Mapping[str, Any], out: str, data: str, model: str = "") -> Iterator[Round]:
    """The rounds of a settings file with their placeholders filled in.

    Files are looked for when a round is asked for, since a round before may write them.

    Args:
        settings: ``rounds``, command lines by name; ``short``, text that they share; ``files``, lists of patterns.
        out: prefix of the run folders' names, ``{out}`` in the lines.
        data: folder of the user's files, ``{data}``.
        model: what is trained, ``{model}``.
    """
    plain = {"out": escape(out), "data": escape(data)}
    for lines in settings["rounds"]:
        texts = {"out": out, "data": data, "model": model}
        for name, patterns in settings.get("files", {}).items():
            files = [file for pattern in patterns for file in sorted(glob(pattern.format(**plain)))]
            texts[name] = f"[{','.join(files)}]"
        for name, text in settings.get("short", {}).items():
            texts[name] = text.format(**texts)
        words = {name: line.format(**texts).split() for name, line in lines.items()}
        yield _in_two_processes(words) if settings.get("two_processes_if_alone") else words


def _in_two_processes(lines: dict[str, list[str]]) -> dict[str, list[str]]:
    """Two processes of one thread wait for each other once per update, two threads at every operation."""
    if len(lines) > 1 or torch.cuda.is_available() or (os.cpu_count() or 1) < 2:
        return lines
    launcher = ["torchrun", "--nproc_per_node", "2", "-m", "dropout_grpo"]
    return {n: [*launcher, *words[1:]] if words[0] == "dropout-grpo" else words for n, words in lines.items()}


def run_rounds(rounds: Iterator[Round], out: str, *, workers: int) -> None:
    """Runs all rounds, and adds their seconds to those of earlier runs."""
    for each in rounds:
        start, name = time.monotonic(), name_of(each)
        try:
            run_round(each, workers=workers)
        finally:  # an interrupted round counts too
            spent = seconds_of_rounds(out)
            write_json(_clock(out), {**spent, name: spent.get(name, 0.0) + time.monotonic() - start})


def name_of(lines: Mapping[str, Any]) -> str:
    """A round's name: those of its commands."""
    return "+".join(lines)


def _clock(out: str) -> Path:
    return Path(f"{out}-seconds.json")


def seconds_of_rounds(out: str) -> dict[str, float]:
    """Seconds of each round so far, by the names of its commands."""
    clock = _clock(out)
    return json.loads(clock.read_text(encoding="utf-8")) if clock.is_file() else {}


def run_round(lines: Round, *, workers: int, threads: int | None = None, extra: Words = ()) -> None:
    """Runs the commands of a round that have no results yet.

    Args:
        lines: commands by name; those first in order start first.
        workers: commands at the same time, one for each core.
        threads: of each process; the cores are shared out if it is None.
        extra: options of every command but ``data``.

    Raises:
        UserError: some commands failed, after all have ended; names them and the log of the first.
    """
    left = {name: words for name, words in lines.items() if not finished(words)}
    if threads is None:
        threads = max(1, workers // max(1, sum(map(_processes, left.values()))))
    jobs = {name: (_resumed(words, extra), log_file(words), threads) for name, words in left.items()}
    failed = []
    for number, (name, status) in enumerate(_statuses(jobs, min(workers, len(jobs))), start=1):
        if status in _INTERRUPTED:
            raise KeyboardInterrupt
        outcome = "done" if status == 0 else f"failed, see {jobs[name][1]}"
        print(f"{name}: {outcome}; {number} of {len(jobs)}", file=sys.stderr, flush=True)
        if status:
            failed.append(name)
        else:
            _remove_steps(left[name])
    if failed:
        raise UserError(
            f"{len(failed)} commands failed: {', '.join(failed)}; see {jobs[failed[0]][1]}. The same command runs "
            "them again."
        )


def _remove_steps(words: Words) -> None:
    """Removes what a finished command could be resumed from: 12 bytes per parameter, for each of many runs."""
    for checkpoint in checkpoint_folder(folder_of(words), "").glob("*-step-*"):
        shutil.rmtree(checkpoint)


def _statuses(jobs: Mapping[str, tuple[Words, Path, int]], workers: int) -> Iterator[tuple[str, int]]:
    """Each command's name and exit status when it ends; in this process if there is one worker."""
    if workers < 2:
        yield from ((name, execute(*job)) for name, job in jobs.items())
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = {pool.submit(execute, *job): name for name, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # after an interruption the others do not start
            pool.shutdown(cancel_futures=True)


def execute(words: Words, log: Path, threads: int) -> int:
    """Runs one command line with a number of threads; returns its status.

    One of ours with one thread runs in this process. With several it gets its own: there they sleep while they wait,
    as ``wait_asleep`` says, and its memory is given back when it ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        print(f"$ {shlex.join(words)}", flush=True)
        program, *options = words
        if program == "dropout-grpo" and threads == 1:
            try:
                with number_of_threads(threads):
                    return main(options)
            except Exception:
                traceback.print_exc()
                return 1
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        line = [sys.executable, *_PROGRAMS[program], *options]
        return subprocess.run(line, stdout=file, stderr=file, env=environment, check=False).returncode


def folder_of(words: Words) -> Path:
    """The run folder that a command line names."""
    option = "--run_dir" if "--run_dir" in words else "--out"
    return Path(words[words.index(option) + 1])


def log_file(words: Words) -> Path:
    """Where the output of a command goes."""
    folder = folder_of(words)
    return folder.with_name(f"{folder.name}.log")


def finished(words: Words) -> bool:
    """True if a command has its results: the last file that it writes."""
    return (folder_of(words) / ("test.json" if _writes_data(words) else RESULTS_FILE)).is_file()


def _writes_data(words: Words) -> bool:
    return words[:2] == ["dropout-grpo", "data"]


def _resumed(words: Words, extra: Words) -> list[str]:
    """A command line with the options of the runner; the folder of an interrupted one is resumed, or made again."""
    if _writes_data(words):
        shutil.rmtree(folder_of(words), ignore_errors=True)
    if not any(name in words for name in _RESUMABLE):
        return list(words)
    return [*words, *extra, *(["--resume", "true"] if folder_of(words).is_dir() else [])]


def _processes(words: Words) -> int:
    return int(words[words.index("--nproc_per_node") + 1]) if words[0] == "torchrun" else 1
