"""How the commands of a study are started."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evidence.studies import side_by_side

DROPOUT_GRPO = [sys.executable, "-m", "dropout_grpo.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "dropout_grpo"]


@pytest.mark.parametrize(
    ("commands", "programs", "threads"),
    [
        ({"a": ["dropout-grpo", "eval"]}, {"a": [*DROPOUT_GRPO, "eval"]}, "4"),
        (
            {"a": ["dropout-grpo", "eval"], "b": ["dropout-grpo", "sft"]},
            {"a": [*DROPOUT_GRPO, "eval"], "b": [*DROPOUT_GRPO, "sft"]},
            "2",
        ),
        ({"a": ["torchrun", *TORCHRUN[3:], "sft"]}, {"a": [*TORCHRUN, "sft"]}, "2"),
        (
            {"a": ["torchrun", *TORCHRUN[3:], "sft"], "b": ["dropout-grpo", "eval"]},
            {"a": [*TORCHRUN, "sft"], "b": [*DROPOUT_GRPO, "eval"]},
            "1",
        ),
    ],
)
def test_the_program_and_the_threads_of_each_process_on_four_cores(
    commands: dict[str, list[str]],
    programs: dict[str, list[str]],
    threads: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: dict[str, list[str]] = {}

    def start(program: list[str], *, stdout: Any, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert env["OMP_NUM_THREADS"] == threads
        started[Path(stdout.name).name] = program
        return subprocess.CompletedProcess(program, 0)

    monkeypatch.setattr(side_by_side.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(side_by_side.subprocess, "run", start)
    side_by_side.run_side_by_side(commands, str(tmp_path / "runs" / "x"))
    assert started == {f"x-{name}.log": program for name, program in programs.items()}
