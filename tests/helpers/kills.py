"""Kills ``dropout-grpo sft`` and ``grpo`` with SIGKILL, resumes them, and compares with a run that was never killed.

Several processes run under torchrun's agent; one of them is killed.

A fork server imports torch once, so that a start costs a fraction of a second.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

TIMES = ("seconds", "rollout_time", "step_time")
RECIPE = """
bf16: false
data:
  max_valid: 4
  word_problems: {n_train: 16, n_grpo: 8, n_valid: 4, n_test: 4, max_steps: 2}
model: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 96}
curriculum:
  c_thought: 1
  max_latent_stage: 1
  cot_epochs: 4
  epochs_per_stage: 3
  final_epochs: 3
  batch_size: 4
  warmup_steps: 2
  uniform_prob: 0.2
  reset_optimizer: false
  save_steps: 3
grpo:
  max_steps: 24
  prompts_per_step: 2
  num_generations: 4
  max_completion_length: 4
  micro_batch_size: 8
  save_steps: 2
reward_funcs: ["dropout_grpo.commands.shared.smoke:every_other"]
evaluation: {num_samples: 0, max_new_tokens: 4, batch_size: 8}
"""
LAST = {"sft": "coconut", "grpo": "grpo"}
_KILLS_A_RUN = 5


def start(argv: Sequence[str], log: Path, count: int = 1) -> BaseProcess:
    """``dropout-grpo`` in a separate process, or torchrun's agent with ``count`` processes of it."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["dropout_grpo.cli.main", "dropout_grpo.commands.shared.training", "torch.distributed.run"]
    )
    process = server.Process(target=_run if count == 1 else _launch, args=(list(argv), str(log), count))
    process.start()
    return process


def _launch(argv: list[str], log: str, count: int) -> None:
    """What ``torchrun --nproc_per_node COUNT`` does, but the processes are forked and need not import torch."""
    _write_to(log)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="kills",
        max_restarts=0,
        start_method="fork",
        shutdown_timeout=5,
    )
    elastic_launch(config, _run)(argv, log, count)


def _run(argv: list[str], log: str, count: int) -> None:
    _write_to(log)
    if count > 1:
        pid_file(Path(log), int(os.environ["RANK"])).write_text(str(os.getpid()))
    import torch

    from dropout_grpo.cli.main import main
    from dropout_grpo.report import page

    page.inline_svg = lambda figure, **options: ""  # a third of the time of these runs
    torch.set_num_threads(1)
    if status := main(argv):
        os._exit(status)


def _write_to(log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)


def pid_file(log: Path, rank: int) -> Path:
    """Where a process of several writes its process id when it starts."""
    return log.with_suffix(f".rank-{rank}")


def finish(argv: Sequence[str], log: Path, count: int = 1) -> None:
    """Run to the end in ``count`` processes; the run must succeed."""
    process = start(argv, log, count)
    process.join()
    assert process.exitcode == 0, f"{' '.join(argv)}: exit status {process.exitcode}\n{log.read_text()[-2000:]}"


def outcome(run: Path) -> dict[str, Any]:
    """All that must be equal in two equal runs: weights, optimiser, metrics and results, bit for bit, without times."""
    command = json.loads((run / "config.json").read_text())["command"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    found: dict[str, Any] = {
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in metrics],
        "results": [{k: v for k, v in e.items() if k not in TIMES} for e in results["evaluations"]],
    }
    for file in sorted((run / "checkpoints").rglob("*")):
        if file.suffix == ".safetensors":
            found[str(file.relative_to(run))] = file.read_bytes()
        elif file.name == "trainer_state.json":
            state = json.loads(file.read_text())
            del state["record"]["run"]  # its id, which is another one in every run
            found[str(file.relative_to(run))] = state
    assert any(name.startswith(f"checkpoints/{LAST[command]}/") for name in found)
    return found


@dataclass
class Tally:
    """The number of kills of each kind."""

    kills: int = 0
    while_saving: int = 0
    runs: int = 0
    told: int = 0
    """Kills of one of several processes after which another one has said how to continue."""
    slowest: float = 0.0
    """Seconds until the agent and the other processes had ended."""


@dataclass
class Killer:
    """Kills one command again and again.

    Args:
        argv: the command, without its run folder.
        folder: for run folders and logs.
        seed: of the moments.
        processes: number of processes of the command; one of them, each time another, is killed.
    """

    argv: Sequence[str]
    folder: Path
    seed: int = 0
    processes: int = 1
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        finish([*self.argv, "--run_dir", str(self.folder / "whole")], self.folder / "whole.log", self.processes)
        self.expected = outcome(self.folder / "whole")

    def kill(self, kills: int) -> Tally:
        """Kill the given number of times, every other time while a checkpoint is written; compare all finished runs."""
        while self.tally.kills < kills:
            self.tally.runs += 1
            run = self.folder / f"killed-{self.tally.runs}"
            log = run.with_suffix(".log")
            argv = [*self.argv, "--run_dir", str(run), "--resume", "true"]
            for _ in range(min(_KILLS_A_RUN, kills - self.tally.kills)):
                if not self._kill_once(argv, run, log):
                    break
            finish(argv, log, self.processes)
            result = outcome(run)
            assert result.keys() == self.expected.keys(), f"{run}: {result.keys() ^ self.expected.keys()}"
            for name, expected in self.expected.items():
                assert result[name] == expected, f"{run}: {name} differs from the run that was not killed"
        return self.tally

    def _kill_once(self, argv: Sequence[str], run: Path, log: Path) -> bool:
        """Start the command and kill one process; False if the command had finished before."""
        before = len(log.read_text()) if log.is_file() else 0
        rank = self._random.randrange(self.processes)
        pid = pid_file(log, rank)
        pid.unlink(missing_ok=True)
        process = start(argv, log, self.processes)
        while self.processes > 1 and process.is_alive() and not pid.is_file():
            time.sleep(0.001)
        self._wait(process, run)
        victim = process.pid if self.processes == 1 else int(pid.read_text())
        assert victim is not None
        with contextlib.suppress(ProcessLookupError):  # it had finished
            os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        saving = any((run / "checkpoints").glob("*.part"))
        process.join(60)
        assert process.exitcode is not None, "torchrun's agent hangs"
        if process.exitcode == 0:
            return False
        said = log.read_text()[before:]
        assert process.exitcode == (-signal.SIGKILL if self.processes == 1 else 1), said[-2000:]
        if self.processes > 1:
            self._check_agent(rank, said)
            self.tally.told += "--resume true" in said
            self.tally.slowest = max(self.tally.slowest, time.monotonic() - killed)
        self.tally.kills += 1
        self.tally.while_saving += saving
        return True

    def _check_agent(self, rank: int, said: str) -> None:
        """Its report names the rank that was killed."""
        cause = said[said.index("Root Cause") :]
        assert re.search(rf"rank +: {rank} ", cause), said
        assert re.search(r"exitcode +: -9 ", cause), said

    def _wait(self, process: BaseProcess, run: Path) -> None:
        """Until a random step, and for every other kill until the next save after it."""
        saving = self.tally.while_saving * 2 <= self.tally.kills
        done, total = _lines(run), len(self.expected["metrics"])
        target = done + self._random.randrange(max(1, (total - done) * 2 // 3))
        while process.is_alive() and _lines(run) < target:
            time.sleep(0.001)
        while saving and process.is_alive() and not any((run / "checkpoints").glob("*.part")):
            time.sleep(0.0002)
        time.sleep(self._random.uniform(0, 0.01))


def _lines(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0
