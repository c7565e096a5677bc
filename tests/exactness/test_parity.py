"""The engine against the oracle: hidden states after every thought, log-probabilities, gradients of everything.

Ragged left-padded questions, two rollouts each under their own masks, every architecture and variant in float64, two
in float32, groups that share their prompt's cache and groups that copy it.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dropout_grpo.exploration import NoExploration, SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.rollout import replay
from helpers.engine import (
    ALL_PHASES,
    ALL_SITES,
    ANSWERS,
    GRADIENT_TOLERANCE,
    KEEPS_ITS_ATTENTION,
    LATENT_ID,
    READING_SITES,
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
    reference_noises,
)
from helpers.tiny import EXTRA_KINDS, KINDS, VARIANTS

MASKS = SharedDropout(0.25, ALL_SITES, ("latent", "answer"))
EVERYWHERE = SharedDropout(0.25, (*ALL_SITES, *READING_SITES), ALL_PHASES)
SPECIAL_SITES = {"opt_350m": ALL_SITES, **dict.fromkeys(KEEPS_ITS_ATTENTION, (*ALL_SITES, "values"))}
"""Of kinds whose attention weights cannot be multiplied, or whose values the reference has no width for."""

# Groups of the kinds that keep their attention always copy their prompt.
KINDS_AND_CACHES = [
    (kind, copy)
    for kind in (*KINDS, *EXTRA_KINDS, *VARIANTS)
    for copy in (False, True)
    if copy or kind not in KEEPS_ITS_ATTENTION
]
TWO = [("gpt2", False), ("qwen3", True)]

Rows = tuple[list[Tensor], Tensor]


def worst(engine: Rows, oracle: Rows) -> float:
    pairs = zip([*engine[0], engine[1]], [*oracle[0], oracle[1]], strict=True)
    return max(difference(a.detach(), b.detach()) for a, b in pairs)


@pytest.mark.parametrize(
    ("kind", "copy_prompts", "dtype", "latent_steps"),
    [(*case, torch.float64, 4) for case in KINDS_AND_CACHES]
    + [(*case, torch.float32, 6) for case in TWO]
    + [("gpt2", False, torch.float64, steps) for steps in (0, 1)],
)
def test_groups_of_padded_rollouts_equal_lone_unpadded_rows(
    kind: str, copy_prompts: bool, dtype: torch.dtype, latent_steps: int
) -> None:
    """Masks on all sites, of thoughts and answers."""
    masks = SharedDropout(0.25, SPECIAL_SITES.get(kind, EVERYWHERE.sites), ("latent", "answer"))
    model = latent_model(kind, dtype, latent_steps=latent_steps, copy_prompts=copy_prompts)
    assert model.shares_prefix is not copy_prompts
    plain, exact = oracle_model(kind, dtype), oracle_model(kind, torch.float64)
    noises = reference_noises(masks, thought_width=12 if kind == "opt_350m" else 16)
    oracle = oracle_rows(plain, latent_steps, noises, temperature=0.7)
    truth = oracle if dtype == torch.float64 else oracle_rows(exact, latent_steps, noises, temperature=0.7)
    engine = engine_rows(model, masks, temperature=0.7)
    assert len(engine[0]) == latent_steps + 1
    # Six latent steps amplify rounding: in float32 the oracle itself is up to 1e-5 off, by how much depends on the CPU.
    assert worst(engine, oracle) < max(TOLERANCE[dtype], 10 * worst(oracle, truth))
    expected = gradients(plain, oracle[1])
    rounding = 0.0 if dtype == torch.float64 else differences(expected, gradients(exact, truth[1]))
    assert differences(gradients(model.model, engine[1]), expected) < max(GRADIENT_TOLERANCE[dtype], 10 * rounding)


@pytest.mark.parametrize(
    ("kind", "exploration"),
    [("gpt2", NoExploration()), ("gpt2", MASKS), ("llama", MASKS), ("gpt2", EVERYWHERE), ("qwen3", EVERYWHERE)],
)
def test_replay_is_the_same_pass(kind: str, exploration: SharedDropout) -> None:
    """What the trainer calls, without and with masks, and with masks in the prompt, where nothing is shared."""
    model, plain = latent_model(kind), oracle_model(kind)
    logprobs = replay(model, prompts(), SEEDS, torch.tensor(ANSWERS), exploration, temperature=1.3)
    noises = [] if isinstance(exploration, NoExploration) else [reference_noises(exploration)]
    _, expected = oracle_rows(plain, 2, *noises, temperature=1.3)
    assert difference(logprobs.detach(), expected.detach()) < 1e-10
    assert differences(gradients(model.model, logprobs), gradients(plain, expected)) < 1e-10


@pytest.mark.parametrize(("kind", "copy_prompts"), TWO)
def test_a_pause_thought_is_its_vector_at_every_step(kind: str, copy_prompts: bool) -> None:
    model = latent_model(kind, thought="pause", copy_prompts=copy_prompts)
    plain = oracle_model(kind)
    embedding = plain.get_input_embeddings().weight[LATENT_ID].detach()
    assert torch.equal(model.thought.vector[0, 0], embedding)  # where it starts to be learned from
    pause = torch.nn.Parameter(embedding + 0.1)
    model.thought.vector.data.copy_(pause.data)
    plain.register_parameter("pause", pause)  # for its gradient to be found by name
    oracle = oracle_rows(plain, 2, reference_noises(MASKS), thought=lambda hidden: pause)
    engine = engine_rows(model, MASKS)
    assert worst(engine, oracle) < 1e-10
    actual, expected = gradients(model, engine[1]), gradients(plain, oracle[1])
    assert difference(actual["thought.vector"][0, 0], expected.pop("pause")) < 1e-10
    assert differences({name: actual[f"model.{name}"] for name in expected}, expected) < 1e-10
    quiet = oracle_rows(plain, 2, reference_noises(MASKS))
    assert worst(engine, quiet) > 1e-2, "the hidden state was fed back"


@pytest.mark.parametrize(("kind", "copy_prompts"), TWO)
def test_a_projection_is_applied_to_every_hidden_state(kind: str, copy_prompts: bool) -> None:
    """CODI's formula written out, the thought's mask on what it gives; gradients of the projection as well."""
    model, plain = latent_model(kind, thought="projection", copy_prompts=copy_prompts), oracle_model(kind)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.thought.named_parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        plain.register_parameter(name.replace(".", "_"), torch.nn.Parameter(parameter.detach().clone()))

    def projection(hidden: Tensor) -> Tensor:
        inner = plain.prj_1_weight @ hidden + plain.prj_1_bias
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        out = plain.prj_3_weight @ inner + plain.prj_3_bias
        out = (out - out.mean()) / (out.var(correction=0) + 1e-5).sqrt()
        return out * plain.prj_ln_weight + plain.prj_ln_bias

    oracle = oracle_rows(plain, 2, reference_noises(MASKS), thought=projection)
    engine = engine_rows(model, MASKS)
    assert worst(engine, oracle) < 1e-10
    expected = gradients(plain, oracle[1])
    actual = {
        name.removeprefix("model.").replace("thought.prj.", "prj_").replace(".", "_"): gradient
        for name, gradient in gradients(model, engine[1]).items()
    }
    assert differences(actual, {name.replace(".", "_"): gradient for name, gradient in expected.items()}) < 1e-10
    assert min(expected[name].abs().max() for name in expected if name.startswith("prj_")) > 1e-3


@pytest.mark.parametrize(("kind", "window"), [("gemma2", 3), ("gemma3_text", 5), ("gemma2", 10)])
def test_a_sliding_window_forgets_the_same_positions(kind: str, window: int) -> None:
    """Their first layer sees a window only, and its cache drops what is outside of it.

    The longest row has 6 + 4 + 4 positions, so the window closes on the prompt, on thoughts, or on the answer.
    """
    model = latent_model(kind, latent_steps=4, max_positions=window)
    plain = oracle_model(kind, max_positions=window)
    assert plain.config.sliding_window == window
    oracle = oracle_rows(plain, 4, reference_noises(MASKS))
    engine = engine_rows(model, MASKS)
    assert worst(engine, oracle) < 1e-10
    assert differences(gradients(model.model, engine[1]), gradients(plain, oracle[1])) < 1e-10
    wide = oracle_rows(oracle_model(kind), 4, reference_noises(MASKS))
    assert worst(engine, wide) > 1e-2, "the window did not matter"


@pytest.mark.parametrize("kind", ["mistral", "qwen2_window"])
def test_the_variants_windows_matter(kind: str) -> None:
    plain = oracle_model(kind)
    narrow = oracle_rows(plain, 4)[1]
    assert plain.config.sliding_window == 5
    plain.config.sliding_window = 64
    wide = oracle_rows(plain, 4)[1]
    assert difference(wide.detach(), narrow.detach()) > 1e-2


def test_gemma_scales_its_tokens_before_inputs_embeds() -> None:
    """The installed transformers scales in the embedding module; were it in the model, thoughts would be scaled too."""
    plain, ids = oracle_model("gemma2"), torch.tensor([[5, 9, 28]])
    embedding = plain.get_input_embeddings()
    torch.testing.assert_close(embedding(ids), 4.0 * embedding.weight[ids])
    torch.testing.assert_close(plain(inputs_embeds=embedding(ids)).logits, plain(ids).logits)


def padding_counts(model: LatentModel, patch: pytest.MonkeyPatch) -> None:
    read = model.read
    patch.setattr(model, "read", lambda ids, mask: read(ids, torch.ones_like(mask)))


def positions_are_shifted(model: LatentModel, patch: pytest.MonkeyPatch) -> None:
    read = model.read

    def shifted(ids: Tensor, mask: Tensor) -> object:
        state = read(ids, mask)
        return replace(state, next_position=state.next_position + 1)

    patch.setattr(model, "read", shifted)


def one_seed_is_another(model: LatentModel, patch: pytest.MonkeyPatch) -> None:
    noise = model.noise
    other = torch.tensor([0, 0, 0, 1, 0, 0])
    patch.setattr(model, "noise", lambda exploration, seeds: noise(exploration, seeds + other))


def one_thought_too_many(model: LatentModel, patch: pytest.MonkeyPatch) -> None:
    score = model.score
    patch.setattr(model, "score", lambda state, ids, **kwargs: score(model.think(state, 1), ids, **kwargs))


Break = Callable[[LatentModel, pytest.MonkeyPatch], None]
BREAKS = [padding_counts, positions_are_shifted, one_seed_is_another, one_thought_too_many]


@pytest.mark.parametrize("broken", BREAKS)
def test_the_comparison_notices(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these flaws moves values by at least a thousand times the coarser tolerance."""
    model = latent_model("qwen3")
    broken(model, monkeypatch)
    oracle = oracle_rows(oracle_model("qwen3"), 2, reference_noises(MASKS))
    assert worst(engine_rows(model, MASKS), oracle) > 1e-2


def test_only_gradients_notice_a_detached_thought(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = latent_model("qwen3"), oracle_model("qwen3")
    monkeypatch.setattr(model.thought, "forward", lambda hidden: hidden.detach())
    oracle = oracle_rows(plain, 2, reference_noises(MASKS))
    engine = engine_rows(model, MASKS)
    assert worst(engine, oracle) < 1e-10
    assert differences(gradients(model.model, engine[1]), gradients(plain, oracle[1])) > 1e-2
