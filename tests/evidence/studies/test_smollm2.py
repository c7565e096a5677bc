"""The commands of ``make gsm8k`` made small, what it records of them, and the tables made of that."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from dropout_grpo.cli.main import main
from dropout_grpo.data.files import save_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from evidence.studies import smollm2
from evidence.studies.results_page import block
from evidence.studies.side_by_side import finished
from helpers.tiny_gguf import write_gguf

GRPO = ["--grpo.prompts_per_step", "2", "--grpo.num_generations", "2", "--grpo.max_steps", "2"]
SMALL = {
    "sft": ["--curriculum.batch_size", "4"],
    "grpo": [*GRPO, "--grpo.eval_steps", "1"],
    "eval": ["--evaluation.max_new_tokens", "4"],
}
SAMPLED = ["--evaluation.num_samples", "2"]


def problems(count: int, first: int) -> list[Problem]:
    made = []
    for i in range(count):
        a, b = first + i, 2 * first + i
        question, steps = f"{a} pens and {b}?", (f"<<{a}+{b}={a + b}>>",)
        made.append(Problem(id=i, question=question, steps=steps, answer=str(a + b)))
    return made


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("smollm2")
    out = str(folder / "gsm8k")
    write_gguf(folder / "tiny.gguf", "llama")
    model, tokenizer = load_causal_lm(folder / "tiny.gguf")
    model.save_pretrained(f"{out}-model")
    tokenizer.save_pretrained(f"{out}-model")
    Path(f"{out}-data").mkdir()
    for i, name in enumerate(("train", "grpo", "valid", "short-test")):
        save_problems(Path(f"{out}-data", f"{name}.json"), problems(4 + i, 10 * (i + 1)))
    run(smollm2.curriculum(out), SMALL["sft"], out)
    run(smollm2.arms(out), SMALL["grpo"], out)
    for name, words in smollm2.evaluations(out, [f"{out}-data/short-test.json"]).items():
        run({name: words}, SMALL["eval"] + ([] if "words" in name else SAMPLED), out)
    return out


def run(commands: dict[str, list[str]], small: list[str], out: str) -> None:
    for name, words in commands.items():
        assert main([*words[1:], *small]) == 0, name
        assert finished(out, name)


def test_what_is_recorded_and_the_tables(out: str, tmp_path: Path) -> None:
    record: dict[str, Any] = {"commands": {"sft": "dropout-grpo sft"}, "cores": 2, **smollm2.measured(out)}
    assert record["problems"] == {"train": 4, "grpo": 5, "valid": 6, "short-test": 7}
    assert [p["stage"] for p in record["curves"]["sft"]] == [0, 1, 2]
    assert [p["step"] for p in record["curves"]["masks-sampled"]] == [1, 2]
    measured = ["coconut", "masks-sampled", "temperature", "masks-greedy", "words"]
    assert [(name, [e["n"] for e in es]) for name, es in record["evaluations"].items()] == [(m, [7]) for m in measured]
    for names, (c,) in record["pairs"].items():
        a, b = (record["evaluations"][name][0]["pass@1"]["value"] for name in names.split())
        assert c["pass@1"] == {"a": a, "b": b}
    record["seconds"] = {"sft": 7200.0, "masks-sampled+temperature": 1800.0, "eval-coconut": 360.0, "eval-words": 720.0}
    (tmp_path / "gsm8k-smollm2.json").write_text(json.dumps(record), encoding="utf-8")
    found = record["evaluations"]["words"][0]["pass@1"]["value"]
    assert f"| chain of thought in words | short-test.json | 7 | {100 * found:.1f} |" in block(
        tmp_path, "smollm2.measures"
    )
    hours = "curriculum 2.00, GRPO with sampled answers 0.50, evaluation 0.30; 2.8 together."
    assert f"Hours on 2 cores: {hours}" in block(tmp_path, "smollm2.notes")
    assert block(tmp_path, "smollm2.pairs").count("\n") == 1 + len(smollm2.PAIRS)
    assert "| curriculum | stage 2, update 3 |" in block(tmp_path, "smollm2.curve")
    assert "$ dropout-grpo sft" in block(tmp_path, "smollm2.commands")


def test_a_finished_study_runs_nothing_and_records_everything(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "prepare_weights", lambda folder: None)
    monkeypatch.setattr(smollm2, "RESULTS_FOLDER", tmp_path)
    (tmp_path / "mine").mkdir()
    smollm2.main(["--data", str(tmp_path / "mine"), "--out", out])
    text = (tmp_path / "gsm8k-smollm2.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert set(record["commands"]) >= {"sft", *smollm2.ARMS, "eval-words", "eval-coconut"}
    assert "--files '[DATA/gsm8k_test.jsonl]'" in record["commands"]["eval-coconut"]
    assert str(tmp_path) not in text  # where the user's folder is, stays private


def test_without_masks_greedy_answers_leave_the_weights_as_they_were(out: str) -> None:
    before = load_file(f"{out}-sft/checkpoints/coconut/model.safetensors")
    after = load_file(f"{out}-deterministic/checkpoints/grpo/model.safetensors")
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_every_arm_is_in_one_round() -> None:
    assert sorted(name for names in smollm2.ARM_ROUNDS for name in names) == sorted(smollm2.ARMS)


def test_a_command_that_is_alone_gets_two_processes_where_there_are_several_cores() -> None:
    alone, two = {"sft": ["dropout-grpo", "sft"]}, {"a": ["dropout-grpo", "grpo"], "b": ["dropout-grpo", "grpo"]}
    torchrun = {"sft": ["torchrun", "--nproc_per_node", "2", "-m", "dropout_grpo", "sft"]}
    assert smollm2.launched(alone, several=True) == torchrun
    assert smollm2.launched(alone, several=False) == alone
    assert smollm2.launched(two, several=True) == two


def test_without_a_record_the_page_says_so(tmp_path: Path) -> None:
    assert "make gsm8k" in block(tmp_path, "smollm2.measures")


def test_rounds_are_run_once_and_their_time_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ran = str(tmp_path / "gsm8k"), []
    monkeypatch.setattr(smollm2, "run_side_by_side", lambda commands, out: ran.append(sorted(commands)))
    commands = {"sft": ["dropout-grpo", "sft"], "other": ["dropout-grpo", "sft"]}
    Path(f"{out}-other").mkdir()
    Path(f"{out}-other", "results.json").touch()
    assert smollm2._run(commands, out) == {"sft": "dropout-grpo sft", "other": "dropout-grpo sft"}
    first = smollm2._spent(out)["sft+other"]
    smollm2._run(commands, out)
    assert ran == [["sft"], ["sft"]]
    assert smollm2._spent(out)["sft+other"] >= first
