"""Gaussian factors, and the normal numbers of seeds, against the oracle and Python's own arithmetic."""

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.exploration.gaussian import Gaussian
from dropout_grpo.exploration.seeds import normal, stream
from dropout_grpo.latent.rollout import replay
from helpers import splitmix
from helpers.engine import (
    ANSWERS,
    QUESTIONS,
    SEEDS,
    difference,
    differences,
    engine_rows,
    gradients,
    latent_model,
    oracle_model,
    oracle_rows,
    prompts,
)
from helpers.oracle import Factors


def test_normal_numbers_are_quantiles_of_the_seeds_bits() -> None:
    seeds = [0, -1, 2**63 - 1]
    actual = normal(torch.tensor(seeds), stream("layers.0.mlp", 50))
    expected = torch.stack([splitmix.normal(seed, "layers.0.mlp", 50) for seed in seeds])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    many = normal(torch.arange(2000), stream("thought", 40)).flatten()
    assert kstest(many.numpy(), "norm").pvalue > 1e-4
    assert kstest((1.02 * many).numpy(), "norm").pvalue < 1e-2


@pytest.mark.parametrize(("model_kind", "copy_prompts"), [("gpt2", True), ("qwen3", False)])
def test_gaussian_factors_are_the_oracles(model_kind: str, copy_prompts: bool) -> None:
    sites = ("residual", "values", "attention_weights", "thought")
    exploration = build_exploration(ExplorationConfig(kind="gaussian", sites=sites, options={"sigma": 0.3}))
    model, plain = latent_model(model_kind, copy_prompts=copy_prompts), oracle_model(model_kind)

    def reference(seed: int) -> Factors:
        def factors(phase: str, step: int) -> dict[str, Tensor]:
            if phase != "latent":
                return {}
            names = [f"layers.{i}.{kind}" for i in (0, 1) for kind in ("attention", "mlp", "values")] + ["thought"]
            drawn = {name: 1 + 0.3 * splitmix.normal(seed, name, 16) for name in names}
            weights = [f"layers.{i}.attention_weights" for i in (0, 1)]
            return drawn | {n: (1 + 0.3 * splitmix.normal(seed, n, 4 * 64)).view(64, 4).T for n in weights}

        return factors

    oracle = oracle_rows(plain, 2, [reference(seed) for seed in SEEDS.flatten().tolist()])
    _, logprobs = engine_rows(model, exploration)
    assert difference(logprobs.detach(), oracle[1].detach()) < 1e-8
    assert differences(gradients(model.model, logprobs), gradients(plain, oracle[1])) < 1e-8


def test_a_row_is_its_seeds_in_any_company() -> None:
    model, exploration = latent_model("gpt2"), Gaussian(phases=("latent", "answer"))
    together = engine_rows(model, exploration)[1]
    for row in range(6):
        seeds, tokens = SEEDS.view(-1, 1)[row : row + 1], torch.tensor(ANSWERS[row : row + 1])
        alone = replay(model, prompts([QUESTIONS[row // 2]]), seeds, tokens, exploration, temperature=1.0)
        assert difference(alone[0].detach(), together[row].detach()) < 1e-10


def test_sigma_zero_is_no_noise() -> None:
    assert latent_model("gpt2").noise(Gaussian(sigma=0), torch.tensor([1])) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": float("nan")}, r"sigma=nan: it must be a number, 0 or more"),
        ({"sigm": 1}, r"gaussian has no option 'sigm' \(did you mean 'sigma'\?\)"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_exploration(ExplorationConfig(kind="gaussian", options=options))


@pytest.mark.parametrize(("kind", "now"), [("svp", "svp:SVP"), ("weight_noise", "gaussian_v:GaussianV")])
def test_a_kind_that_has_left_the_package_says_where_it_is(kind: str, now: str) -> None:
    with pytest.raises(UserError, match=f"exploration.kind {kind} .* give evidence.rivals.{now}"):
        ExplorationConfig(kind=kind)
