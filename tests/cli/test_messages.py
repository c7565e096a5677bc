"""Messages for wrong options, from jsonargparse messages written by hand and from those that it really gives."""

from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.cli.messages import explain

KNOWN = ("run_dir", "seed", "files", "checkpoint", "grpo.max_steps", "exploration.p", "exploration.phases")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Parser key \"seed\":\n  Expected a <class 'int'>. Got value: abc",
            "--seed abc: it must be a whole number.",
        ),
        (
            "Parser key \"files\":\n  Expected a <class 'list'>. Got value: a.json",
            "--files a.json: it must be a list such as [a,b].",
        ),
        (
            "Parser key \"files\":\n  Expected a <class 'list'>. Got value: [hf:x@train[:20],a.json]",
            "--files [hf:x@train[:20],a.json]: it must be a list such as [a,b]; put an entry that contains "
            "brackets in quotes: ['a[:9]',b].",
        ),
        (
            "Parser key \"exploration.kind\":\n  Expected a typing.Literal['shared_dropout', 'none']. Got value: nome",
            "--exploration.kind nome: it must be one of shared_dropout, none (did you mean 'none'?).",
        ),
        (
            'Parser key "bf16":\n  Does not validate against any of the Union subtypes\n'
            "  Subtypes: [<class 'bool'>, <class 'NoneType'>]\n  Errors:\n    - Expected a <class 'bool'>\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: maybe",
            "--bf16 maybe: it must be true or false or null.",
        ),
        ("the following arguments are required: eval.checkpoint, ask.question", "missing: --checkpoint, question."),
        ("Unexpected config: ", "the recipe must be options with values, such as `seed: 1`; found ''."),
        (
            "argument command: invalid choice: 'evl' (choose from 'sft', 'grpo', 'eval')",
            "there is no command 'evl' (did you mean 'eval'?); there are sft, grpo, eval.",
        ),
        ("argument --recipe: expected one argument", "argument --recipe: expected one argument"),
        (
            "argument command: invalid choice: 'evl' (choose from sft, grpo, eval)",  # Python 3.12 and later
            "there is no command 'evl' (did you mean 'eval'?); there are sft, grpo, eval.",
        ),
        (
            "unrecognized arguments: --grpo.train_only [a]",
            "--grpo.train_only is no longer an option: train an adapter (lora.r), or give the trainer a model with "
            "requires_grad set in Python.",
        ),
        ('Parser key "data":\nUnable to load config', 'Parser key "data":\nUnable to load config'),
    ],
)
def test_what_is_told(said: str, told: str) -> None:
    assert explain(said, KNOWN) == told


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ("unrecognized arguments: --grpo.max_step 3", "grpo.max_steps"),
        ("unrecognized arguments: --max_steps 3", "grpo.max_steps"),  # by its end
        ("unrecognized arguments: --p 3", "exploration.p"),
        ("unrecognized arguments: --run-dir x", "run_dir"),
        ("Subcommand 'demo' does not accept option 'exploration.phase'", "exploration.phases"),
    ],
)
def test_the_nearest_option_is_told(said: str, near: str) -> None:
    assert explain(said, KNOWN) == f"{said} (did you mean {near!r}?)"


def test_an_option_like_no_other_gets_no_suggestion() -> None:
    assert explain("unrecognized arguments: --zzz 3", KNOWN) == "unrecognized arguments: --zzz 3"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sft --seed abc", "--seed abc: it must be a whole number."),
        ("sft --grpo.beta much", "--grpo.beta much: it must be a finite number."),
        ("sft --resume maybe", "--resume maybe: it must be true or false."),
        ("sft --bf16 maybe", "--bf16 maybe: it must be true or false or null."),
        ("sft --lora.r few", "--lora.r few: it must be a whole number or null."),
        ("grpo --checkpoint c --reward_funcs a:b", "--reward_funcs a:b: it must be a list such as [a,b]."),
        ("sft --exploration.kind non", "exploration.kind non: it must be one of shared_dropout, "),
        ("sft --exploration.kind non", "(did you mean 'none'?)"),
        ("ask", "missing: checkpoint."),
        ("eval", "missing: --checkpoint, --files."),
        ("evl", "there is no command 'evl' (did you mean 'eval'?); there are demo, data, sft, "),
        ("sft --grpo.max_step 3", "(did you mean 'grpo.max_steps'?)"),
        ("sft --recipe {recipe}", "(did you mean 'grpo.max_steps'?)"),
    ],
)
def test_the_messages_that_jsonargparse_gives_are_understood(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a new version of jsonargparse changes the wording of its errors."""
    (tmp_path / "recipe.yaml").write_text("grpo: {max_step: 3}\n")
    assert main(words.format(recipe=tmp_path / "recipe.yaml").split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "<class" not in error
