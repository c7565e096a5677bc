"""Whole GRPO runs: the same however they are cut, and in the right direction."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.data.mixture import Mixture
from dropout_grpo.exploration import NoExploration, SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl import trainer as trainer_module
from helpers.grpo_run import CONFIG, constant, digits, resumed_like_whole, steps_of, trainer
from helpers.tiny_latent import (
    assert_same_weights,
    read_metrics,
    tiny_latent,
    tiny_problems,
    weights_of,
)


def test_a_problem_that_occurs_twice_in_a_step_gets_new_masks(tmp_path: Path) -> None:
    """A step of 4 over 5 problems spans two passes, and some of them have the same problem on both sides."""
    made = trainer(tmp_path, replace(CONFIG, prompts_per_step=4))
    twice = [step for step in range(1, 30) if len(set(made.sampler.indices(step))) < 4]
    assert len(twice) > 3
    for step in twice:
        groups, _ = made.sampler.sample(step)
        assert groups.seeds.unique().numel() == 16
    dynamic = replace(CONFIG, prompts_per_step=2, dynamic_sampling_max_gen_batches=2)
    made = trainer(tmp_path / "dynamic", dynamic, reward_funcs=[constant])  # both batches of every step are sampled
    assert all(made.sampler.sample(step)[0].seeds.unique().numel() == 16 for step in twice)


def test_seeds_of_steps_without_a_repeated_problem_are_those_of_the_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, replace(CONFIG, prompts_per_step=4))
    for step in range(1, 30):
        places = made.sampler.indices(step)
        if len(set(places)) == 4:
            assert torch.equal(made.sampler.sample(step)[0].seeds, rollout_seeds(2, step, torch.tensor(places), 4))


LATENT = SharedDropout(0.2)
LONGER = replace(CONFIG, max_steps=4, num_iterations=2, warmup_steps=1, weight_decay=0.01, save_steps=2)


def test_the_same_run_twice_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    runs: list[tuple[list[dict[str, float]], dict[str, Tensor]]] = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = tiny_latent()
        torch.manual_seed(len(runs))  # nothing of ours reads the global generator
        trainer(tmp_path / name, LONGER, model=model, seed=seed).train()
        runs.append((steps_of(tmp_path / name), weights_of(model)))
    assert runs[0][0] == runs[1][0]
    assert_same_weights(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def hard_and_easy(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """The share of digits for even problems; 0 for odd ones, whose groups are dropped."""
    pairs = zip(prompts, digits(prompts, completions), strict=True)
    return [0.0 if int(prompt.split()[2]) % 2 else value for prompt, value in pairs]


def every_other_step(completions: Sequence[str], trainer_state: Any, **columns: Any) -> list[float | None]:
    """The same for all in steps 1, 3, ..., which a filter skips; 0 and 1 in turn in the others."""
    return [float(i % 2 * (trainer_state.global_step % 2)) for i in range(len(completions))]


MIXED = tiny_problems(16)
RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "filter": ({"filter_groups": (0.1, 0.9), "beta": 0.1, "max_steps": 8}, {"reward_funcs": [every_other_step]}),
    "dynamic": ({"prompts_per_step": 2, "dynamic_sampling_max_gen_batches": 2, "beta": 0.02}, {}),
    "reference": ({"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "max_steps": 6}, {}),
    "rarely": ({"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 3, "max_steps": 6}, {}),
    "mixture": ({"prompts_per_step": 4}, {"problems": Mixture([MIXED[:10], MIXED[10:]], [3, 1])}),
    "reinforce": ({"num_generations": 1, "baseline": "ema", "ema_decay": 0.5}, {"reward_funcs": [digits]}),
}


@pytest.mark.parametrize("variant", RESUMED)
def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path: Path, variant: str) -> None:
    changes, options = RESUMED[variant]
    options = {"reward_funcs": [hard_and_easy], **options}
    lines = resumed_like_whole(tmp_path, replace(LONGER, **changes), lambda: options)
    differ = {"filter": "groups/step_skipped", "dynamic": "groups/sampled", "reinforce": "baseline"}.get(variant)
    assert len({line[differ or "reward"] for line in lines}) > 1, "all steps are alike"


def bandit_reward(tmp_path: Path, exploration: Any) -> float:
    """Reward of the last five of 25 steps, less that of the first five."""
    config = replace(CONFIG, max_steps=25, prompts_per_step=4, num_generations=8, learning_rate=1e-2)
    trainer(tmp_path, config, exploration=exploration, problems=tiny_problems(4)).train()
    rewards = [line["reward"] for line in read_metrics(tmp_path)]
    return (sum(rewards[-5:]) - sum(rewards[:5])) / 5


@pytest.mark.parametrize("exploration", [NoExploration(), LATENT])
def test_reward_rises(tmp_path: Path, exploration: Any) -> None:
    assert bandit_reward(tmp_path, exploration) > 0.3


def test_reward_falls_with_the_sign_of_the_advantages_flipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = trainer_module.group_advantages
    monkeypatch.setattr(trainer_module, "group_advantages", lambda *args, **kwargs: -right(*args, **kwargs))
    assert bandit_reward(tmp_path, LATENT) < -0.1
