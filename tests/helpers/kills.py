"""Kills ``dropout-grpo sft`` and ``grpo`` with SIGKILL, resumes them, and compares with a run that was never killed.

A fork server imports torch once, so that a start costs a fraction of a second.
"""

import json
import multiprocessing
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

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
reward_funcs: ["dropout_grpo.commands.smoke:every_other"]
evaluation: {num_samples: 0, max_new_tokens: 4, batch_size: 8}
"""
LAST = {"sft": "coconut", "grpo": "grpo"}
_KILLS_A_RUN = 5


def start(argv: Sequence[str], log: Path, place: Mapping[str, str] | None = None) -> BaseProcess:
    """``dropout-grpo`` in a separate process, with environment variables."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["dropout_grpo.cli.main", "dropout_grpo.cli.dispatch"])
    process = server.Process(target=_run, args=(list(argv), str(log), dict(place or {})))
    process.start()
    return process


def start_all(argv: Sequence[str], log: Path, count: int) -> tuple[list[BaseProcess], Any]:
    """``dropout-grpo`` in ``count`` connected processes, and the store that connects them, as torchrun would."""
    if count == 1:
        return [start(argv, log)], None
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    place["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    ranks = [{**place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [start(argv, log, rank) for rank in ranks], store


def _run(argv: list[str], log: str, place: dict[str, str]) -> None:
    os.environ.update(place)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    import torch

    from dropout_grpo.cli.main import main

    torch.set_num_threads(1)
    os._exit(main(argv))


def finish(argv: Sequence[str], log: Path, count: int = 1) -> None:
    """Run to the end in ``count`` processes; the run must succeed."""
    processes, _store = start_all(argv, log, count)
    for process in processes:
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
    named: int = 0
    """Kills of one of several processes after which another one named the rank."""
    before_connecting: int = 0
    """Kills of one of several processes that had not yet told the others that it had started."""
    slowest: float = 0.0
    """Seconds until the other processes had ended."""


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
                before = len(log.read_text()) if log.is_file() else 0
                processes, store = start_all(argv, log, self.processes)
                rank = self._random.randrange(self.processes)
                victim = processes[rank]
                self._wait(victim, run)
                victim.kill()
                victim.join()
                saving = any((run / "checkpoints").glob("*.part"))
                killed = time.monotonic()
                for process in processes:
                    process.join(15)
                    process.kill()  # as torchrun's agent does
                    process.join()
                if victim.exitcode == 0:
                    break
                assert victim.exitcode == -9, log.read_text()[-2000:]
                if self.processes > 1:
                    survivors = [p for p in processes if p is not victim]
                    seconds = time.monotonic() - killed
                    self._check_survivors(survivors, seconds, log.read_text()[before:], store.check([f"pulse/{rank}"]))
                self.tally.kills += 1
                self.tally.while_saving += saving
            finish(argv, log, self.processes)
            found = outcome(run)
            assert found.keys() == self.expected.keys(), f"{run}: {found.keys() ^ self.expected.keys()}"
            for name, expected in self.expected.items():
                assert found[name] == expected, f"{run}: {name} differs from the run that was not killed"
        return self.tally

    def _check_survivors(self, survivors: Sequence[BaseProcess], seconds: float, said: str, known: bool) -> None:
        """They have ended with a message that names the killed one, or had nothing left to do with it.

        They wait longer for one that was killed before it told them that it had started (``known``).
        """
        assert all(process.exitcode in ((0, 1) if known else (-9,)) for process in survivors), said
        named = "lost rank" in said
        assert named or not known or all(process.exitcode == 0 for process in survivors), said
        self.tally.named += named
        if not known:
            self.tally.before_connecting += 1
            return
        self.tally.slowest = max(self.tally.slowest, seconds)

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
