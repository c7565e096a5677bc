"""A second process: waiting for it, its failures, its end with its parent; and a demo that trains both arms at once."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dropout_grpo.cli.main import main
from dropout_grpo.commands.demo import second_process
from dropout_grpo.errors import UserError
from dropout_grpo.training.interrupt import Interrupted, finishing_updates
from helpers.tiny_recipe import TINY


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


def write(path: Path) -> None:
    path.write_text(f"{os.getpid()} {torch.get_num_threads()}")


def fail() -> None:
    raise UserError("no luck.")


def sleep(path: Path) -> None:
    write(path)
    time.sleep(600)


def update(begun: Path, saved: Path) -> None:
    """An update that is finished and saved when it is asked to stop."""
    with finishing_updates() as asked:
        write(begun)
        while asked() is None:
            time.sleep(0.01)
    saved.write_text("saved")
    raise Interrupted(signal.SIGTERM, "; saved")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_failure_is_told_with_its_last_words(tmp_path: Path) -> None:
    told = r"log: .*UserError: no luck\. Continue with the same command and --resume true"
    with second_process(tmp_path / "log", fail) as wait, pytest.raises(UserError, match=told):
        wait()
    assert torch.get_num_threads() == 3


def test_a_block_left_early_lets_the_process_save_its_update(tmp_path: Path) -> None:
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    with second_process(tmp_path / "log", update, begun, saved):
        while not begun.exists() or len(begun.read_text().split()) < 2:
            time.sleep(0.05)
        os.kill(int(begun.read_text().split()[0]), signal.SIGINT)  # as a terminal sends it to both processes
    assert saved.read_text() == "saved"
    assert (tmp_path / "log").read_text() == "stopping after this update; a second signal stops at once\n" + (
        "stopped by SIGTERM; saved\n"
    )


def test_a_block_left_early_ends_the_process(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupted() -> None:
        with second_process(tmp_path / "log", sleep, out):
            while not out.exists() or len(out.read_text().split()) < 2:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gone(int(out.read_text().split()[0]))


@pytest.mark.slow
def test_the_demo_is_the_same_with_its_arms_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = tmp_path / "run"
    options = ["--recipe", str(tmp_path / "tiny.yaml"), "--run_dir", str(run), "--json"]
    options += ["--reward_funcs", "[dropout_grpo.commands.shared.smoke:every_other]"]  # something to learn
    options += ["--exploration.p", "0.4", "--exploration.phases", "[latent,answer]"]

    def demo(*more: str) -> tuple[dict[str, object], list[dict[str, object]]]:
        assert main(["demo", *options, *more]) == 0
        results = json.loads(capsys.readouterr().out)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        clocks = ("seconds", "rollout_time", "step_time", "hardware")
        records = [{k: v for k, v in line.items() if k not in clocks} for line in lines if line["part"] != "sft"]
        assert all(line["grad_norm"] > 0 for line in records)
        return {k: v for k, v in results.items() if k not in clocks}, sorted(records, key=lambda r: str(r["part"]))

    torch.set_num_threads(2)  # one for each arm
    apart = demo()
    assert "temperature-only 2/2" in (run / "temperature_only.log").read_text()
    for part in ("dropout_grpo", "temperature_only"):
        shutil.rmtree(run / "checkpoints" / part)
        for saved in (run / "checkpoints").glob(f"{part}-step-*"):
            shutil.rmtree(saved)
    torch.set_num_threads(1)
    assert demo("--resume", "true") == apart
    shutil.rmtree(run / "checkpoints" / "coconut")  # as if it had been killed after the curriculum's last step
    assert demo("--resume", "true") == apart

    # Measured again as the demo advises, it is the same checkpoint under the same kind of masks.
    checkpoint, test = run / "checkpoints" / "dropout_grpo", run / "data" / "test.json"
    again = ["--checkpoint", str(checkpoint), "--files", f"[{test}]", "--run_dir", str(tmp_path / "eval"), "--json"]
    assert main(["eval", *again, "--bf16", "false", "--evaluation.num_samples", "2"]) == 0
    said = capsys.readouterr()
    (measured,) = json.loads(said.out)["evaluations"]
    theirs = apart[0]["dropout_grpo"]
    assert isinstance(theirs, dict)
    times = ("file", "seconds", "problems_per_second")
    assert {k: v for k, v in measured.items() if k not in times} == {k: v for k, v in theirs.items() if k not in times}
    assert "masks: shared_dropout, p 0.4; sites residual; phases answer, latent (as the checkpoint was trained)" in (
        " ".join(said.err.split())
    )
