"""Recipes that are not options with values: one line names the file and the line, and nothing is built from them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.config.recipe_file import load_recipe, recipe_path
from dropout_grpo.errors import UserError

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + below] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def sft(*args: Any) -> None:
        raise AssertionError("it runs")

    monkeypatch.setattr("dropout_grpo.commands.sft.sft", sft)


def said(text: str | bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of ``sft`` with a recipe."""
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["sft", "--recipe", str(file)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\ngrpo: [1\n", "recipe.yaml, line 3: expected ',' or ']'"),
        ("seed: 1\n\tx", "recipe.yaml, line 2: found "),
        ("seed: 1\nseed: 2", "recipe.yaml, line 2: the key 'seed' is given twice; keep one."),
        ("seed: 1\n---\nseed: 2", "recipe.yaml, line 2: but found another document"),
        ("", "must be options with values"),
        ("- a", "must be options with values"),
        ("? [a]\n: 1", "recipe.yaml, line 1: found unhashable key"),
        ("\nrun_dir: !!python/object/apply:os.system [id]", "recipe.yaml, line 2: could not determine a constructor"),
        ("run_dir: !include /etc/passwd", "the tag '!include'"),
        (BOMB, "recipe.yaml, line 2: aliases are not allowed"),
        ("data: &a {columns: *a}", "recipe.yaml, line 1: aliases are not allowed"),
        ("seed: &a 3\ncurriculum: {batch_size: *a}", "recipe.yaml, line 2: aliases are not allowed"),
        ("data: " + "[" * 30, "recipe.yaml, line 1: more than 20 levels."),
        ("x: " + "1" * 100_001, "recipe.yaml, the text has more than 100000 characters."),
        (b"run_dir: \x00", "recipe.yaml, unacceptable character #x0000"),
        (b"\xff\xfe", "recipe.yaml cannot be read: 'utf-8' codec can't decode"),
        ('run_dir: "a\\0b"', "run_dir has the text 'a\\x00b': NUL and bytes that are not UTF-8 cannot be used."),
        ("run_dir: null", "run_dir must have a value: give it one, or leave it out for its default."),
        ("seed: 1:30", "recipe.yaml: seed 1:30: it must be a whole number"),
        ("grpo: {beta: '1:30'}", "recipe.yaml: grpo.beta 1:30: it must be a finite number"),
        ("seed: null", "seed must have a value"),
        ("smoke: 3", "smoke: 3 must be true or false."),
        ("seed: 9223372036854775808", "seed=9223372036854775808 must be at least 0 and below 2^63."),
        ("seed: " + "9" * 5000, "must be a whole number"),
        ("grpo: {learning_rate: .nan}", "grpo.learning_rate=nan must be above 0."),
        ("grpo: {max_grad_norm: -1}", "grpo.max_grad_norm=-1.0 must be above 0."),
        ("grpo: {adam_beta1: 1.0}", "grpo.adam_beta1=1.0 must be at least 0 and below 1."),
        ("curriculum: {weight_decay: -0.1}", "curriculum.weight_decay=-0.1 must be at least 0."),
        ("curriculum: {learning_rate: 1e400}", "curriculum.learning_rate=inf must be above 0."),
    ],
)
def test_what_is_refused(text: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(text, tmp_path, capsys)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        *(("data", "3"), ("data", "[]"), ("model", "[1]"), ("lora", "true"), ("curriculum", "7")),
        *(("exploration", "text"), ("grpo", "3"), ("evaluation", "1.5")),
    ],
)
def test_a_section_that_holds_no_options(
    section: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "must be options with values" in said(f"{section}: {value}\n", tmp_path, capsys)
    assert main(["sft", f"--{section}", value]) == 2
    assert f"--{section} {value}: it must be options with values" in capsys.readouterr().err


def test_a_section_within_a_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.columns must be options with values" in said("data: {columns: 3}", tmp_path, capsys)
    assert "data.prosqa has no options" in said("data: {prosqa: }", tmp_path, capsys)


def test_yaml_on_the_command_line_is_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("&a [*a]", "!!python/name:os.system"):
        assert main(["sft", "--reward_funcs", value]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 30), "no\0where"])
def test_a_path_that_cannot_be(name: str) -> None:
    with pytest.raises(UserError, match="is neither a file nor a shipped recipe"):
        recipe_path(name)


def test_a_source_without_weight_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a traceback, since the option may also be text."""
    (tmp_path / "r.yaml").write_text("data: {grpo: [{source: a.json, weight: 0}], valid: b.json}")
    assert main(["grpo", "--checkpoint", "c", "--recipe", str(tmp_path / "r.yaml")]) == 2
    assert "data.grpo.weight=0.0 must be above 0." in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^data\.grpo\.weight=0\.0 must be above 0\."):
        load_recipe(str(tmp_path / "r.yaml"))


def test_options_replace_those_of_the_recipe() -> None:
    """As on the command line: lists in brackets, null for nothing; what is not named stays."""
    given = {"seed": "3", "exploration.phases": "[prompt,latent]", "grpo.filter_groups": "[0.2,0.95]"}
    made, shipped = load_recipe("word-problems", given), load_recipe("word-problems")
    assert (made.seed, made.exploration.phases, made.grpo.filter_groups) == (3, ("prompt", "latent"), (0.2, 0.95))
    assert replace(made, seed=0, exploration=shipped.exploration, grpo=shipped.grpo) == shipped


@pytest.mark.parametrize("given", [{"grpo.max_step": "3"}, {"grpo.max_steps": "many"}])
def test_options_that_are_none_or_wrong_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match=next(iter(given)).replace(".", r"\.")):
        load_recipe("word-problems", given)
