"""Training the value projections only: no bit of other weights changes, also where a matrix holds queries and keys."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.errors import UserError
from evidence.rivals.only_values import only_values_trained
from evidence.rivals.svp import SVPOnlyValues
from helpers.grpo_run import CONFIG, alternating, trainer
from helpers.tiny_latent import tiny_latent


def trained(tmp_path: Path, kind: str, config: GRPOConfig = CONFIG) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after a run in which every group is mixed."""
    model = tiny_latent(kind)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer(tmp_path, config, model=model, reward_funcs=[alternating], exploration=SVPOnlyValues()).train()
    return before, dict(model.named_parameters())


def bits(weight: Tensor) -> Tensor:
    """So that 0 and -0 differ."""
    return weight.detach().view(torch.int32)


def test_values_of_a_fused_projection_are_its_last_columns(tmp_path: Path) -> None:
    before, after = trained(tmp_path, "gpt2")
    for name, weight in after.items():
        if not name.endswith("c_attn.weight"):
            assert torch.equal(bits(weight), bits(before[name])), name
            continue
        width = weight.shape[0]  # [D, 3 D]: queries, keys, values
        assert weight.shape == (width, 3 * width)
        assert torch.equal(bits(weight[:, : 2 * width]), bits(before[name][:, : 2 * width]))
        assert bool((weight[:, 2 * width :] != before[name][:, 2 * width :]).any(dim=0).all())
    assert all(parameter.requires_grad for parameter in after.values()), "the model is as it was given"


def test_values_of_their_own_projection(tmp_path: Path) -> None:
    before, after = trained(tmp_path, "llama", replace(CONFIG, weight_decay=0.1))
    for name, weight in after.items():
        assert torch.equal(bits(weight), bits(before[name])) != name.endswith("v_proj.weight"), name


def test_the_gradient_norm_is_that_of_what_is_trained() -> None:
    """The gradient of sum(W^2) / 2 is W itself, and of the queries' and keys' columns nothing is left."""
    model = tiny_latent("gpt2")
    with only_values_trained(model, model.sites):
        sum(((p**2).sum() / 2 for p in model.parameters()), torch.zeros(())).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("c_attn.weight"):
            expected = parameter.detach().clone()
            expected[:, : 2 * parameter.shape[0]] = 0.0
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, expected)
        else:
            assert parameter.grad is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weight_decay_of_the_rest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other weights have changed: set grpo\.weight_decay to 0"):
        trained(tmp_path, "gpt2", replace(CONFIG, weight_decay=0.1))
