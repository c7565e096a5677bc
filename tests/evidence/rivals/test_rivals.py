"""Noise on the weights of value projections against the oracle, and in runs that are stopped and resumed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.distributed import processes
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.rollout import replay, roll_out
from dropout_grpo.rl.reference import ReferencePolicy
from evidence.rivals import gaussian_v
from helpers import splitmix
from helpers.engine import (
    ALL_PHASES,
    ANSWERS,
    END_ID,
    QUESTIONS,
    SEEDS,
    TOLERANCE,
    difference,
    differences,
    engine_rows,
    gradients,
    latent_model,
    oracle_model,
    oracle_rows,
    prompts,
)
from helpers.grpo_run import CONFIG, resumed_like_whole, steps_of, trainer
from helpers.oracle import oracle_run
from helpers.several import in_processes
from helpers.tiny import KINDS
from helpers.tiny_latent import tiny_latent

every_rival = pytest.mark.parametrize("kind", ["svp", "gaussian_v"])
PUBLISHED = ("prompt", "latent")
PATHS = {"svp": "svp:SVP", "gaussian_v": "gaussian_v:GaussianV"}


def rival(kind: str, phases: tuple[str, ...] = ("latent",), **options: Any) -> Any:
    """Made from its import path, as on the command line."""
    return build_exploration(ExplorationConfig(kind=f"evidence.rivals.{PATHS[kind]}", phases=phases, options=options))


VALUES = {  # kind -> the projection of values, and which of its outputs are values: width 16, or 2 heads of 4 or 8
    "gpt2": ("transformer.h.{}.attn.c_attn", range(32, 48)),
    "gpt_neox": ("gpt_neox.layers.{}.attention.query_key_value", [12 * h + 8 + e for h in range(4) for e in range(4)]),
    "opt": ("model.decoder.layers.{}.self_attn.v_proj", range(16)),
    **dict.fromkeys(("llama", "qwen2"), ("model.layers.{}.self_attn.v_proj", range(8))),
    "qwen3": ("model.layers.{}.self_attn.v_proj", range(16)),
}


def with_noise(
    model: PreTrainedModel, kind: str, model_kind: str, seed: int, alpha: float, of: PreTrainedModel | None = None
) -> None:
    """Perturb the weights themselves, layer by layer, by numpy-like formulas of their own.

    The scale of the noise is that of the weights of ``of``, the model itself when None.
    """
    name, entries = VALUES[model_kind]
    columns = list(entries)

    def weights(model: PreTrainedModel, layer: int) -> Tensor:
        weight = model.get_parameter(f"{name.format(layer)}.weight").detach()
        return weight if model_kind == "gpt2" else weight.T  # [in, out], a view

    for i in range(2):
        w = weights(model, i)
        w_v = weights(of or model, i)[:, columns]
        if kind == "svp":
            u, s, vt = torch.linalg.svd(w_v, full_matrices=False)
            code = splitmix.normal(seed, f"layers.{i}.value_weight", len(s))
            added = alpha * sum(s[r] * code[r] * torch.outer(u[:, r], vt[r]) for r in range(len(s)))
        else:
            sigma = alpha * w_v.square().mean().sqrt()  # ||W||_F / sqrt(in * out)
            added = sigma * splitmix.normal_matrix(seed, f"layers.{i}.value_weight", w_v.numel()).view(w_v.shape)
        w[:, columns] += added


def test_the_numbers_of_a_matrix_are_quantiles_of_the_seeds_bits() -> None:
    seeds = [0, -1, 2**63 - 1]
    for size in (50, 49):
        expected = torch.stack([splitmix.normal_matrix(seed, "layers.0.mlp", size) for seed in seeds])
        packed = gaussian_v.normal_matrix(torch.tensor(seeds), "layers.0.mlp", size, torch.float64)
        torch.testing.assert_close(packed, expected, rtol=0, atol=1e-9)


@every_rival
@pytest.mark.parametrize("model_kind", [*KINDS, "gpt_neox", "opt"])
def test_weights_perturbed_everywhere_are_the_oracles(kind: str, model_kind: str) -> None:
    """In all phases the noise is another network: the oracle runs it without any hook."""
    model = latent_model(model_kind)
    _, found = engine_rows(model, rival(kind, ALL_PHASES, alpha=0.4))
    for row, seed in enumerate(SEEDS.flatten().tolist()):
        plain = oracle_model(model_kind)
        with_noise(plain, kind, model_kind, seed, 0.4)
        expected = oracle_run(plain, QUESTIONS[row // 2], 2, END_ID, ANSWERS[row]).logprobs
        assert difference(found[row].detach(), expected.detach()) < 1e-8
    quiet = oracle_rows(oracle_model(model_kind), 2)[1]
    assert difference(found.detach(), quiet.detach()) > 1e-2


@every_rival
@pytest.mark.parametrize(
    ("model_kind", "phases", "copy_prompts"),
    [("gpt2", ("latent",), False), ("llama", ("latent",), True), ("llama", PUBLISHED, False)],
)
def test_weights_perturbed_in_some_phases(
    kind: str, model_kind: str, phases: tuple[str, ...], copy_prompts: bool
) -> None:
    """Keys and values of a position come from the weights of its phase: two networks take turns, with one cache.

    The oracle is the engine's own plain verbs on a network with perturbed weights and on the plain one.
    """
    model = latent_model(model_kind, copy_prompts=copy_prompts)
    _, found = engine_rows(model, rival(kind, phases, alpha=0.4))
    for row, seed in enumerate(SEEDS.flatten().tolist()):
        noisy = latent_model(model_kind, copy_prompts=True)
        with_noise(noisy.model, kind, model_kind, seed, 0.4)
        quiet = latent_model(model_kind, copy_prompts=True)
        ids = torch.tensor([QUESTIONS[row // 2]])
        state = (noisy if "prompt" in phases else quiet).read(ids, torch.ones_like(ids))
        state = noisy.think(state, 2)
        expected = quiet.score(state, torch.tensor([ANSWERS[row]]))[0]
        assert difference(found[row].detach(), expected.detach()) < 1e-8


@every_rival
def test_gradients_are_finite_differences_with_the_noise_held(kind: str) -> None:
    """U, s, V and sigma are constants: those of the weights at the refresh, whatever the weights are now."""
    model, exploration = latent_model("gpt2"), rival(kind, PUBLISHED, alpha=0.4)
    exploration.begin_step(1, model.sites)

    def total() -> Tensor:
        logprobs = replay(model, prompts(), SEEDS, torch.tensor(ANSWERS), exploration, temperature=0.8)
        return (logprobs * torch.linspace(-1.0, 2.0, 24, dtype=torch.float64).view(6, 4)).sum()

    names = ["h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight", "h.0.attn.c_attn.bias", "h.0.mlp.c_fc.weight"]
    parameters = [model.model.get_decoder().get_parameter(name) for name in names]
    exact = torch.autograd.grad(total(), parameters)
    for parameter, gradient in zip(parameters, exact, strict=True):
        for entry in (int(gradient.abs().argmax()), parameter.numel() - 1):  # the last is of the values in c_attn
            flat, values = parameter.detach().view(-1), []
            start = flat[entry].item()
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    flat[entry] = start + step
                    values.append(total().item())
                    flat[entry] = start
            central = (values[0] - values[1]) / 2e-5
            assert gradient.flatten()[entry].item() == pytest.approx(central, rel=1e-6, abs=1e-7)


@every_rival
@pytest.mark.parametrize(("model_kind", "refreshed"), [("gpt2", False), ("llama", True)])
def test_the_reference_of_the_kl_has_the_policys_noise(kind: str, model_kind: str, refreshed: bool) -> None:
    """The policy's W_V changes after the reference was copied. Before a refresh the noise is that of the old W_V."""
    model, exploration = latent_model(model_kind), rival(kind, ALL_PHASES, alpha=0.4, refresh=2)
    exploration.begin_step(1, model.sites)
    reference = ReferencePolicy(model, GRPOConfig(beta=0.1), exploration)
    with torch.no_grad():
        for i in range(2):
            model.model.get_parameter(f"{VALUES[model_kind][0].format(i)}.weight").mul_(1.5 + i).add_(0.05)
    exploration.begin_step(3 if refreshed else 2, model.sites)
    found = reference.logprobs(prompts(), SEEDS, torch.tensor(ANSWERS))
    of = model.model if refreshed else oracle_model(model_kind)
    for row, seed in enumerate(SEEDS.flatten().tolist()):
        plain = oracle_model(model_kind)
        with_noise(plain, kind, model_kind, seed, 0.4, of)
        expected = oracle_run(plain, QUESTIONS[row // 2], 2, END_ID, ANSWERS[row]).logprobs
        assert difference(found[row], expected.detach()) < 1e-8


@every_rival
@pytest.mark.parametrize(("phases", "dtype"), [(("latent",), torch.float32), (PUBLISHED, torch.float64)])
def test_replay_is_exact_also_after_an_update(kind: str, phases: tuple[str, ...], dtype: torch.dtype) -> None:
    model, exploration = latent_model("llama", dtype), rival(kind, phases, refresh=2)
    exploration.begin_step(1, model.sites)
    made = roll_out(model, prompts(), SEEDS, exploration, temperature=1.3, max_completion_length=5)

    def replayed() -> Tensor:
        return replay(model, prompts(), SEEDS, made.token_ids, exploration, temperature=1.3).detach()

    assert (replayed() - made.logprobs)[made.mask].abs().max() < TOLERANCE[dtype]
    change = model.model.get_parameter("model.layers.0.self_attn.v_proj.weight")
    before = exploration.tensors(model.sites)["layers.0.value_weight"]
    with torch.no_grad():
        change.mul_(1.5)
    after_update = replayed()
    exploration.begin_step(2, model.sites)
    assert torch.equal(replayed(), after_update), "the second step still has the weights of the first"
    kept = exploration.tensors(model.sites)
    assert torch.equal(kept["layers.0.value_weight"], before)
    exploration.begin_step(3, model.sites)
    refreshed = replayed()
    assert difference(refreshed, after_update) > 1e-3
    resumed = rival(kind, phases, refresh=2)
    resumed.load(kept, model.sites)
    found = replay(model, prompts(), SEEDS, made.token_ids, resumed, temperature=1.3).detach()
    assert torch.equal(found, after_update), "a resumed run has the weights of the refresh before it"
    with resumed.training(model, model.sites):
        pass
    assert torch.equal(replay(model, prompts(), SEEDS, made.token_ids, resumed, temperature=1.3).detach(), refreshed)


@pytest.mark.parametrize("most", [0, 8 * 16 * 2, 2**26])
def test_noise_that_is_drawn_in_parts_is_the_noise_that_is_held(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, exploration = latent_model("qwen2"), rival("gaussian_v", PUBLISHED)
    expected = engine_rows(model, exploration)[1]
    gradient = gradients(model.model, expected)
    monkeypatch.setattr(gaussian_v, "MOST_HELD", most)
    found = engine_rows(model, exploration)[1]
    assert difference(found.detach(), expected.detach()) < 1e-12
    assert differences(gradients(model.model, found), gradient) < 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rival("svp", alpha=-1), r"alpha=-1: it must be a number, 0 or more"),
        (lambda: rival("gaussian_v", refresh=0), r"refresh=0: it must be a number of steps, at least 1"),
        (lambda: rival("svp", ("latents",)), r"phase 'latents' is unknown \(did you mean 'latent'\?\)"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_model_whose_values_are_not_found_is_refused_by_name() -> None:
    model: LatentModel = latent_model("llama")
    attention = model.model.model.layers[1].self_attn
    attention.w_of_values = attention.v_proj
    del attention.v_proj
    with pytest.raises(UserError, match=r"layer 1 \(LlamaDecoderLayer\) has no value projection known by name"):
        model.noise(rival("svp"), torch.tensor([1]))


@pytest.mark.slow
@every_rival
def test_noise_on_weights_goes_on_with_the_weights_of_its_last_refresh(tmp_path: Path, kind: str) -> None:
    """Refreshed before steps 1 and 4, stopped in between: the checkpoint of step 2 has the weights before step 1."""
    config = replace(CONFIG, max_steps=4, num_iterations=2, save_steps=2, beta=0.1)
    lines = resumed_like_whole(tmp_path, config, lambda: {"exploration": rival(kind, PUBLISHED, refresh=3)})
    trainer(tmp_path / "other", config, exploration=rival(kind, PUBLISHED, refresh=1)).train()
    assert steps_of(tmp_path / "other") != lines, "the refresh matters"


def perturbed(kind: str) -> dict[str, Tensor]:
    """Changes of the values by rollout 7, where every process finds singular vectors of other signs and a norm."""
    sign = (-1.0) ** processes.rank()
    svd, norm = torch.linalg.svd, torch.linalg.matrix_norm

    def signed(weight: Tensor, **options: Any) -> tuple[Tensor, ...]:
        u, s, vt = svd(weight, **options)
        return u * sign, s, vt * sign

    model = tiny_latent("qwen2")
    exploration = rival(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "svd", signed)
        patch.setattr(torch.linalg, "matrix_norm", lambda weight: norm(weight) * (1.0 + processes.rank()))
        exploration.begin_step(1, model.sites)
        noise = exploration.noise(torch.tensor([7]), model.sites)
    factors = {f"{name}.left": change.left for name, change in noise.changes.items()} if kind == "svp" else {}
    return factors | {name: change(torch.ones(1, 1, 16)) for name, change in noise.changes.items()}


@every_rival
def test_perturbed_weights_are_those_of_rank_0(kind: str, tmp_path: Path) -> None:
    """Another process may replay a rollout, and singular vectors have arbitrary signs."""
    alone = perturbed(kind)
    for found in in_processes(2, perturbed, tmp_path / "results", kind):
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[name], alone[name]) for name in alone)
