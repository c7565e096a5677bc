"""What an exploration of a user may do beyond factors: hooks of its own, and following the training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import EvaluationConfig, answer_problems
from dropout_grpo.exploration import FollowsTraining, SiteMap
from dropout_grpo.exploration.seeds import stream, uniform
from dropout_grpo.latent.rollout import replay, roll_out
from dropout_grpo.rl.reference import ReferencePolicy
from helpers.engine import ANSWERS, SEEDS, difference, latent_model, prompts
from helpers.grpo_run import CONFIG, resumed_like_whole
from helpers.tiny_latent import tiny_latent, tiny_problems


@dataclass(frozen=True)
class Shift:
    """Adds a number to the attention's output in the first layer, in the latent phase: the same for all features."""

    sizes: Tensor  # [B]

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        return {}

    @contextmanager
    def hooks(self, sites: SiteMap, phase: str, step: int) -> Iterator[None]:
        module = sites.instances(("attention",))[0].module
        if phase != "latent" or module is None:
            yield
            return
        handle = module.register_forward_hook(lambda module, args, output: output + self.sizes[:, None, None])
        try:
            yield
        finally:
            handle.remove()

    def select(self, rows: Tensor) -> "Shift":
        return Shift(self.sizes[rows])


class Shifted(FollowsTraining):
    """Shifts as large as a weight of the policy was before the last odd step."""

    phases = frozenset({"latent"})

    def __init__(self) -> None:
        self.scale = torch.tensor(1.0)
        self.calls: list[str | int] = []

    @contextmanager
    def training(self, model: nn.Module, sites: SiteMap) -> Iterator[None]:
        self.calls.append("begin")
        try:
            yield
        finally:
            self.calls.append("end")

    def begin_step(self, step: int, sites: SiteMap) -> None:
        self.calls.append(step)
        if step % 2 == 1:
            self.scale = 50 * next(sites.layers[0].parameters()).detach().flatten()[0].clone()

    def tensors(self, sites: SiteMap) -> dict[str, Tensor]:
        return {"scale": self.scale}

    def load(self, tensors: Mapping[str, Tensor], sites: SiteMap) -> None:
        self.scale = tensors.get("scale", self.scale)

    def noise(self, seeds: Tensor, sites: SiteMap) -> Shift:
        return Shift((uniform(seeds, stream("shift", 1, seeds.device))[:, 0] * self.scale).to(sites.dtype))


def test_hooks_are_replayed_row_by_row() -> None:
    model, exploration = latent_model("llama"), Shifted()
    generation = roll_out(model, prompts(), SEEDS, exploration, temperature=1.3, max_completion_length=5)
    replayed = replay(model, prompts(), SEEDS, generation.token_ids, exploration, temperature=1.3).detach()
    assert (replayed - generation.logprobs)[generation.mask].abs().max() < 1e-10
    exploration.scale = torch.tensor(0.0)
    quiet = replay(model, prompts(), SEEDS, generation.token_ids, exploration, temperature=1.3).detach()
    assert difference(quiet, replayed) > 1e-3
    assert all(not module._forward_hooks for module in model.modules()), "no hook is left"


def test_the_reference_of_the_kl_has_the_policys_noise_by_hooks_on_its_own_layers() -> None:
    model, exploration = latent_model("llama"), Shifted()
    reference = ReferencePolicy(model, GRPOConfig(beta=0.1), exploration)
    expected = replay(model, prompts(), SEEDS, torch.tensor(ANSWERS), exploration, temperature=1.0).detach()
    with torch.no_grad():
        next(model.sites.layers[0].parameters()).mul_(3.0)
    assert torch.equal(reference.logprobs(prompts(), SEEDS, torch.tensor(ANSWERS)), expected)


def test_an_evaluation_answers_under_hooks_if_there_are_thoughts() -> None:
    config = EvaluationConfig(num_samples=2, temperature=0.0, max_new_tokens=3)
    answers = answer_problems(tiny_latent(), tiny_problems(3), config, exploration=Shifted())
    assert all(len(answered.samples) == 2 for answered in answers)
    with pytest.raises(UserError, match="all samples would be the same"):
        answer_problems(tiny_latent(), tiny_problems(3), replace(config, latent_steps=0), exploration=Shifted())


def test_a_run_that_goes_on_has_the_tensors_of_the_exploration(tmp_path: Path) -> None:
    used: list[Shifted] = []

    def options() -> dict[str, Any]:
        used.append(Shifted())
        return {"exploration": used[-1]}

    resumed_like_whole(tmp_path, replace(CONFIG, max_steps=4, save_steps=2), options)
    whole, parts, _ = used
    assert whole.calls == ["begin", 1, 1, 2, 3, 4, "end"], "the first call is for measuring memory"
    assert parts.calls[-1] == "end", "also after an error"
