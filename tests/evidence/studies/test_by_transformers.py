"""Answers by transformers alone: the same as ours from latent checkpoints, and scored from a chat model's words."""

import json
from pathlib import Path

import pytest

from dropout_grpo.data.files import save_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.runs.read import read_measures, read_results, read_samples
from evidence.studies import by_transformers
from evidence.studies.by_transformers import marked, same, words
from helpers.tiny_gguf import write_gguf
from helpers.tiny_latent import tiny_latent
from helpers.tiny_lora import tiny_lora_on_raw

PROBLEMS = [Problem(id=i, question=f"Ann has {i} ? ?", steps=(), answer=str(i)) for i in range(3, 9)]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("48 / 2 = 24\n#### 72", "72"),
        ("It is $1,250.50.", "$1,250.50"),
        ("from 3 to -4, the end", "-4"),
        ("5-3=2", "2"),
    ],
)
def test_the_last_number_is_the_answer(said: str, answer: str) -> None:
    assert marked(said) == f"{said}\n### {answer}"
    assert marked("none at all") == "none at all"


def test_equal_answers_are_counted(tmp_path: Path) -> None:
    """Also where they are not equal: a checkpoint that says it thinks less than it did."""
    save_problems(tmp_path / "test.json", PROBLEMS)
    folders = [tmp_path / "good", tmp_path / "bad"]
    for folder in folders:
        tiny_latent("llama", latent_steps=3).save_pretrained(folder)
    generate = folders[1] / "custom_generate" / "generate.py"
    generate.write_text(generate.read_text("utf-8").replace('config["latent_steps"]', "0"), encoding="utf-8")
    same(list(map(str, folders)), str(tmp_path / "test.json"), tmp_path / "run", problems=5, max_new_tokens=6)
    results = read_results(tmp_path / "run")
    good, bad = (results["equal"][str(folder)] for folder in folders)
    assert (results["problems"], good) == (5, 5)
    assert bad < 5


def test_an_adapter_is_merged_first(tmp_path: Path) -> None:
    """A base without latent tokens, as a Coconut by ``sft --lora.r`` has."""
    save_problems(tmp_path / "test.json", PROBLEMS)
    adapter = tmp_path / "adapter"
    tiny_lora_on_raw(tmp_path, "llama").save_pretrained(adapter)
    same([str(adapter)], str(tmp_path / "test.json"), tmp_path / "run", max_new_tokens=6)
    assert read_results(tmp_path / "run")["equal"] == {str(adapter): 6}


def test_words_of_a_chat_model_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", "qwen2")
    save_problems(tmp_path / "test.json", PROBLEMS)
    asked: list[str] = []

    def generate(model: object, tokenizer: object, prompts: list[str], most: int) -> list[tuple[str, int]]:
        asked.extend(prompts)
        return [("it is 4", 3) if "has 5" in prompt else ("3 + 1, so #### 4.", most) for prompt in prompts]

    monkeypatch.setattr(by_transformers, "_BATCH", 4)
    words(str(tmp_path / "tiny.gguf"), str(tmp_path / "test.json"), tmp_path / "real", max_new_tokens=4)
    assert len(read_samples(tmp_path / "real")) == 6
    monkeypatch.setattr(by_transformers, "_generate", generate)
    words(str(tmp_path / "tiny.gguf"), str(tmp_path / "test.json"), tmp_path / "run", max_new_tokens=7)
    question = PROBLEMS[0].question
    assert asked[0] == f"<|im_start|>user\n{question}\n{by_transformers.INSTRUCTION}<|im_end|>\n"
    (measured,) = read_measures(tmp_path / "run")["evaluations"]
    assert (measured["n"], measured["pass@1"]["value"]) == (6, pytest.approx(1 / 6))  # all say 4
    assert measured["completions/clipped_ratio"] == pytest.approx(5 / 6)
    assert [line["plain_correct"] for line in read_samples(tmp_path / "run")] == [False, True, *[False] * 4]
    assert json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["versions"]
