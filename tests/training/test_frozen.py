"""Weights without ``requires_grad`` are left out: no bit of them changes, and the optimiser has no state for them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dropout_grpo.errors import UserError
from dropout_grpo.latent.model import LatentModel
from helpers.grpo_run import CONFIG, alternating, trainer
from helpers.tiny_latent import newest_checkpoint, tiny_latent

FOUR_STEPS = replace(CONFIG, max_steps=4, save_steps=2)


def partly_frozen() -> LatentModel:
    """Only the output projections of the two attentions are trained."""
    model = tiny_latent("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("o_proj.weight"))
    return model


def test_a_part_is_trained(tmp_path: Path) -> None:
    model = partly_frozen()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    config = replace(FOUR_STEPS, weight_decay=0.1)
    trainer(tmp_path, config, model=model, reward_funcs=[alternating]).train()
    for name, weight in model.named_parameters():
        assert weight.requires_grad == name.endswith("o_proj.weight")
        same = torch.equal(weight.detach().view(torch.int32), before[name].view(torch.int32))  # 0 and -0 differ
        assert same != weight.requires_grad, name
    state = load_file(newest_checkpoint(tmp_path, "grpo") / "optimizer.safetensors")
    assert {name.partition(".")[0] for name in state} == {"0", "1"}, "one matrix in each of two layers"


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has requires_grad: there is nothing to train"):
        trainer(tmp_path, model=tiny_latent().requires_grad_(False)).train()
