"""The README's programs run, its commands parse, and its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.cli.parser import build_parser
from dropout_grpo.commands.shared.problems import require_known_words, vocabulary
from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from helpers.by_path import ROOT
from helpers.tiny_latent import tiny_latent, tiny_problems

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CONSOLE = re.findall(r"^\$ (dropout-grpo .*)$", README.replace("\\\n", ""), re.MULTILINE)
COMMANDS = [*re.findall(r"`(dropout-grpo [^`]*)`", README), *CONSOLE]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks as if the demo had run in it, with a tiny model."""
    run = tmp_path / "runs" / "demo-seed0"
    for name in ("coconut", "dropout_grpo"):
        tiny_latent().save_pretrained(run / "checkpoints" / name)
    for name in ("grpo", "valid"):
        (run / "data").mkdir(exist_ok=True)
        save_problems(run / "data" / f"{name}.json", tiny_problems(4))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_programs_run(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(PROGRAMS) == 2
    for program in PROGRAMS:
        small = re.sub(r"(max_steps|prompts_per_step|num_generations)=\d+", r"\1=2", program)
        small = re.sub(r'"tom has [^"]*"', '"Ann has 3 ?"', small)  # in the tiny tokenizer's words
        exec(compile(small, "README.md", "exec"), {})
    assert "eval/pass@1" in capsys.readouterr().out
    assert (demo / "runs/mine/metrics.jsonl").is_file()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_only_options_that_exist(line: str) -> None:
    _, parsers = build_parser()
    name, *words = shlex.split(line.replace("...", ""))[1:]
    known = {option for action in parsers[name]._actions for option in action.option_strings}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


def test_the_recipes_tokenizer_knows_the_words_of_the_problems_that_are_written(tmp_path: Path) -> None:
    """Fault: numbers above the recipe's max_number are unknown words."""
    (line,) = [line for line in COMMANDS if line.startswith("dropout-grpo data")]
    few = [f"--word_problems.n_{split}=2" for split in ("train", "grpo", "valid")]
    out = ["--out", str(tmp_path), *few, "--word_problems.n_test=200"]
    assert main([*shlex.split(line)[1:], *out]) == 0
    data = load_recipe("word-problems").data
    require_known_words(word_tokenizer(vocabulary(data)), load_problems(tmp_path / "test.json"), "test")


def test_every_command_is_in_the_readme() -> None:
    assert {shlex.split(line)[1] for line in COMMANDS if len(line.split()) > 1} >= set(build_parser()[1])


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_files_to_read_are_at_most_ten_and_start_at_the_method() -> None:
    rows = re.findall(r"^\| \[(\S+)\]", README[README.index("## Files in reading order") :], re.MULTILINE)
    assert rows[0] == "exploration/dropout.py"
    assert len(rows) <= 10
