"""Rounds of commands: what is run, resumed and timed; ProsQA's and GSM8K's commands made small, and their tables."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.data.files import save_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from evidence.studies import rounds, study
from evidence.studies.plan import SETTINGS
from evidence.studies.plots import draw
from evidence.studies.recompute import Report, recompute
from evidence.studies.record import processors
from evidence.studies.rounds import execute, finished, name_of, read_rounds, run_round
from evidence.studies.tables import block, read_record
from helpers.tiny_gguf import write_gguf

ARMS = ("temperature", "masks-sampled", "masks-greedy", "masks-greedy-prompt")
GRPO = " --grpo.max_steps 2 --grpo.prompts_per_step 2 --grpo.num_generations 2 --grpo.eval_steps 1"


def settings(name: str) -> dict[str, Any]:
    """A settings file of this folder."""
    result: dict[str, Any] = yaml.safe_load(SETTINGS.with_name(f"{name}.yaml").read_text("utf-8"))
    return result


def run(content: dict[str, Any], folder: Path, *options: str) -> dict[str, Any]:
    """The record of a study with these settings, whose run folders, data and record are in a folder."""
    (folder / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    words = [
        "--settings",
        str(folder / "small.yaml"),
        "--data",
        str(folder),
        "--out",
        str(folder / "runs" / "x"),
        *options,
    ]
    study.main([*words, "--record", str(folder / content["record"]), "--workers", "1"])
    record: dict[str, Any] = json.loads((folder / content["record"]).read_text("utf-8"))
    return record


@pytest.mark.parametrize("name", ["prosqa", "gsm8k", "gsm8k-0.5b", "demo"])
def test_recipes_have_the_options_of_every_command(name: str) -> None:
    for lines in read_rounds(settings(name) | {"two_processes_if_alone": False}, "runs/x", "data", "model"):
        for words in lines.values():
            options = dict(pairwise(words))
            if "--recipe" in options:
                own = {"--recipe", "--checkpoint", "--files", "--latent_steps"}
                load_recipe(options["--recipe"], {n[2:]: options[n] for n in options if n[:2] == "--" and n not in own})


@pytest.mark.parametrize(("name", "most"), [("gsm8k", 2.0), ("gsm8k-0.5b", 12.0)])
def test_a_plan_has_the_hours_of_every_round(name: str, most: float, capsys: pytest.CaptureFixture[str]) -> None:
    content = settings(name)
    assert list(content["hours"]) == [name_of(lines) for lines in content["rounds"]]
    total = sum(content["hours"].values())
    assert total <= most
    study.main(["--settings", str(SETTINGS.with_name(f"{name}.yaml")), "--model", "any", "--plan"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2 + len(content["rounds"])].startswith(f"| together | {total:.2f} |")
    assert lines[-1].startswith(f"Planned for {content['machine']}. Here: ")


def test_a_plan_of_any_model_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        study.main(["--settings", str(SETTINGS.with_name("gsm8k-0.5b.yaml"))])
    assert "gsm8k-0.5b.yaml has no model of its own: give a hub name, folder or GGUF" in capsys.readouterr().err


def test_runs_on_another_processor_than_most_are_named(tmp_path: Path) -> None:
    for name, of in {"a": "amx_bf16", "b": "avx512_bf16", "c": "avx512_bf16"}.items():
        (tmp_path / name).mkdir()
        reasons = {"reasons": {"bf16": f"the processor has {of}"}}
        (tmp_path / name / "config.json").write_text(json.dumps(reasons), encoding="utf-8")
    folders = {name: tmp_path / name for name in ("a", "b", "c", "not-run")}
    assert processors(folders) == "the processor has avx512_bf16; in a the processor has amx_bf16"


def problems(count: int, first: int) -> list[Problem]:
    """Sums, numbered from ``first``."""
    made = []
    for i in range(count):
        a, b = first + i, 2 * first + i
        made.append(Problem(id=i, question=f"{a} pens and {b}?", steps=(f"<<{a}+{b}={a + b}>>",), answer=str(a + b)))
    return made


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The study after its first round, whose files are tiny ones; every command is one process."""
    folder = tmp_path_factory.mktemp("gsm8k")
    out = folder / "runs" / "x"
    write_gguf(folder / "tiny.gguf", "llama")
    for part in load_causal_lm(folder / "tiny.gguf"):
        part.save_pretrained(f"{out}-model")
    Path(f"{out}-data").mkdir()
    for i, name in enumerate(("train", "grpo", "valid", "short-test")):
        save_problems(Path(f"{out}-data", f"{name}.json"), problems(4 + i, 10 * (i + 1)))
    save_problems(folder / "gsm8k_test.json", problems(3, 50))
    small = settings("gsm8k") | {"two_processes_if_alone": False}
    del small["rounds"][0]
    small["files"]["tests"][0] = "{data}/gsm8k_test.json"
    small["short"]["sft"] += " --curriculum.batch_size 4"
    small["short"]["grpo"] += GRPO
    small["short"]["eval"] += " --evaluation.max_new_tokens 4 --evaluation.num_samples 2"
    return run(small, folder), folder


def test_what_is_recorded_of_gsm8k_and_the_tables(gsm8k: tuple[dict[str, Any], Path]) -> None:
    record, folder = gsm8k
    assert record["problems"] == {"train": 4, "grpo": 5, "valid": 6, "short-test": 7}
    assert [p["stage"] for p in record["curves"]["sft"]] == [0, 1, 2]
    assert [p["step"] for p in record["curves"]["masks-sampled"]] == [1, 2]
    measured = ["coconut", "masks-sampled", "temperature", "masks-greedy", "words"]
    assert [(name, [e["n"] for e in es]) for name, es in record["evaluations"].items()] == [
        (name, [3, 7]) for name in measured
    ]
    assert list(record["pairs"]) == settings("gsm8k")["pairs"]
    for names, comparisons in record["pairs"].items():
        a, b = (record["evaluations"][name] for name in names.split())
        for c, of_a, of_b in zip(comparisons, a, b, strict=True):
            assert c["pass@1"] == {"a": of_a["pass@1"]["value"], "b": of_b["pass@1"]["value"]}
    assert record["runs"]["masks-sampled"]["mixed_groups"][0] >= 0
    assert "--files '[DATA/gsm8k_test.json," in record["commands"]["eval-words"]  # the user's folder stays private
    assert (folder / "runs" / "x-sft.log").is_file()
    kept = {file.name for file in (folder / "runs" / "x-sft" / "checkpoints").iterdir()}
    assert kept == {"coconut", "sft-stage-0", "sft-stage-1", "sft-stage-2"}  # and none to resume from
    assert list(record["seconds"])[:2] == ["sft", "masks-sampled+temperature"]
    hours = {"sft": 7200.0, "masks-sampled+temperature": 1800.0, "eval-coconut": 360.0, "eval-words": 720.0}
    text = json.dumps({**record, "cores": 2, "seconds": hours})
    (folder / "gsm8k-smollm2.json").write_text(text, encoding="utf-8")
    passed = record["evaluations"]["words"][1]["pass@1"]["value"]
    assert f"| chain of thought in words | short-test.json | 7 | {100 * passed:.1f} |" in block(
        folder, "gsm8k-smollm2.measures"
    )
    spent = "curriculum 2.00; held masks, sampled answers and temperature alone 0.50; evaluation 0.30; 2.8 together."
    assert f"Hours on 2 cores: {spent}" in block(folder, "gsm8k-smollm2.notes")
    assert "| curriculum | stage 2, update 3 |" in block(folder, "gsm8k-smollm2.curve")
    assert block(folder, "gsm8k-smollm2.pairs").count("\n") == 1 + 2 * len(record["pairs"])
    assert f"$ {record['commands']['eval-masks-greedy']}" in block(folder, "gsm8k-smollm2.example")


def test_a_finished_study_runs_nothing_and_records_the_same(
    gsm8k: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, folder = gsm8k
    monkeypatch.setattr(rounds, "execute", lambda *_: pytest.fail("nothing is left to run"))
    again = run(yaml.safe_load((folder / "small.yaml").read_text("utf-8")), folder)
    assert {**again, "seconds": 0} == {**record, "seconds": 0}


def as_published(problem: Problem) -> str:
    """A line of GSM8K's files."""
    return json.dumps({"question": problem.question, "answer": f"{problem.steps[0]}\n#### {problem.answer}"})


@pytest.mark.slow
def test_the_plan_of_half_a_billion_from_files_and_a_model_to_tables(tmp_path: Path) -> None:
    """All its commands as they are, but for sizes: from GSM8K's files and a GGUF file."""
    write_gguf(tmp_path / "tiny.gguf", "qwen2")
    for name, count, first in (("train", 12, 10), ("test", 5, 60)):
        lines = map(as_published, problems(count, first))
        (tmp_path / f"gsm8k_{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    save_problems(tmp_path / "gsm8k_aug_valid.json", problems(2, 10))
    save_problems(tmp_path / "mawps_asdiva_train.coconut.json", problems(710, 1000))
    save_problems(tmp_path / "svamp.json", problems(4, 70))
    small = settings("gsm8k-0.5b") | {"two_processes_if_alone": False}
    for command in ("sft", "grpo", "pilot", "eval"):
        small["short"][command] += " --data.max_problems 5"
    small["short"]["sft"] += " --curriculum.batch_size 4"
    small["short"]["grpo"] += GRPO
    small["short"]["rate-pilot"] = small["short"]["rate-pilot"].replace("max_steps 25", "max_steps 2")
    for lines in small["rounds"]:
        for name, line in lines.items():  # the tiny model has 128 positions
            lines[name] = line.replace("max_new_tokens 100", "max_new_tokens 9")
    record = run(small, tmp_path, "--model", str(tmp_path / "tiny.gguf"))
    assert record["model"]["name"] == "tiny.gguf"
    assert record["commands"]["model"].startswith("python -m evidence.studies.gsm8k_weights tiny.gguf --out ")
    assert record["problems"]["short-test"] == 500
    assert [(name, [e["n"] for e in es]) for name, es in record["evaluations"].items()] == [
        ("words-before", [5]),
        *((arm, [5, 4, 5]) for arm in ("words", "coconut", *ARMS)),
    ]
    for arm in ARMS:
        for measured in record["evaluations"][arm]:
            assert measured["pass@1"]["value"] == pytest.approx(sum(measured["by_seed"]) / 2)
    assert {name for name in record["runs"] if name[-2:] in ("-1", "-2")} == {
        f"{arm}-{seed}" for arm in (*ARMS, "deterministic") for seed in (1, 2)
    }
    assert len(record["transformers"]["equal"]) == 4
    assert set(record["transformers"]["equal"].values()) == {5}
    assert [len(tests) for tests in record["pairs"].values()] == [2] * 6
    block_name, page = "gsm8k-qwen.pairs", tmp_path / "page.md"
    page.write_text(f"<!-- begin: {block_name} -->\n\n{block(tmp_path, block_name)}\n\n<!-- end: {block_name} -->\n")
    assert recompute([page], tmp_path) == Report(compared=2 * 12, differing=[])
    assert "| masks, p = 0.05 | valid.json | 5 |" in block(tmp_path, "gsm8k-qwen.pilots")
    notes = block(tmp_path, "gsm8k-qwen.notes")
    assert "20 of 20 answers of 4 checkpoints are the same" in notes
    assert "; held masks, sampled answers 0 and 0 %;" in notes
    assert "Seed 0, of GRPO 1 and 2, of its pilots 3;" in notes
    curve = block(tmp_path, "gsm8k-qwen.curve")
    assert "| temperature alone, seed 2 | step 2 |" in curve
    assert "| temperature alone, seed 2 | the end, on 5 problems |" in curve
    draw(tmp_path)
    assert "held masks, sampled answers" in (tmp_path / "gsm8k-qwen.svg").read_text("utf-8")


def test_every_demo_is_a_record_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that have run; without seconds if the machine was busy."""
    for seed in (1, 3):
        arm = {"pass@1": 0.5, "ci95": [0.4, 0.6]}
        results = {"seed": seed, "seconds": {"sft": 60.0 * seed}, **dict.fromkeys(("baseline", "dropout_grpo"), arm)}
        folder = tmp_path / "runs" / f"demo-seed{seed}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    words = ["--settings", str(SETTINGS.with_name("demo.yaml")), "--collect", "--out", str(tmp_path / "runs" / "demo")]
    study.main([*words, "--record", str(tmp_path / "demo-*.json"), "--no_seconds"])
    assert [demo["seed"] for demo in read_record(tmp_path, "demo")] == [1, 3]
    assert block(tmp_path, "demo.seconds") == "*Not measured on an idle machine yet.*"
    study.main([*words, "--record", str(tmp_path / "demo-*.json")])
    assert block(tmp_path, "demo.seconds").splitlines()[2:] == ["| 1 | 60 |", "| 3 | 180 |"]
    assert len(capsys.readouterr().out.splitlines()) == 4


Jobs = dict[str, tuple[list[str], Path, int]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """What would have been executed; all commands succeed."""
    jobs: Jobs = {}

    def statuses(new: Jobs, workers: int) -> list[tuple[str, int]]:
        jobs.update(new)
        return [(name, 0) for name in new]

    monkeypatch.setattr(rounds, "_statuses", statuses)
    return jobs


def line(command: str, folder: Path, *more: str) -> list[str]:
    return ["dropout-grpo", command, *more, "--out" if command == "data" else "--run_dir", str(folder)]


def test_what_has_results_is_left_and_what_has_begun_is_resumed(started: Jobs, tmp_path: Path) -> None:
    for name in ("done", "begun", "data", "cut"):
        (tmp_path / name).mkdir()
    (tmp_path / "done" / "results.json").touch()
    (tmp_path / "data" / "test.json").touch()  # the last file that `data` writes
    (tmp_path / "cut" / "train.json").touch()
    lines = {name: line("sft", tmp_path / name) for name in ("done", "begun", "new")}
    lines |= {name: line("data", tmp_path / name) for name in ("data", "cut")}
    run_round(lines, workers=2, threads=1, extra=["--bf16", "false"])
    assert {name: words for name, (words, _, _) in started.items()} == {
        "begun": [*lines["begun"], "--bf16", "false", "--resume", "true"],
        "new": [*lines["new"], "--bf16", "false"],
        "cut": lines["cut"],
    }
    assert started["new"][1] == tmp_path / "new.log"
    assert not (tmp_path / "cut").exists()  # `data` replaces no file


def test_a_command_that_is_alone_gets_two_processes_where_there_are_several_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = {
        "two_processes_if_alone": True,
        "rounds": [{"sft": "dropout-grpo sft"}, {"a": "dropout-grpo grpo", "b": "dropout-grpo grpo"}],
    }
    two = ["dropout-grpo", "grpo"]
    monkeypatch.setattr(rounds.os, "cpu_count", lambda: 2)
    torchrun = ["torchrun", "--nproc_per_node", "2", "-m", "dropout_grpo", "sft"]
    assert list(read_rounds(content, "x", "data")) == [{"sft": torchrun}, {"a": two, "b": two}]
    monkeypatch.setattr(rounds.os, "cpu_count", lambda: 1)
    assert next(read_rounds(content, "x", "data")) == {"sft": ["dropout-grpo", "sft"]}


def test_a_command_with_several_threads_has_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There they sleep while they wait for each other, which torch cannot learn later."""
    ran: list[tuple[list[str], str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        ran.append((command, env["OMP_NUM_THREADS"]))
        return SimpleNamespace(returncode=7)

    monkeypatch.setattr(subprocess, "run", run)
    assert execute(["dropout-grpo", "no-such-command"], tmp_path / "log", 1) == 2
    assert not ran
    assert execute(["dropout-grpo", "eval", "--x", "1"], tmp_path / "log", 2) == 7
    assert ran == [([sys.executable, "-m", "dropout_grpo", "eval", "--x", "1"], "2")]


def test_a_failed_command_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [f"--word_problems.{name}" for name in ("n_train", "n_grpo", "n_valid", "n_test")]
    small = [word for size in sizes for word in (size, "1")]
    lines = {
        "bad": line("sft", tmp_path / "bad", "--no_such_option", "1"),
        "good": line("data", tmp_path / "d", *small),
    }
    with pytest.raises(UserError, match=r"1 commands failed: bad; see .*bad.log"):
        run_round(lines, workers=1)
    assert "no_such_option" in (tmp_path / "bad.log").read_text(encoding="utf-8")
    assert finished(lines["good"])
    assert "good: done; 2 of 2" in capsys.readouterr().err


def test_a_study_that_is_stopped_says_how_to_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: a traceback."""

    def stop(options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "study_of_rounds", stop)
    with pytest.raises(SystemExit, match="130"):
        study.main(["--settings", str(SETTINGS.with_name("gsm8k.yaml"))])
    assert "stopped; the same command continues" in capsys.readouterr().err
