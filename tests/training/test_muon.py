"""Which parameters Muon gets, how far it moves them, and that it shares schedule and state with AdamW."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dropout_grpo.training.muon import Float32Muon, MuonAdamW, hidden_matrices
from dropout_grpo.training.optimizer import (
    build_optimizer,
    build_schedule,
    load_optimizer_tensors,
    optimizer_tensors,
)
from helpers.tiny_latent import tiny_latent
from helpers.tiny_lora import tiny_lora


@pytest.fixture(autouse=True, params=[True, False], ids=["bf16", "float32"])
def _fast_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any machine, Muon as with fast products in bf16 and as without."""
    monkeypatch.setattr("dropout_grpo.training.muon.bf16_for", lambda device: (request.param, "the test"))


def both(matrix: nn.Parameter, vector: nn.Parameter, *, learning_rate: float = 0.1, decay: float = 0.0) -> MuonAdamW:
    optimizer = build_optimizer(
        [matrix, vector], learning_rate=learning_rate, weight_decay=decay, betas=(0.9, 0.999), matrices=[matrix]
    )
    assert isinstance(optimizer, MuonAdamW)
    return optimizer


def parameters() -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(6, 4, generator=generator)), nn.Parameter(torch.ones(3))


def gradients(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 4, generator=generator), torch.randn(3, generator=generator)


def advance(optimizer: MuonAdamW, pair: tuple[nn.Parameter, nn.Parameter], steps: range) -> None:
    for step in steps:
        for parameter, gradient in zip(pair, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()


def test_every_direction_of_a_matrix_moves_as_far_and_a_vector_moves_as_with_adamw() -> None:
    matrix, vector = parameters()
    before = matrix.detach().clone()
    optimizer = both(matrix, vector)
    u, _ = torch.linalg.qr(gradients(1)[0])
    v, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))
    # The smallest direction of this gradient is a hundredth of the largest; AdamW's would stay unequal.
    matrix.grad = u @ torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.01])) @ v.T
    vector.grad = torch.tensor([3.0, -0.001, 50.0])
    optimizer.step()
    moved = u.T @ (before - matrix.detach()) @ v  # diagonal, in the gradient's own directions
    size = 0.1 * 0.2 * math.sqrt(6)  # rate x 0.2 x sqrt of the longer side (Liu et al. 2025)
    # Five steps of the quintic iteration bring singular values to about 1; from 0.01 of a norm of 1.1 a little less.
    assert torch.all(moved.diagonal() > 0.5 * size)
    assert torch.all(moved.diagonal() < 1.3 * size)
    assert (moved - torch.diag(moved.diagonal())).abs().max() < 0.05 * size
    assert (vector.detach() - 1.0).tolist() == pytest.approx([-0.1, 0.1, -0.1], rel=1e-3)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_in_float32_it_is_torchs_muon_but_for_rounding(shape: tuple[int, int]) -> None:
    after = []
    for muon in (torch.optim.Muon, Float32Muon):
        generator = torch.Generator().manual_seed(0)
        matrix = nn.Parameter(torch.randn(shape, generator=generator))
        optimizer = muon([matrix], lr=0.3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            matrix.grad = torch.randn(shape, generator=generator)
            optimizer.step()
        after.append(matrix.detach())
    expected, found = after
    assert torch.allclose(found, expected, rtol=0, atol=0.01)
    assert not torch.equal(found, expected), "in bf16 too"


def test_the_schedule_and_the_decay_reach_both() -> None:
    matrix, vector = parameters()
    optimizer = both(matrix, vector, learning_rate=1.0, decay=0.5)
    schedule = build_schedule(optimizer, "linear", warmup_steps=0, updates=2)
    before = matrix.detach().clone()
    matrix.grad, vector.grad = torch.zeros(6, 4), torch.zeros(3)
    optimizer.step()
    assert torch.allclose(matrix, before * (1 - 1.0 * 0.5))
    schedule.step()
    optimizer.step()
    assert torch.allclose(matrix, before * (1 - 1.0 * 0.5) * (1 - 0.5 * 0.5))
    schedule.step()  # the rate is 0 from here on
    still = [matrix.detach().clone(), vector.detach().clone()]
    advance(optimizer, (matrix, vector), range(3))
    assert torch.equal(matrix, still[0])
    assert torch.equal(vector, still[1])


def test_state_survives_the_round_trip_bit_for_bit() -> None:
    whole, pair = parameters(), parameters()
    advance(both(*whole), whole, range(5))
    first = both(*pair)
    advance(first, pair, range(3))
    tensors = optimizer_tensors(first)
    assert sorted(tensors) == ["0.momentum_buffer", "1.exp_avg", "1.exp_avg_sq", "1.step"]
    second = both(*pair)
    load_optimizer_tensors(second, tensors.items())
    forgetful = tuple(nn.Parameter(parameter.detach().clone()) for parameter in pair)
    advance(second, pair, range(3, 5))
    advance(both(*forgetful), forgetful, range(3, 5))
    for a, b, c in zip(whole, pair, forgetful, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapters_own_rows_of_the_embeddings_are_not_among_the_matrices(tied: bool, tmp_path: Path) -> None:
    model = tiny_lora(tmp_path, "gpt2" if tied else "llama")
    matrices = {id(matrix) for matrix in hidden_matrices(model, model.model.get_output_embeddings())}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in matrices) == ("lora_" in name), name


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_embeddings_and_the_head_are_not_among_the_matrices(architecture: str) -> None:
    latent = tiny_latent(architecture)
    matrices = hidden_matrices(latent, latent.model.get_output_embeddings())
    names = {name for name, parameter in latent.named_parameters() if any(parameter is m for m in matrices)}
    assert names
    for name, parameter in latent.named_parameters():
        outside = any(part in name for part in ("wte", "wpe", "embed_tokens", "lm_head"))
        assert (name in names) == (parameter.ndim == 2 and not outside), name
    frozen = matrices[0].requires_grad_(requires_grad=False)
    left = hidden_matrices(latent, latent.model.get_output_embeddings())
    assert all(m is not frozen for m in left)
    assert len(left) == len(matrices) - 1
