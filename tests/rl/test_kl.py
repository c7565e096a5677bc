"""Estimates of the KL: Huberised k3 is k3 in the middle, its tangents outside, and never flat except at 0."""

import math

import pytest
import torch
from torch import Tensor

from dropout_grpo.rl.objective import kl_estimate

DELTA = 5.0


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def value_and_slope(gap: float, estimator: str = "k3_huber", delta: float = DELTA) -> tuple[float, float]:
    x = double(gap)
    value = kl_estimate(x, estimator, delta)  # type: ignore[arg-type]
    (slope,) = torch.autograd.grad(value.sum(), x)
    return float(value.detach()), float(slope)


@pytest.mark.parametrize("gap", [-5.0, -3.2, -1e-3, 0.0, 0.7, 4.999, 5.0])
def test_within_delta_it_is_k3(gap: float) -> None:
    assert value_and_slope(gap) == pytest.approx(value_and_slope(gap, "k3"), rel=1e-12, abs=1e-15)
    assert value_and_slope(gap) == pytest.approx((math.exp(gap) - gap - 1, math.exp(gap) - 1), rel=1e-9, abs=1e-15)


def test_the_formulas_of_the_draft_by_hand() -> None:
    # Above: (e^5 - 1)(7 - 5) + (e^5 - 5 - 1). Below: (e^-5 - 1)(-8 + 5) + (e^-5 + 5 - 1).
    up, down = math.exp(5), math.exp(-5)
    assert value_and_slope(7.0) == pytest.approx(((up - 1) * 2 + up - 6, up - 1), rel=1e-12)
    assert value_and_slope(-8.0) == pytest.approx(((down - 1) * -3 + down + 4, down - 1), rel=1e-12)


@pytest.mark.parametrize("delta", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_value_and_slope_are_continuous_at_delta(delta: float, sign: int) -> None:
    at = sign * delta
    inside, outside = value_and_slope(at * (1 - 1e-9), delta=delta), value_and_slope(at * (1 + 1e-9), delta=delta)
    assert inside == pytest.approx(outside, rel=1e-6)
    assert value_and_slope(at, delta=delta) == pytest.approx(inside, rel=1e-6)
    clamped = value_and_slope(at * (1 + 1e-9), "k3_clamp", delta)
    assert clamped[1] == 0.0  # the clamp's slope jumps, so this test would notice
    assert abs(inside[1]) > 0.1


def test_it_is_convex_and_its_slope_is_bounded_and_zero_at_zero_alone() -> None:
    gaps = torch.linspace(-60, 60, 4801, dtype=torch.float64).requires_grad_()
    values = kl_estimate(gaps, "k3_huber", DELTA)
    (slopes,) = torch.autograd.grad(values.sum(), gaps)
    assert (values >= 0).all()
    assert ((slopes == 0) == (gaps == 0)).all()
    assert (slopes.sign() == gaps.sign()).all()
    assert (slopes.diff() > -1e-12).all()
    assert slopes.abs().max() == pytest.approx(math.expm1(DELTA))
    assert values[0] < 60  # where k3 is about as large, but
    assert kl_estimate(gaps, "k3", DELTA)[-1] > 1e25 > 1e5 > values[-1]


def test_gradient_is_the_finite_difference() -> None:
    gaps = torch.tensor([-9.0, -4.0, -0.3, 0.2, 3.0, 8.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, "k3_huber", DELTA), (gaps,))


def test_clamp_is_flat_outside() -> None:
    assert value_and_slope(3.0, "k3_clamp") == value_and_slope(3.0, "k3")
    assert value_and_slope(9.0, "k3_clamp") == (pytest.approx(math.exp(5) - 6), 0.0)
    assert value_and_slope(-9.0, "k3_clamp") == (pytest.approx(math.exp(-5) + 4), 0.0)


def test_the_sign_is_that_of_kl_from_policy_to_reference() -> None:
    """The mean under pi is KL(pi || pi_ref) with the gap log pi_ref - log pi, and is not with the opposite sign."""
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ref = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    kl = float((pi * (pi / ref).log()).sum())
    gap = ref.log() - pi.log()
    for estimator in ("k3", "k3_huber"):
        assert float((pi * kl_estimate(gap, estimator, DELTA)).sum()) == pytest.approx(kl)  # type: ignore[arg-type]
        assert float((pi * kl_estimate(-gap, estimator, DELTA)).sum()) != pytest.approx(kl, rel=0.1)  # type: ignore[arg-type]
