"""What a command reads: the problems of its sources or of a built-in task, in words that its model knows."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands import data as data_command
from dropout_grpo.commands.shared.models import fresh_model, starting_tokenizer
from dropout_grpo.commands.shared.problems import problems_of, require_readable, vocabulary
from dropout_grpo.config.data import DataConfig
from dropout_grpo.config.model import ModelConfig
from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.data.formats import Columns
from dropout_grpo.errors import UserError
from dropout_grpo.tasks.prosqa import ProsqaConfig
from dropout_grpo.tasks.word_problems import WordProblemsConfig
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from helpers.tiny_latent import assert_same_weights, tiny_latent, tiny_problems, weights_of

FEW = {"n_train": 6, "n_grpo": 4, "n_valid": 2, "n_test": 2}
PROSQA = DataConfig(task="prosqa", prosqa=ProsqaConfig(**FEW))
OPTIONS = [f"{name}={count}" for name, count in FEW.items()]


def options_of(task: str) -> list[str]:
    return [f"--{task}.{option}" for option in OPTIONS]


@pytest.mark.parametrize(
    "arguments",
    [options_of("word_problems"), ["--task", "prosqa", *options_of("prosqa")]],
    ids=["word_problems", "prosqa"],
)
def test_data_writes_the_splits_of_a_task(tmp_path: Path, arguments: list[str]) -> None:
    assert main(["data", "--out", str(tmp_path / "data"), *arguments]) == 0
    for split in ("train", "grpo", "valid", "test"):
        problems = load_problems(tmp_path / "data" / f"{split}.json", require_steps=split == "train")
        assert len(problems) == FEW[f"n_{split}"]
        assert all(("edges" in p.extra) == ("prosqa" in arguments) for p in problems)
    assert main(["data", "--out", str(tmp_path / "data"), *arguments]) == 2, "existing files are not replaced"


def test_a_full_disk_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "--out", str(tmp_path / "data"), *options_of("word_problems")]

    def save(path: Path, problems: Any) -> None:
        path.write_text("[")
        if "valid" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(data_command, "save_problems", save)
        assert main(words) == 2
    assert "No space left on device: free some space" in capfd.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    assert main(words) == 0


def test_what_is_not_given_is_made_by_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One split a file, one a dataset, both with their own names of columns, one made."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    row = {"problem": "q", "steps": ["s"], "answer": "1"}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_text(json.dumps(row))
    data = DataConfig(
        task="prosqa",
        prosqa=ProsqaConfig(**FEW),
        valid=f"hf:{tmp_path}/own@train",
        test=str(tmp_path / "own" / "train.jsonl"),
        columns=Columns(question="problem"),
    )
    problems = problems_of(data, ("train", "valid", "test"))
    assert [p.question for p in problems["valid"] + problems["test"]] == ["q", "q"]
    assert problems["train"] == problems_of(PROSQA, ("train",))["train"]
    assert list(problems) == ["train", "valid", "test"]


def test_steps_are_required_of_the_curriculums_problems_alone(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question": "q", "answer": "1"}]')
    path = str(tmp_path / "a.json")
    assert problems_of(DataConfig(grpo=path), ("grpo",))["grpo"][0].steps == ()
    with pytest.raises(UserError, match="'steps' is missing"):
        problems_of(DataConfig(train=path), ("train",))


SMALL = ModelConfig(n_embd=16, n_layer=1, n_head=2, n_positions=400)


def test_problems_that_the_built_in_task_makes_beside_files_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: with --data.train in place of --data.grpo, GRPO trained on word problems without a word."""
    save_problems(tmp_path / "valid.json", tiny_problems(2))
    problems_of(replace(small(DataConfig()), valid=str(tmp_path / "valid.json")), ("grpo", "valid"))
    assert capsys.readouterr().err.startswith("data.grpo: made by the built-in task word_problems, since no file")
    problems_of(small(DataConfig()), ("grpo", "valid"))
    assert capsys.readouterr().err == ""


def test_a_curriculum_goes_on_with_the_thoughts_of_a_latent_model(tmp_path: Path) -> None:
    """Fault: a trained projection began again from the seed, and questions in the chat format became Coconut's."""
    model = tiny_latent("llama", thought="projection", seed=3)
    model.prompt_format = "codi"
    model.save_pretrained(tmp_path / "model")
    config = ModelConfig(name_or_path=str(tmp_path / "model"))
    fresh = fresh_model(config, starting_tokenizer(config, []), 5, "projection", 0)
    assert_same_weights(weights_of(fresh), weights_of(model))
    assert (fresh.latent_steps, fresh.prompt_format) == (5, "codi")
    plain = fresh_model(config, starting_tokenizer(config, []), 5, "hidden_state", 0)  # another kind is a new one
    assert not list(plain.thought.parameters())


def test_one_file_for_training_and_test() -> None:
    for split in ("train", "test"):
        with pytest.raises(UserError, match=rf"data\.{split} \[a.json,b.json\]: it takes one file.* join the files"):
            DataConfig(**{split: "[a.json,b.json]"})


@pytest.mark.parametrize(
    "data", [PROSQA, DataConfig(word_problems=WordProblemsConfig(max_number=9, **FEW))], ids=["prosqa", "word_problems"]
)
def test_a_model_made_from_scratch_knows_the_words_of_its_task(data: DataConfig) -> None:
    model = fresh_model(SMALL, starting_tokenizer(SMALL, vocabulary(data)), 2, "hidden_state", 0)
    problems = problems_of(data, ("train", "valid"))
    require_readable(model.tokenizer, data, model.prompt_format, problems)
    ids, _ = model.encode([p.question for p in problems["train"]])
    assert model.tokenizer.unk_token_id not in ids
    other = DataConfig(task="word_problems" if data.task == "prosqa" else "prosqa", word_problems=WordProblemsConfig())
    with pytest.raises(UserError, match=r"word_problems valid|prosqa valid") as caught:
        require_readable(model.tokenizer, other, "coconut", {"valid": problems_of(small(other), ("valid",))["valid"]})
    assert "of 2 problems have words that the model's tokenizer does not know" in str(caught.value)
    assert "with the same settings (such as data.word_problems.max_number)" in str(caught.value)


def test_a_model_made_from_scratch_has_the_architecture_that_was_asked_for() -> None:
    for model_type in ("gpt2", "llama"):
        model = fresh_model(replace(SMALL, model_type=model_type), word_tokenizer(["a"]), 2, "hidden_state", 0)
        assert model.model.config.model_type == model_type
    with pytest.raises(UserError, match="model_type 'lama'"):
        fresh_model(replace(SMALL, model_type="lama"), word_tokenizer(["a"]), 2, "hidden_state", 0)


def small(data: DataConfig) -> DataConfig:
    return DataConfig(task=data.task, word_problems=WordProblemsConfig(**FEW), prosqa=ProsqaConfig(**FEW))


def test_sft_from_scratch_refuses_unknown_words_before_a_run_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record: dict[str, Any] = {"question": "tom has 7 kiwis .", "steps": ["<<7+6=13>>"], "answer": "13"}
    (tmp_path / "own.json").write_text(json.dumps([record]))
    file = str(tmp_path / "own.json")
    assert main(["sft", "--data.train", file, "--data.valid", file, "--run_dir", str(tmp_path / "run")]) == 2
    assert f"{file}: 1 of 1 problems have words" in capfd.readouterr().err.replace("\n", " ").replace("  ", " ")
    assert not (tmp_path / "run").exists()


def save(path: Path, *questions: str) -> str:
    record = {"steps": ["<<7+6=13>>"], "answer": "13"}
    path.write_text(json.dumps([{"question": question, **record} for question in questions]))
    return str(path)


def test_problems_that_were_seen_before_are_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train, valid = save(tmp_path / "train.json", "a b", "c"), save(tmp_path / "valid.json", "A  b", "d")
    test = save(tmp_path / "test.json", "c", "D", "a b", "e")
    problems_of(DataConfig(train=train, valid=valid, test=test), ("train", "valid", "test"))
    said = " ".join(capfd.readouterr().err.split())
    assert f"warning: 1 of 2 questions of data.valid {valid} are also in data.train {train}" in said
    assert f"warning: 2 of 4 questions of data.test {test} are also in data.train {train}" in said
    assert f"warning: 2 of 4 questions of data.test {test} are also in data.valid {valid}" in said
    problems_of(DataConfig(train=train, valid=save(tmp_path / "other.json", "d")), ("train", "valid"))
    assert capfd.readouterr().err == ""


def test_a_question_that_is_too_long_is_named_with_its_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Among the problems of the curriculum, of GRPO and of validation. All words are known."""
    short, long = "tom has 7 stamps . how many stamps does tom have now ?", "tom has 7 stamps . " * 40
    fine, over = save(tmp_path / "fine.json", short), save(tmp_path / "over.json", short, long)
    tiny = ["--model.n_embd", "16", "--model.n_layer", "1", "--model.n_head", "2", "--curriculum.batch_size", "1"]
    tiny += ["--curriculum.cot_epochs", "1", "--curriculum.epochs_per_stage", "1", "--curriculum.final_epochs", "1"]

    def refused(command: str, train: str, valid: str, *more: str) -> str:
        run = ["--run_dir", str(tmp_path / f"{command}-refused")]
        split = "train" if command == "sft" else "grpo"
        assert main([command, f"--data.{split}", train, "--data.valid", valid, *run, *tiny, *more]) == 2
        return " ".join(capfd.readouterr().err.split())

    assert f"data.train {over}: question 2 ('tom has 7" in refused("sft", over, fine)
    assert f"data.valid {over}: question 2 ('tom has 7" in refused("sft", fine, over)
    run = tmp_path / "run"
    assert main(["sft", "--data.train", fine, "--data.valid", fine, "--run_dir", str(run), *tiny]) == 0
    checkpoint = ("--checkpoint", str(run / "checkpoints" / "coconut"), "--grpo.prompts_per_step", "1")
    capfd.readouterr()
    assert f"data.grpo {over}: question 2 ('tom has 7" in refused("grpo", over, fine, *checkpoint)
