"""Runs the commands of a study, each in its own process, with one process per core at a time."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_RESULTS = ("results.json", "test.json")


def finished(out: str, name: str) -> bool:
    """True if the run folder of a command, ``OUT-NAME``, has its results."""
    return any(Path(f"{out}-{name}", file).is_file() for file in _RESULTS)


def _processes(words: Sequence[str]) -> int:
    return int(words[words.index("--nproc_per_node") + 1]) if words[0] == "torchrun" else 1


def run_side_by_side(commands: Mapping[str, Sequence[str]], out: str) -> None:
    """Run commands until all have ended; exit if one fails. Each writes its output to ``OUT-NAME.log``.

    Args:
        commands: the words of each command line by name; the first word is ``dropout-grpo``, or ``torchrun`` with
            ``--nproc_per_node``.
        out: prefix of the names of the run folders.
    """
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    cores = os.cpu_count() or 1
    processes = sum(map(_processes, commands.values()))
    threads = str(max(1, cores // max(1, processes)))  # two processes that share cores slow each other

    def run(name: str, words: Sequence[str]) -> int:
        print(f"$ {shlex.join(words)}", flush=True)
        module = "torch.distributed.run" if words[0] == "torchrun" else "dropout_grpo.cli.main"
        program = [sys.executable, "-m", module, *words[1:]]
        with Path(f"{out}-{name}.log").open("a", encoding="utf-8") as log:
            env = {**os.environ, "OMP_NUM_THREADS": threads}
            return subprocess.run(program, stdout=log, stderr=subprocess.STDOUT, env=env, check=False).returncode

    with ThreadPoolExecutor(cores) as pool:
        running = {name: pool.submit(run, name, words) for name, words in commands.items()}
    if failed := [name for name, process in running.items() if process.result()]:
        sys.exit(f"{', '.join(failed)} failed: see {out}-{failed[0]}.log")
