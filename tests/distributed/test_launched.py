"""Commands in two processes, as torchrun starts them."""

import json
from pathlib import Path

from helpers.several import in_processes


def commands(folder: Path) -> list[int]:
    """The exit statuses of sft, grpo and eval, all small; output goes to a file for each process."""
    import contextlib
    import tempfile

    from dropout_grpo.cli.main import main
    from dropout_grpo.distributed.processes import rank

    tempfile.tempdir = str(folder)
    out, err = (folder / f"stdout-{rank()}").open("w"), (folder / f"stderr-{rank()}").open("w")
    with out, err, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return [
            main(["sft", "--smoke", "--fsdp", "true"]),
            main(["grpo", "--checkpoint", "none", "--smoke"]),
            main(["eval", "--checkpoint", "none", "--files", "[a.json]", "--smoke", "--json"]),
            main(["sft", "--recipe", "word-problems", "--data.train", "missing.json"]),
        ]


def track(folder: Path) -> None:
    """Logs three steps."""
    from dropout_grpo.runs.folder import RunFolder

    run = RunFolder(folder, "sft", {}, report_to=("tensorboard",))
    with run.tracking("sft", 0):
        for step in (1, 2, 3):
            run.log({"part": "sft", "step": step, "loss": 1.0})


def test_one_process_tells_the_trackers(tmp_path: Path) -> None:
    in_processes(2, track, tmp_path / "results", tmp_path / "run")
    assert len(list((tmp_path / "run" / "tensorboard").rglob("events*"))) == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_commands_end_together_and_one_process_writes(tmp_path: Path) -> None:
    assert in_processes(2, commands, tmp_path / "results", tmp_path) == [[0, 0, 0, 2]] * 2
    runs = [path.parent for path in tmp_path.glob("*/run/results.json")]
    assert len(runs) == 3
    for run in runs:
        assert (run / "report.html").is_file()
    said = (tmp_path / "stdout-0").read_text().splitlines()
    assert ["report: " in line for line in said] == [False, True, False, True, False]  # of sft and grpo, then --json
    assert json.loads(said[-1])["evaluations"][0]["n"] > 0
    assert (tmp_path / "stdout-1").read_text() == ""
    assert (tmp_path / "stderr-0").read_text().count("report: ") == 1  # of eval --json
    assert "report: " not in (tmp_path / "stderr-1").read_text()
