"""Commands in two processes, as torchrun starts them."""

import json
from pathlib import Path

from helpers.grpo_run import CONFIG
from helpers.several import in_processes
from helpers.tiny_latent import read_metrics


def commands(folder: Path) -> list[int]:
    """The exit statuses of sft, grpo and eval, all small; output goes to a file for each process."""
    import contextlib
    import tempfile

    from dropout_grpo.cli.main import main
    from dropout_grpo.distributed.processes import rank
    from dropout_grpo.report import page

    page.inline_svg = lambda figure, **options: ""  # figures take most of the time of runs as small as these
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


def track_and_run(folder: Path) -> list[int]:
    track(folder / "tracked")
    return commands(folder)


def test_commands_end_together_and_one_process_writes_and_tracks(tmp_path: Path) -> None:
    assert in_processes(2, track_and_run, tmp_path / "results", tmp_path) == [[0, 0, 0, 2]] * 2
    assert len(list((tmp_path / "tracked" / "tensorboard").rglob("events*"))) == 1
    assert len((tmp_path / "tracked" / "metrics.jsonl").read_text().splitlines()) == 3
    runs = [path.parent for path in tmp_path.glob("*/run/results.json")]
    assert len(runs) == 3
    for run in runs:
        assert (run / "report.html").is_file()
    said = (tmp_path / "stdout-0").read_text().splitlines()
    results, report, model = "pass@1", "report: ", "model: "
    begins = [results, report, model, results, report, model]  # of sft and grpo, then --json
    assert [word in line for word, line in zip(begins, said, strict=False)] == [True] * 6
    assert [Path(line.removeprefix(model)).name for line in said[2:6:3]] == ["coconut", "grpo"]
    assert all((Path(line.removeprefix(model)) / "model.safetensors").is_file() for line in said[2:6:3])
    assert json.loads(said[-1])["evaluations"][0]["n"] > 0
    assert (tmp_path / "stdout-1").read_text() == ""
    assert (tmp_path / "stderr-0").read_text().count("report: ") == 1  # of eval --json
    assert "report: " not in (tmp_path / "stderr-1").read_text()


def script(folder: Path) -> tuple[int, int, bool]:
    """What ``torchrun script.py`` does with the Python API: it connects nothing itself."""
    import dropout_grpo.training.progress as progress
    from dropout_grpo import GRPOTrainer
    from dropout_grpo.distributed import processes
    from helpers.grpo_run import CONFIG, digits
    from helpers.tiny_latent import tiny_latent, tiny_problems

    made = GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(6), run=folder)
    done = made.train().global_step
    return processes.size(), done, progress.console.quiet == (processes.rank() > 0)


def test_a_launched_script_joins_its_processes(tmp_path: Path) -> None:
    said = in_processes(2, script, tmp_path / "results", tmp_path / "run", connect=False)
    assert said == [(2, CONFIG.max_steps, True)] * 2
    assert len(read_metrics(tmp_path / "run")) == CONFIG.max_steps  # one run folder, one writer
