"""Messages for wrong options: they name the option, its value, and what it must be."""

from pathlib import Path

import pytest

from dropout_grpo.cli.main import main


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
        ("sft --exploration.sites mlp", "--exploration.sites mlp: it must be a list such as [a,b]."),
        ("sft --report_to [x]", "--report_to x: it must be one of tensorboard, wandb, trackio."),
        (
            "sft --grpo.answers greed",
            "--grpo.answers greed: it must be one of sampled, greedy (did you mean 'greedy'?).",
        ),
        ("sft --seed 1:30", "--seed 1:30: it must be a whole number."),
        ("sft --grpo.beta 1:30", "--grpo.beta 1:30: it must be a finite number."),
        ("ask", "missing: checkpoint."),
        ("eval", "missing: --checkpoint, --files."),
        ("evl", "there is no command 'evl' (did you mean 'eval'?); there are demo, data, "),
        ("sft --recipe", "argument --recipe: expected one argument"),
        ("sft --grpo.max_step 3", "(did you mean 'grpo.max_steps'?)"),
        ("sft --report_to x", "--report_to x: it must be a list such as [tensorboard,wandb,trackio]."),
        ("sft --recipe {recipe} --grpo.beta many", "error: --grpo.beta many: it must be a finite number."),
        ("sft --grpo.lr 1", "(did you mean 'grpo.learning_rate'?)"),
        ("sft --grpo.zzz 1", "unrecognized arguments: --grpo.zzz 1\n"),
        ("sft --recipe {wrong}", "wrong.yaml: grpo.beta much: it must be a finite number."),
        ("sft --recipe {recipe}", "recipe.yaml: there is no option 'grpo.max_step' (did"),
        ("sft --recipe {recipe}", "(did you mean 'grpo.max_steps'?)"),
        ("sft --grpo.train_only [a]", "--grpo.train_only is no longer an option: train an adapter (lora.r)"),
        ("sft --max_steps 3", "(did you mean 'grpo.max_steps'?)"),  # by its end
        ("sft --p 3", "(did you mean 'exploration.p'?)"),
        ("sft --run-dir x", "(did you mean 'run_dir'?)"),
        ("sft --exploration.phase [latent]", "(did you mean 'exploration.phases'?)"),
    ],
)
def test_the_messages_that_jsonargparse_gives_are_understood(
    words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if a new version of jsonargparse changes the wording of its errors."""
    (tmp_path / "recipe.yaml").write_text("grpo: {max_step: 3}\n")
    (tmp_path / "wrong.yaml").write_text("grpo: {beta: much}\n")
    assert main(words.format(recipe=tmp_path / "recipe.yaml", wrong=tmp_path / "wrong.yaml").split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "<class" not in error
    assert error.count("dropout-grpo: error: ") == 1


def test_an_option_like_no_other_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--zzz", "3"]) == 2
    assert "--zzz 3\n" in capsys.readouterr().err
