"""Every site in each phase and in all of them, against the oracle; and the ablation with a mask for every step."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import PerStepDropout, SharedDropout
from dropout_grpo.exploration.sites import SITES
from dropout_grpo.latent.rollout import replay
from helpers.engine import (
    ALL_PHASES,
    ALL_SITES,
    ANSWERS,
    READING_SITES,
    SEEDS,
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

PHASES = [("prompt",), ("latent",), ("answer",), ALL_PHASES]


def test_these_are_all_the_sites() -> None:
    assert set(SITES) == {"residual", "attention", "mlp", "mlp_hidden", "heads", "thought", *READING_SITES}


@pytest.mark.parametrize("site", SITES)
def test_a_site_in_each_phase(site: str) -> None:
    """Of Qwen3, whose heads times their width are not the model's width."""
    model, plain, answers = latent_model("qwen3"), oracle_model("qwen3"), torch.tensor(ANSWERS)
    seen: dict[tuple[str, ...], Tensor] = {}
    for phases in PHASES:
        exploration = SharedDropout(0.25, site, phases)
        logprobs = replay(model, prompts(), SEEDS, answers, exploration, temperature=1.0)
        _, expected = oracle_rows(plain, 2, reference_noises(exploration))
        assert difference(logprobs.detach(), expected.detach()) < 1e-10
        assert differences(gradients(model.model, logprobs), gradients(plain, expected)) < 1e-10
        seen[phases] = logprobs.detach()
    for a, b in combinations(PHASES, 2):
        # A thought is fed back in the latent phase alone, so for it the other phases are no phases.
        alike = site == "thought" and ("latent" in a) == ("latent" in b)
        assert (difference(seen[a], seen[b]) < 1e-10) == alike, f"{a} against {b}"


def test_attention_weights_of_a_model_that_keeps_its_attention_are_refused() -> None:
    with pytest.raises(UserError, match=r"'attention_weights': \w+ has no such site, because it keeps its own"):
        engine_rows(latent_model("gemma2"), SharedDropout(0.4, "attention_weights"))


@pytest.mark.parametrize(("kind", "phases"), [("gpt2", ("latent",)), ("gpt2", ALL_PHASES), ("llama", ALL_PHASES)])
def test_a_mask_for_every_step(kind: str, phases: tuple[str, ...]) -> None:
    """Step t draws from the seed with t + 1 folded into it; prompt and answer keep the rollout's own mask."""
    exploration = PerStepDropout(0.25, (*ALL_SITES, *READING_SITES), phases)
    model, plain = latent_model(kind, latent_steps=3), oracle_model(kind)
    engine = engine_rows(model, exploration)
    oracle = oracle_rows(plain, 3, reference_noises(exploration, per_step=True))
    for ours, expected in zip([*engine[0], engine[1]], [*oracle[0], oracle[1]], strict=True):
        assert difference(ours.detach(), expected.detach()) < 1e-10
    assert differences(gradients(model.model, engine[1]), gradients(plain, oracle[1])) < 1e-10
    held = oracle_rows(plain, 3, reference_noises(exploration, per_step=False))
    assert difference(engine[0][1].detach(), held[0][1].detach()) > 1e-2
