"""A model's own dropout is switched off everywhere, and train mode does not switch it on."""

import pytest
import torch
from torch import nn

from dropout_grpo.latent.recurrence import switch_off_dropout
from helpers.tiny import EXTRA_KINDS, KINDS, tiny_model
from helpers.tiny_latent import tiny_latent


def test_gpt2_and_opt_ship_dropout() -> None:
    assert tiny_model("gpt2").config.attn_pdrop == 0.1
    assert tiny_model("opt").config.dropout == 0.1


def noisy(model: nn.Module) -> bool:
    """Whether two passes over the same input differ in train mode."""
    model.train()
    ids = torch.tensor([[5, 9, 11, 28]])
    with torch.no_grad():
        return not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", KINDS + EXTRA_KINDS)
def test_train_mode_makes_no_noise(kind: str) -> None:
    model = tiny_model(kind)
    for name in ("attention_dropout", "attn_dropout", "dropout"):  # as if it had been fine-tuned with some
        for module in model.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.5)
    assert noisy(model), "this model has no dropout to switch off"
    switch_off_dropout(model)
    assert not noisy(model)


@pytest.mark.parametrize("kind", KINDS + EXTRA_KINDS)
def test_no_probability_is_left_in_modules_or_config(kind: str) -> None:
    model = tiny_model(kind)
    switch_off_dropout(model)
    assert all(module.p == 0.0 for module in model.modules() if isinstance(module, nn.Dropout))
    config = model.config.to_dict()
    left = {name: value for name, value in config.items() if "drop" in name and isinstance(value, float)}
    assert not any(left.values()), left


def test_nothing_else_is_touched() -> None:
    model = tiny_model("gpt2")
    before = model.config.to_dict()
    switch_off_dropout(model)
    after = model.config.to_dict()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_model_answers_alike_in_train_and_eval_mode(kind: str) -> None:
    model = tiny_latent(kind)
    prompt, answer = model.encode(["Ann has 3"]), torch.tensor([[25, 10, 1]])

    def score() -> torch.Tensor:
        with torch.no_grad():
            return model.score(model.think(model.read(*prompt), 2), answer)

    model.train()
    trained = score()
    model.eval()
    assert torch.equal(trained, score())
