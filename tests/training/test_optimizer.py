"""The schedule's rates, weight decay, gradient clipping, and that a non-finite gradient changes nothing."""

import math

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from dropout_grpo.errors import UserError
from dropout_grpo.training.optimizer import (
    NonFinite,
    Schedule,
    build_optimizer,
    build_schedule,
    update,
)


def adamw(*parameters: nn.Parameter, learning_rate: float = 0.1, weight_decay: float = 0.0) -> AdamW:
    return build_optimizer(parameters, learning_rate=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.999))


def rates(schedule: Schedule, *, warmup_steps: int, updates: int, steps: int) -> list[float]:
    """Learning rates that the first ``steps`` updates are made with, peak 1."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = adamw(parameter, learning_rate=1.0)
    scheduler = build_schedule(optimizer, schedule, warmup_steps=warmup_steps, updates=updates)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.ones(1)
        update(
            nn.ParameterList([parameter]),
            optimizer,
            scheduler,
            loss=0.0,
            max_grad_norm=1.0,
            where="here",
            last_good="none yet",
        )
    return seen


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 3 / 4, 1 / 2, 1 / 4, 0]),
        # (1 + cos(pi t)) / 2 at t = 0, 1/4, 1/2, 3/4, 1
        ("cosine", [1, (1 + 0.5**0.5) / 2, 1 / 2, (1 - 0.5**0.5) / 2, 0]),
    ],
)
def test_schedules_by_hand(schedule: Schedule, expected: list[float]) -> None:
    assert rates(schedule, warmup_steps=0, updates=4, steps=5) == pytest.approx(expected)


def test_warm_up_by_hand() -> None:
    # Two updates of warm-up lead up to the peak, and the decay takes the remaining four.
    assert rates("linear", warmup_steps=2, updates=6, steps=7) == pytest.approx(
        [1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4, 0]
    )
    assert rates("constant", warmup_steps=3, updates=3, steps=5) == pytest.approx([1 / 4, 1 / 2, 3 / 4, 1, 1])
    assert rates("linear", warmup_steps=5, updates=3, steps=3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])  # warm-up alone


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    matrix, bias, frozen = (nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,), (2, 2)))
    frozen.requires_grad_(False)
    optimizer = adamw(matrix, bias, frozen, weight_decay=0.5)
    for parameter in (matrix, bias):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # With no gradient only the decay is left: 1 - 0.1 x 0.5.
    assert torch.equal(matrix.detach(), torch.full((2, 2), 0.95))
    assert torch.equal(bias.detach(), torch.ones(2))
    assert torch.equal(frozen, torch.ones(2, 2))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_adamw_by_hand() -> None:
    # From 0, gradient g: m = 0.1 g, v = 0.001 g^2, both divided by their bias corrections: a step of 0.1 g / |g|.
    parameter = nn.Parameter(torch.tensor([[1.0, 1.0]]))
    optimizer = adamw(parameter)
    parameter.grad = torch.tensor([[0.25, -3.0]])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([[0.9, 1.1]]))


@pytest.mark.parametrize(("max_grad_norm", "seen"), [(1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])])
def test_update_clips_steps_and_clears(max_grad_norm: float, seen: list[float]) -> None:
    a, b = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))
    optimizer = adamw(a, b)
    schedule = build_schedule(optimizer, "linear", warmup_steps=0, updates=2)
    a.grad, b.grad = torch.tensor([[3.0]]), torch.tensor([4.0])  # norm 5 over both groups together
    norm = update(
        nn.ParameterList([a, b]),
        optimizer,
        schedule,
        loss=1.0,
        max_grad_norm=max_grad_norm,
        where="here",
        last_good="none yet",
    )
    assert norm == pytest.approx(5.0)
    # The first moment is 0.1 of the gradient that AdamW saw.
    assert optimizer.state[a]["exp_avg"].item() == pytest.approx(0.1 * seen[0], rel=1e-5)
    assert optimizer.state[b]["exp_avg"].item() == pytest.approx(0.1 * seen[1], rel=1e-5)
    assert (a.grad, b.grad) == (None, None)
    assert schedule.get_last_lr() == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize(
    ("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (0.5, math.nan), (0.5, math.inf), (0.5, -math.inf)]
)
def test_nothing_moves_on_what_is_not_finite(loss: float, gradient: float) -> None:
    parameter = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    optimizer = adamw(parameter)
    schedule = build_schedule(optimizer, "linear", warmup_steps=0, updates=2)
    parameter.grad = torch.tensor([[1.0, gradient]])
    with pytest.raises(NonFinite, match=r"grpo step 7: loss .*, gradient norm .*") as error:
        update(
            nn.ParameterList([parameter]),
            optimizer,
            schedule,
            loss=loss,
            max_grad_norm=1.0,
            where="grpo step 7",
            last_good="runs/a/checkpoints/b",
        )
    assert "runs/a/checkpoints/b" in str(error.value)
    assert isinstance(error.value, UserError)  # the command line prints it without a traceback
    assert parameter.tolist() == [[1.0, 2.0]]
    assert not optimizer.state
    assert schedule.get_last_lr() == pytest.approx([0.1, 0.1])
