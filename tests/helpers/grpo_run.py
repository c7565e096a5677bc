"""GRPO runs that take a fraction of a second, and a record of what they replay."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.rl import update as update_module
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, tiny_problems, weights_of

CONFIG = GRPOConfig(
    max_steps=3,
    prompts_per_step=3,
    num_generations=4,
    max_completion_length=3,
    learning_rate=1e-2,
    micro_batch_size=8,
    rollout_batch_size=8,
)
TIMES = ("rollout_time", "step_time", "seconds")


def digits(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """The share of digits among the words of an answer: of a random model, rarely the same all over a group."""
    return [sum(word.isdigit() for word in text.split()) / 3 for text in completions]


def constant(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """0.1; in floating point, the mean of three such rewards differs from 0.1."""
    return [0.1] * len(completions)


def alternating(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """0 and 1 in turn for any answers, so that every group is mixed."""
    return [float(i % 2) for i in range(len(completions))]


def trainer(tmp_path: Path, config: GRPOConfig = CONFIG, **options: Any) -> GRPOTrainer:
    settings = {
        "model": tiny_latent(),
        "exploration": SharedDropout(0.2),
        "reward_funcs": [digits],
        "seed": 2,
        **options,
    }
    run = RunFolder(tmp_path, "grpo", {}, resume=settings.pop("resume", False))
    problems = settings.pop("problems", tiny_problems(5))
    model, exploration, rewards = settings.pop("model"), settings.pop("exploration"), settings.pop("reward_funcs")
    return GRPOTrainer(model, rewards, config, problems, exploration=exploration, run=run, **settings)


def steps_of(tmp_path: Path) -> list[dict[str, float]]:
    """Logged steps without times."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(tmp_path)]


class Replays:
    """Wraps ``replay`` and ``surrogate`` of the update's module: the seeds replayed, and what was made of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seeds: list[list[list[int]]] = []  # of each call with gradient
        self.surrogates: list[dict[str, Any]] = []
        replay, surrogate = update_module.replay, update_module.surrogate

        def watched_replay(model: Any, prompts: Any, seeds: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if torch.is_grad_enabled():
                self.seeds.append(seeds.tolist())
            return replay(model, prompts, seeds, *args, **kwargs)

        def watched_surrogate(logprobs: Tensor, old: Tensor, mask: Tensor, advantages: Tensor, **kwargs: Any) -> Any:
            seen = {"logprobs": logprobs.detach(), "old": old, "mask": mask, "advantages": advantages, **kwargs}
            self.surrogates.append(seen)
            return surrogate(logprobs, old, mask, advantages, **kwargs)

        monkeypatch.setattr(update_module, "replay", watched_replay)
        monkeypatch.setattr(update_module, "surrogate", watched_surrogate)


def talkative() -> LatentModel:
    """A model whose answers end at different lengths."""
    return tiny_latent(seed=17)


class Stopped(Exception):
    """Simulates a power failure."""


def resumed_like_whole(
    folder: Path, config: GRPOConfig, options: Callable[[], dict[str, Any]] = dict
) -> list[dict[str, float]]:
    """Assert that a run stopped in step 3 and resumed is the run that never stopped; returns its metrics.

    Args:
        folder: for the run folders ``whole`` and ``parts``.
        config: with ``save_steps`` of 1 or 2.
        options: makes options of ``trainer``; called for each of the three trainers.
    """

    def stop(model: LatentModel) -> float:
        raise Stopped

    whole = trainer(folder / "whole", config, **options())
    whole.train()
    with pytest.raises(Stopped):
        trainer(folder / "parts", replace(config, eval_steps=3), evaluate=stop, **options()).train()
    resumed = trainer(folder / "parts", config, resume=True, **options())
    resumed.train(resume_from_checkpoint=True)
    assert steps_of(folder / "parts") == steps_of(folder / "whole")
    assert_same_weights(weights_of(resumed.model), weights_of(whole.model))
    return steps_of(folder / "whole")
