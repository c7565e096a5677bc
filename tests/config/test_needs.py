"""An option that has no effect is told in one line; the default, and an option whose need is met, is not."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.cli.parser import commands
from dropout_grpo.commands.shared.problems import settings_without_effect
from dropout_grpo.config.data import DataConfig, TaskSettings
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.config.model import ModelConfig
from dropout_grpo.config.needs import WithoutEffect, without_effect
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.config.recipe_file import load_recipe, recipe_names
from dropout_grpo.rl.logging import Watch

UNUSED = {name: command.UNUSED for name, command in commands().items() if hasattr(command, "UNUSED")}
FIRST = "num_iterations above 1, since the first update on a batch has the ratio 1 everywhere"


@pytest.mark.parametrize(
    ("set_in_vain", "line", "met"),
    [
        ({"kl_estimator": "k3_huber"}, "grpo.kl_estimator=k3_huber: no effect; it needs beta above 0.", {"beta": 0.1}),
        (
            {"beta": 0.1, "kl_delta": 2.0},
            "grpo.kl_delta=2.0: no effect; it needs kl_estimator k3_huber or k3_clamp.",
            {"kl_estimator": "k3_clamp"},
        ),
        (
            {"beta": 0.1, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 1.0},
            "grpo.ref_model_sync_steps=3, grpo.ref_model_mixup_alpha=1.0: no effect; they need sync_ref_model true.",
            {"sync_ref_model": True},
        ),
        ({"epsilon_high": 0.1}, f"grpo.epsilon_high=0.1: no effect; it needs {FIRST}.", {"replay": False}),
        (
            {"top_p": 0.9, "answers": "greedy"},
            "grpo.top_p=0.9: no effect; it needs answers sampled.",
            {"answers": "sampled"},
        ),
    ],
)
def test_options_of_grpo(set_in_vain: dict, line: str, met: dict) -> None:
    with pytest.warns(WithoutEffect, match="no effect") as told:
        config = GRPOConfig(**set_in_vain)
    assert told[0].filename == __file__, "the line that made the config"
    assert list(without_effect(config, "grpo")) == [f"warning: {line}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(without_effect(replace(config, **met), "grpo")) == []


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (
            Recipe(exploration=ExplorationConfig(kind="none", p=0.3, phases=("prompt",))),
            [
                "exploration.p=0.3: no effect; it needs kind shared_dropout or per_step_dropout.",
                "exploration.phases=['prompt']: no effect; it needs a kind other than none.",
            ],
        ),
        (Recipe(exploration=ExplorationConfig(kind="my.py:Noise", p=0.3, sites=("mlp",))), []),
        (
            Recipe(exploration=ExplorationConfig(kind="none", sites=("mlp",))),
            ["exploration.sites=['mlp']: no effect; it needs a kind that multiplies activations."],
        ),
        (Recipe(fsdp=True), ["fsdp=True: no effect; it needs more than one process, as torchrun starts them."]),
        (
            Recipe(model=ModelConfig(name_or_path="gpt2", n_layer=2)),
            ["model.n_layer=2: no effect; it needs a model from scratch, and name_or_path names another one."],
        ),
        (
            Recipe(evaluation=EvaluationConfig(num_samples=0, temperature=0.5)),
            ["evaluation.temperature=0.5: no effect; it needs num_samples above 0."],
        ),
    ],
)
def test_options_of_a_recipe(recipe: Recipe, line: list[str]) -> None:
    assert list(without_effect(recipe)) == [f"warning: {text}" for text in line]
    assert list(without_effect(recipe, unused=("exploration", "fsdp", "model", "evaluation"))) == []


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("command", UNUSED)
def test_the_shipped_recipes_set_nothing_in_vain(name: str, command: str) -> None:
    """But the draft's clip range, which has no effect in its single update per batch, as the recipe says."""
    told = list(without_effect(load_recipe(name), unused=UNUSED[command]))
    clips = name == "gsm8k-qwen" and command in ("demo", "grpo")
    assert told == ([f"warning: grpo.epsilon=0.1, grpo.epsilon_high=0.12: no effect; they need {FIRST}."] * clips)


def test_settings_of_a_task_beside_files() -> None:
    tasks = TaskSettings()
    data = DataConfig(grpo="a.json", valid="a.json", word_problems=replace(tasks.word_problems, seed=3, n_valid=7))
    typed = ["data.grpo", "data.word_problems.seed", "data.word_problems.n_valid"]
    assert list(settings_without_effect(data, ("grpo", "valid"), typed)) == [
        "warning: data.word_problems.seed=3, data.word_problems.n_valid=7: no effect; all problems of this command "
        "come from files."
    ]
    assert list(settings_without_effect(replace(data, grpo=None), ("grpo", "valid"), typed)) == []
    assert list(settings_without_effect(data, (), typed)) == []
    assert list(settings_without_effect(replace(data, grpo=None, task="prosqa"), ("grpo",), typed)) == [
        "warning: data.word_problems.seed=3, data.word_problems.n_valid=7: no effect; data.task is prosqa."
    ]
    assert list(settings_without_effect(data, ("grpo", "valid"), ["data.grpo"])) == [], "the recipe's settings"


def test_settings_of_a_model_from_scratch_beside_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: told to have no effect, though the model's vocabulary is made from them."""
    words = ["sft", "--data.train", "none.json", "--data.valid", "none.json", "--run_dir", str(tmp_path / "run")]
    for more, told in (([], 0), (["--model.name_or_path", "none"], 1)):
        assert main([*words, "--data.word_problems.max_number", "50", *more]) == 2
        assert capsys.readouterr().err.count("data.word_problems.max_number=50: no effect") == told


def test_settings_that_data_ask_and_inspect_do_not_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [f"--word_problems.n_{split}=2" for split in ("train", "grpo", "valid", "test")]
    words = ["data", "--out", str(tmp_path / "a"), *few, "--prosqa.n_train=3", "--data.columns.question", "q"]
    assert main(words) == 0
    assert "warning: prosqa.n_train=3, data.columns.question=q: no effect with --task word_problems." in (
        capsys.readouterr().err
    )
    assert main(["data", "--vary", "none.json", "--out", str(tmp_path / "b"), "--word_problems.n_train=3"]) == 2
    assert "warning: word_problems.n_train=3: no effect with --vary." in capsys.readouterr().err
    assert main(["ask", "none", "how?", "--exploration.kind", "gaussian", "--exploration.p", "0.3"]) == 2
    assert "warning: exploration.p=0.3: no effect" in capsys.readouterr().err
    assert main(["inspect", "none", "--data.columns.question", "q"]) == 2
    assert "warning: data.columns.question=q: no effect without --problems." in capsys.readouterr().err


def test_an_option_of_another_command(capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line; a recipe holds the options of all commands."""
    assert (
        main(["grpo", "--checkpoint", "none", "--model.n_layer=2", "--data.test", "none.json", "--grpo.beta", "1"]) == 2
    )
    told = capsys.readouterr().err
    assert "warning: --model.n_layer: no effect; grpo does not use it." in told
    assert "warning: --data.test: no effect; grpo does not use it." in told
    assert told.count("no effect") == 2


def steps(watch: Watch, count: int, metrics: Callable[[int], dict]) -> list[str]:
    usual = {"reward": 0.5, "frac_reward_zero_std": 0.1, "completions/clipped_ratio": 0.0}
    return [line for step in range(count) for line in watch.after({**usual, **metrics(step)})]


def test_ten_skipped_steps() -> None:
    config = GRPOConfig(filter_groups=(2, 3))
    assert steps(Watch(config), 9, lambda step: {"groups/step_skipped": 1}) == []
    (line,) = steps(Watch(config), 50, lambda step: {"groups/step_skipped": 1})
    assert "the last 10 steps changed nothing" in line
    assert "[2, 3]; the last step's mean reward is 0.5" in line
    assert steps(Watch(config), 50, lambda step: {"groups/step_skipped": int(step % 10 != 9)}) == [], "not in a row"
    dynamic = replace(config, dynamic_sampling_max_gen_batches=2)
    none_mixed = {"groups/step_skipped": 1, "groups/mixed": 0}
    assert steps(Watch(dynamic), 50, lambda step: none_mixed) == [], "the range is not the reason"
    assert len(steps(Watch(dynamic), 50, lambda step: {**none_mixed, "groups/mixed": 1})) == 1


def test_a_constant_reward_and_answers_that_are_all_cut() -> None:
    watch = Watch(GRPOConfig(max_completion_length=5))
    (line,) = steps(watch, 50, lambda step: {"frac_reward_zero_std": 1.0, "reward": step % 2 / 2 + 0.25})
    assert "in the last 20 steps all rollouts of a question had the same reward, 0.75 on average" in line
    assert steps(watch, 50, lambda step: {"completions/clipped_ratio": 0.89}) == []
    (line,) = steps(watch, 50, lambda step: {"completions/clipped_ratio": 0.9})
    assert "nearly all answers of the last 20 steps were cut at max_completion_length=5" in line
    both = {"completions/clipped_ratio": 1.0, "frac_reward_zero_std": 1.0}
    assert steps(watch, 50, lambda step: both) == [], "told once"
    alone = GRPOConfig(num_generations=1, baseline="ema")  # groups of one, which are always alike
    assert steps(Watch(alone), 50, lambda step: {"frac_reward_zero_std": 1.0, "reward": step % 2}) == []
    assert len(steps(Watch(alone), 50, lambda step: {"frac_reward_zero_std": 1.0})) == 1
    assert steps(Watch(GRPOConfig()), 19, lambda step: {"completions/clipped_ratio": 1.0}) == []
