"""The shipped recipes: every key is an option, every value arrives, every default says where it comes from."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from dropout_grpo.cli.main import main
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.config.recipe_file import recipe_names, recipe_path
from dropout_grpo.runs.files import jsonable

NAMES = recipe_names()


def read(name: str) -> dict[str, Any]:
    """What the YAML file says, by dotted name."""
    return flat(yaml.safe_load(recipe_path(name).read_text(encoding="utf-8")))


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(index): part for index, part in enumerate(value)}
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Recipe]:
    """What the command line makes of a shipped recipe."""

    def parse(name: str) -> Recipe:
        given: list[Recipe] = []
        monkeypatch.setattr("dropout_grpo.commands.sft.sft", given.append)
        assert main(["sft", "--recipe", name]) == 0
        return given[0]

    return parse


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_file_is_in_the_recipe(name: str, parsed: Callable[[str], Recipe]) -> None:
    written, recipe = read(name), flat(jsonable(parsed(name)))
    assert {key: recipe[key] for key in written} == written  # a number written as text (1e-4) would differ here


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_where_it_comes_from(name: str) -> None:
    """By a comment behind it, or one above its section or the whole file that says "our choice"."""
    ours_all = ours = False
    unexplained = []
    for line in recipe_path(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            ours_all |= "Every value is our choice unless" in line
        elif re.match(r"\w+:", line):
            ours = False
        if re.match(r"\s+# our choice", line):
            ours = True
        if re.match(r"\s*\w+: [^#]", line) and "#" not in line and not (ours or ours_all or "run_dir" in line):
            unexplained.append(line)
    assert unexplained == []


def test_gsm8k_on_qwen_is_the_papers_own_run(parsed: Callable[[str], Recipe]) -> None:
    recipe = parsed("gsm8k-qwen")
    grpo, curriculum = recipe.grpo, recipe.curriculum
    assert recipe.model.name_or_path == "Qwen/Qwen2.5-1.5B"
    assert (curriculum.c_thought, curriculum.latent_steps, curriculum.epochs_per_stage) == (2, 6, 3)
    assert (recipe.exploration.kind, recipe.exploration.p) == ("shared_dropout", 0.1)
    assert recipe.exploration.sites == ("attention_weights",)
    assert (grpo.num_generations, grpo.prompts_per_step, grpo.max_steps, grpo.num_iterations) == (32, 16, 3000, 1)
    assert (grpo.max_prompt_length, grpo.max_completion_length) == (96, 32)
    assert (grpo.answers, grpo.temperature, grpo.replay, grpo.baseline) == ("greedy", 1.0, True, "group_mean")
    assert (grpo.loss_type, grpo.epsilon, grpo.epsilon_high, grpo.scale_rewards) == ("grpo", 0.1, 0.12, "none")
    assert (grpo.beta, grpo.beta_schedule, grpo.kl_estimator, grpo.kl_delta) == (5e-3, "learning_rate", "k3_huber", 5)
    assert grpo.filter_groups == (0.2, 0.95)
    assert (grpo.sync_ref_model, grpo.ref_model_sync_steps, grpo.ref_model_mixup_alpha) == (True, 500, 1.0)
    assert (grpo.learning_rate, grpo.lr_scheduler_type, grpo.min_lr_rate) == (1e-5, "cosine", 0.1)
    assert (grpo.warmup_steps, grpo.weight_decay, grpo.max_grad_norm) == (200, 0.01, 10.0)
    assert [path.rpartition(":")[2] for path in recipe.reward_funcs] == ["exact_answer", "format_penalty"]
    assert [source.weight for source in recipe.data.weighted("grpo")] == [0.8, 0.2]
