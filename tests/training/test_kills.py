"""Runs that are killed end with the same bits as runs that are not; see docs/reliability.md."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from helpers.kills import LAST, RECIPE, Killer, finish, outcome, start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def sft(folder: Path) -> Killer:
    (folder / "sft").mkdir()
    return Killer(["sft", "--recipe", str(folder / "recipe.yaml")], folder / "sft")


@pytest.fixture(scope="module")
def grpo(folder: Path, sft: Killer) -> Killer:
    (folder / "grpo").mkdir()
    coconut = sft.folder / "whole" / "checkpoints" / "coconut"
    return Killer(["grpo", "--recipe", str(folder / "recipe.yaml"), "--checkpoint", str(coconut)], folder / "grpo")


@pytest.mark.parametrize("command", [pytest.param("sft", marks=pytest.mark.slow), "grpo"])
def test_three_kills(command: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(command).kill(3).kills == 3


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_fifty_kills(command: str, request: pytest.FixtureRequest) -> None:
    tally = request.getfixturevalue(command).kill(50)
    print(f"{command}: {tally}")
    assert tally.while_saving >= 15


def _of_two(command: str, folder: Path, sft: Killer) -> Killer:
    place = folder / f"{command}-two"
    place.mkdir()
    argv = [command, "--recipe", str(folder / "recipe.yaml")]
    if command == "grpo":
        argv += ["--checkpoint", str(sft.folder / "whole" / "checkpoints" / "coconut")]
    return Killer(argv, place, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sft", "grpo"])
def test_ten_kills_of_one_of_two_processes(command: str, folder: Path, sft: Killer) -> None:
    """torchrun's agent ends the other one and names the rank; the run resumes."""
    tally = _of_two(command, folder, sft).kill(10)
    print(f"{command}, two processes: {tally}")
    assert tally.told > 0, "where a checkpoint is there to continue from"
    assert tally.slowest < 10, "the agent waits 5 seconds for a process before it kills it"


def test_all_of_two_processes_refuse_and_one_tells(folder: Path) -> None:
    log = folder / "refused.log"
    process = start(["sft", "--recipe", str(folder / "recipe.yaml"), "--data.train", "missing.json"], log, count=2)
    process.join()
    assert process.exitcode == 1, log.read_text()
    assert log.read_text().count("dropout-grpo: error: ") == 1


def test_a_difference_would_be_seen(sft: Killer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    finish([*sft.argv, "--seed", "1", "--run_dir", str(other)], tmp_path / "log")
    found = outcome(other)
    assert found["metrics"] != sft.expected["metrics"]
    assert found["checkpoints/coconut/model.safetensors"] != sft.expected["checkpoints/coconut/model.safetensors"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_continue(sft: Killer, number: int, status: int, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    argv = [*sft.argv, "--run_dir", str(run)]
    process = start(argv, log)
    while process.is_alive() and not (run / "metrics.jsonl").is_file():
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == status, log.read_text()
    assert "of sft; saved; continue with the same command and --resume true" in log.read_text().replace("\n", " ")
    finish([*argv, "--resume", "true"], log)
    assert outcome(run)["metrics"] == sft.expected["metrics"]


def _spin() -> None:
    while True:
        torch.ones(200, 200) @ torch.ones(200, 200)


@pytest.mark.slow
def test_the_same_command_beside_a_busy_process_gives_the_same_bits(sft: Killer, tmp_path: Path) -> None:
    """Nothing is chosen by a timing; here the program chooses precision and attention."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("bf16: false\n", ""))
    argv = ["sft", "--recipe", str(tmp_path / "recipe.yaml")]
    finish([*argv, "--run_dir", str(tmp_path / "idle")], tmp_path / "log")
    busy = [multiprocessing.get_context("forkserver").Process(target=_spin, daemon=True) for _ in range(2)]
    for process in busy:
        process.start()
    try:
        finish([*argv, "--run_dir", str(tmp_path / "busy")], tmp_path / "log")
    finally:
        for process in busy:
            process.kill()
            process.join()
    assert outcome(tmp_path / "idle") == outcome(tmp_path / "busy")
    record = json.loads((tmp_path / "idle" / "config.json").read_text())
    assert record["reasons"]["bf16"].startswith("the processor has ")
    assert record["config"]["attention"] == "products"
    assert LAST["sft"] == "coconut"
