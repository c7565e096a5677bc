"""Training some weights only: the others do not change, the optimiser has no state for them, a stopped run resumes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dropout_grpo.config.grpo import GRPOConfig
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.value_weights import SingularValueNoise
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.training.freeze import only_trained, trained_weights
from helpers.grpo_run import CONFIG, alternating, steps_of, trainer
from helpers.tiny_latent import assert_same_weights, newest_checkpoint, tiny_latent, weights_of

VALUES = replace(CONFIG, train_only=("value_weights",), save_steps=2)


def trained(tmp_path: Path, kind: str, config: GRPOConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights before and after a run in which every group is mixed."""
    model = tiny_latent(kind)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer(tmp_path, config, model=model, reward_funcs=[alternating]).train()
    return before, dict(model.named_parameters())


def bits(weight: torch.Tensor) -> torch.Tensor:
    """So that 0 and -0 differ."""
    return weight.detach().view(torch.int32)


def test_value_weights_of_a_fused_projection_are_its_last_columns(tmp_path: Path) -> None:
    before, after = trained(tmp_path, "gpt2", VALUES)
    for name, weight in after.items():
        if not name.endswith("c_attn.weight"):
            assert torch.equal(bits(weight), bits(before[name])), name
            continue
        width = weight.shape[0]  # [D, 3 D]: queries, keys, values
        assert weight.shape == (width, 3 * width)
        assert torch.equal(bits(weight[:, : 2 * width]), bits(before[name][:, : 2 * width]))
        assert bool((weight[:, 2 * width :] != before[name][:, 2 * width :]).any(dim=0).all())
    assert all(parameter.requires_grad for parameter in after.values()), "the model is as it was given"


@pytest.mark.parametrize("pattern", ["value_weights", "*.v_proj.weight"])
def test_value_weights_of_their_own_projection(tmp_path: Path, pattern: str) -> None:
    before, after = trained(tmp_path, "llama", replace(VALUES, train_only=(pattern,), weight_decay=0.1))
    for name, weight in after.items():
        assert torch.equal(bits(weight), bits(before[name])) != name.endswith("v_proj.weight"), name


def test_the_optimiser_keeps_state_of_what_is_trained_only(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trainer(tmp_path, VALUES, model=tiny_latent("llama"), reward_funcs=[alternating]).train()
    state = load_file(newest_checkpoint(tmp_path, "grpo") / "optimizer.safetensors")
    assert {name.partition(".")[0] for name in state} == {"0", "1"}, "one matrix in each of two layers"


def test_the_gradient_norm_is_that_of_what_is_trained() -> None:
    """The gradient of sum(W^2) / 2 is W itself, and of the queries' and keys' columns nothing is left."""
    model = tiny_latent("gpt2")
    with only_trained(model, ["value_weights"]):
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


def test_a_whole_matrix_wins_over_a_part_of_it() -> None:
    model = tiny_latent("gpt2")
    for patterns in (["value_weights", "*.c_attn.weight"], ["*.c_attn.weight", "value_weights"]):
        found = trained_weights(model, patterns)
        assert set(found) == {f"transformer.h.{i}.attn.c_attn.weight" for i in range(2)}
        assert set(found.values()) == {None}


def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    config, whole = replace(VALUES, max_steps=4), tiny_latent()

    def stop(model: LatentModel) -> float:
        raise InterruptedError

    def noise() -> SingularValueNoise:
        return SingularValueNoise(refresh=3)

    trainer(tmp_path / "whole", config, model=whole, exploration=noise()).train()
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "parts", replace(config, eval_steps=3), evaluate=stop, exploration=noise()).train()
    model = tiny_latent()
    trainer(tmp_path / "parts", config, model=model, resume=True, exploration=noise()).train(
        resume_from_checkpoint=True
    )
    assert steps_of(tmp_path / "parts") == steps_of(tmp_path / "whole")
    assert_same_weights(weights_of(model), weights_of(whole))


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_only: '\*\.v_proj\.weight' matches no parameter that is trained"):
        trainer(tmp_path / "a", replace(VALUES, train_only=("value_weights", "*.v_proj.weight")))
    with pytest.raises(UserError, match=r"is a part of transformer\.h\.0\.attn\.c_attn\.weight, and weight_decay=0\.1"):
        trainer(tmp_path / "b", replace(VALUES, weight_decay=0.1))
    with pytest.raises(UserError, match="train_only does not work with fsdp"):
        trainer(tmp_path / "c", VALUES, fsdp=True)
    with pytest.raises(UserError, match="train_only is empty"):
        GRPOConfig(train_only=())
