"""The table of families: what is compared, and that a wrong engine shows in it."""

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.runs.files import write_json
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from evidence.pages.models import blocks, equal
from evidence.places import RESULTS_FOLDER
from helpers import families
from helpers.families import TOLERANCE


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "nemotron"])
def test_a_family_is_compared_with_its_own_forward_pass(kind: str) -> None:
    with pytest.warns(UserWarning, match="shared prompt") if kind == "nemotron" else nullcontext():
        actual = families.examine(kind)
    assert actual["status"] == "works"
    assert actual["shares_prompt"] == (kind != "nemotron")
    assert all(actual[gap] < TOLERANCE for gap in ("alone", "padded", "masked", "replay"))
    assert actual["masks_act"]
    assert actual["lacks"] == (["mlp_hidden"] if kind == "mixtral" else [])


def test_refusals_and_families_that_are_not_built_say_why() -> None:
    assert families.examine("mamba")["status"] == "refused"
    assert "decoder layers" in families.examine("mamba")["why"]
    assert families.examine("blt")["status"] == "not built"
    assert "parameters" in families.examine("blt")["why"]


def latent(kind: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> LatentModel:
    monkeypatch.setattr(families, "SPECIAL", {kind: options})
    model, tokenizer = families.tiny(kind, torch.float32), word_tokenizer(families.WORDS)
    add_latent_tokens(model, tokenizer)
    return LatentModel(model.train(), tokenizer, latent_steps=2)


def test_training_mode_draws_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: ``train()`` switched on the noise of a mixture's router, which no seed replays."""
    model = latent("mixtral", monkeypatch, router_jitter_noise=0.1).train()
    first, second = (model.think(model.read(*model.encode(["a b c"])), 2).hidden for _ in range(2))
    assert torch.equal(first, second)


def test_a_question_longer_than_mpts_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert latent("mpt", monkeypatch).max_positions == 64


@pytest.mark.slow
def test_every_family_is_equal_or_refused() -> None:
    """Two minutes. Writes ``docs/results/families.json``, from which docs/models.md is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = {name: families.examine(name) for name in families.families()}
    write_json(RESULTS_FOLDER / "families.json", {"families": record, "tolerance": TOLERANCE, **provenance()})
    assert [name for name, family in record.items() if family["status"] == "fails"] == []
    working = {name: family for name, family in record.items() if family["status"] == "works"}
    assert [name for name, family in working.items() if not equal(family, TOLERANCE)] == []


def test_a_family_that_is_not_equal_shows_in_the_table() -> None:
    actual = {"status": "works", "dtype": "float64", "shares_prompt": True, "lacks": [], "masks_act": True}
    same = dict.fromkeys(("alone", "padded", "masked", "replay"), 1e-9)
    record = {
        "families": {"good": {**actual, **same}, "bad": {**actual, **same, "masked": 0.5}},
        "tolerance": TOLERANCE,
    }
    rows = blocks(record)["working"].splitlines()
    assert rows[2].endswith("| yes |")
    assert rows[3].endswith("| NO |")
