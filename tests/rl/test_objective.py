"""The clipped surrogate and the KL: values and gradients by hand, TRL's formulas, and what padding must not do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.rl.objective import Surrogate, Totals, kl_estimate, surrogate, token_weight

LOSS_TYPES = ("sum", "grpo", "dr_grpo", "dapo")
LEVELS = ("token", "sequence")
OLD = math.log(0.25)


def of_ratios(
    ratios: list[list[float]], advantages: list[float], *, totals: Totals | None = None, **options: Any
) -> tuple[Surrogate, Tensor]:
    """The surrogate of answers whose tokens have these ratios, all real, and its gradient in their log-probs."""
    ratio = torch.tensor(ratios, dtype=torch.float64)
    logprobs = (ratio.log() + OLD).requires_grad_()
    old = torch.full_like(ratio, OLD)
    totals = totals or Totals(rollouts=len(ratios), tokens=ratio.numel(), max_completion_length=ratio.shape[1])
    gain = torch.tensor(advantages, dtype=torch.float64)
    result = surrogate(logprobs, old, torch.ones_like(ratio), gain, totals=totals, **options)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    return result, gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "low", "high"),
    [
        # d(ratio * A) / d(log p) = ratio * A where the clip does not bind, else 0; loss and gradient are negated.
        (1.0, 1.0, -1.0, -1.0, 0, 0),
        (1.0, -2.0, 2.0, 2.0, 0, 0),
        (1.1, 2.0, -2.2, -2.2, 0, 0),
        (2.0, 1.0, -1.2, 0.0, 0, 1),  # better, and already far more likely: held at 1 + 0.2
        (2.0, -1.0, 2.0, 2.0, 0, 0),  # worse, and more likely: the minimum keeps the whole pull back
        (0.5, 1.0, -0.5, -0.5, 0, 0),  # better, and less likely: likewise
        (0.5, -1.0, 0.8, 0.0, 1, 0),  # worse, and already far less likely: held at 1 - 0.2
        (2.0, 0.0, 0.0, 0.0, 0, 0),  # no advantage: nothing is clipped, as nothing was to be moved
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, low: int, high: int) -> None:
    result, found = of_ratios([[ratio]], [advantage])
    assert float(result.loss.detach()) == pytest.approx(loss)
    assert float(found) == pytest.approx(gradient)
    assert (int(result.clipped_low), int(result.clipped_high)) == (low, high)
    assert float(result.kl) == 0.0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("advantage", "loss", "gradient", "clipped"),
    [
        (1.0, -1.2, 0.0, 1),  # held at 1 + 0.2
        (0.0, 0.0, 0.0, 0),
        (-1.0, math.inf, math.inf, 0),  # e^89 itself, which the trainer reports as not finite
    ],
)
def test_a_ratio_that_overflows(level: str, advantage: float, loss: float, gradient: float, clipped: int) -> None:
    """e^89 = 4.5e38 is above the largest number of float32, 3.4e38."""
    logprobs = torch.zeros(1, 1, requires_grad=True)
    batch = Totals(rollouts=1, tokens=1, max_completion_length=1)
    result = surrogate(
        logprobs,
        torch.full((1, 1), -89.0),
        torch.ones(1, 1),
        torch.tensor([advantage]),
        totals=batch,
        importance_sampling_level=level,  # type: ignore[arg-type]
    )
    result.loss.backward()
    assert logprobs.grad is not None
    assert float(result.loss.detach()) == pytest.approx(loss)
    assert float(logprobs.grad) == gradient
    assert (int(result.clipped_low), int(result.clipped_high)) == (0, clipped)


def test_clip_range_has_two_ends() -> None:
    # 1.25 lies inside 1 + 0.3; 0.85 is held at 0.9 = 1 - 0.1 when it should fall further
    result, gradient = of_ratios([[1.25, 0.85]], [1.0], epsilon=0.1, epsilon_high=0.3)
    assert float(result.loss.detach()) == pytest.approx(-(1.25 + 0.85))
    assert (int(result.clipped_low), int(result.clipped_high)) == (0, 0)
    assert gradient.flatten().tolist() == pytest.approx([-1.25, -0.85])
    result, gradient = of_ratios([[1.25, 0.85]], [-1.0], epsilon=0.1, epsilon_high=0.3)
    assert float(result.loss.detach()) == pytest.approx(1.25 + 0.9)
    assert (int(result.clipped_low), int(result.clipped_high)) == (1, 0)
    assert gradient.flatten().tolist() == pytest.approx([1.25, 0.0])
    result, _ = of_ratios([[1.25, 0.85]], [1.0], epsilon=0.1)  # epsilon_high follows epsilon
    assert float(result.loss.detach()) == pytest.approx(-(1.1 + 0.85))


def test_sequence_level_is_one_ratio_an_answer() -> None:
    # 1.5 x 0.8 = 1.2, in reach of epsilon 0.25 and counted once, though each token alone would clip
    result, gradient = of_ratios([[1.5, 0.8]], [2.0], epsilon=0.25, importance_sampling_level="sequence")
    assert float(result.loss.detach()) == pytest.approx(-2.4)
    assert gradient.flatten().tolist() == pytest.approx([-2.4, -2.4])
    assert int(result.clipped_high) == 0
    result, gradient = of_ratios([[1.5, 0.8]], [2.0], epsilon=0.1, importance_sampling_level="sequence")
    assert float(result.loss.detach()) == pytest.approx(-2.2)
    assert gradient.flatten().tolist() == [0.0, 0.0]
    assert int(result.clipped_high) == 2  # both answer tokens are held
    # Token by token: 1.25 (held) + 0.8.
    result, _ = of_ratios([[1.5, 0.8]], [2.0], epsilon=0.25)
    assert float(result.loss.detach()) == pytest.approx(-2 * (1.25 + 0.8))


# Two answers, of 1 and 3 tokens, A = 1 and -2, every ratio 1, max_completion_length 4. Sums of ratio * A: 1 and -6.
RAGGED = torch.tensor([[1, 0, 0], [1, 1, 1]])
RAGGED_BATCH = Totals(rollouts=2, tokens=4, max_completion_length=4)


@pytest.mark.parametrize(
    ("level", "loss_type", "expected"),
    [
        ("token", "sum", -(1 - 6) / 2),  # over 2 rollouts
        ("token", "grpo", -(1 - 2) / 2),  # each answer's mean first
        ("token", "dr_grpo", -(1 - 6) / 8),  # over 2 x 4
        ("token", "dapo", -(1 - 6) / 4),  # over 4 tokens
        # One ratio 1 an answer. sum counts it once; the others with the weights that TRL gives to its tokens.
        ("sequence", "sum", -(1 - 2) / 2),
        ("sequence", "grpo", -(1 - 2) / 2),
        ("sequence", "dr_grpo", -(1 * 1 - 2 * 3) / 8),
        ("sequence", "dapo", -(1 * 1 - 2 * 3) / 4),
    ],
)
def test_loss_types_on_ragged_answers(level: Any, loss_type: Any, expected: float) -> None:
    logprobs, gain = torch.full((2, 3), OLD, dtype=torch.float64), torch.tensor([1.0, -2.0])
    options = {"loss_type": loss_type, "importance_sampling_level": level}
    result = surrogate(logprobs, logprobs, RAGGED, gain, totals=RAGGED_BATCH, **options)
    assert float(result.loss) == pytest.approx(expected)


def trl_loss(per_token: Tensor, mask: Tensor, loss_type: str, max_completion_length: int) -> Tensor:
    """The reductions of ``GRPOTrainer._compute_loss`` in TRL, without gradient accumulation."""
    if loss_type == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss_type == "dr_grpo":
        return (per_token * mask).sum() / (per_token.size(0) * max_completion_length)
    assert loss_type == "dapo"
    return (per_token * mask).sum() / mask.sum()


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_token_losses_and_kl_as_trl_computes_them(loss_type: Any) -> None:
    logprobs, old, mask, advantages, ref = random_answers()
    ratio = (logprobs - old).exp()
    per_token = -torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.3) * advantages[:, None])
    per_token = per_token + 0.1 * ((ref - logprobs).exp() - (ref - logprobs) - 1)
    result = surrogate(
        logprobs,
        old,
        mask,
        advantages,
        totals=Totals(rollouts=len(mask), tokens=int(mask.sum()), max_completion_length=9),
        epsilon=0.2,
        epsilon_high=0.3,
        loss_type=loss_type,
        beta=0.1,
        ref_logprobs=ref,
    )
    torch.testing.assert_close(result.loss, trl_loss(per_token, mask, loss_type, 9))


def test_token_weight_of_a_row_without_tokens_is_zero() -> None:
    # A truncated answer under mask_truncated_completions: no division by its length 0.
    mask = torch.tensor([[0, 0], [1, 1]])
    batch = Totals(rollouts=2, tokens=2, max_completion_length=2)
    for loss_type, weight in (("sum", 0.5), ("grpo", 0.25), ("dr_grpo", 0.25), ("dapo", 0.5)):
        expected = torch.tensor([[0.0, 0.0], [weight, weight]])
        assert torch.equal(token_weight(mask, loss_type, batch, torch.float32), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loss_type", "third"), [("sum", 3), ("grpo", 6), ("dr_grpo", 21), ("dapo", 6)])
def test_weights_have_the_precision_of_the_log_probs(loss_type: Any, third: int) -> None:
    # Two tokens an answer, 3 answers: 1/3, 1/6, 1/21 and 1/6 a token, none of which float32 has to 1e-9.
    mask = torch.ones(3, 2)
    batch = Totals(rollouts=3, tokens=6, max_completion_length=7)
    logprobs = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    gain = torch.ones(3, dtype=torch.float64)
    loss = surrogate(logprobs, logprobs.detach(), mask, gain, totals=batch, loss_type=loss_type).loss
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert gradient.flatten().tolist() == pytest.approx([-1 / third] * 6, rel=1e-15)


def random_answers(rows: int = 7, length: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logprobs (wanting gradients), old, mask, advantages, ref: ragged, in float64, many of them clipped."""
    logprobs = -torch.rand(rows, length, dtype=torch.float64) * 3
    old = logprobs + torch.randn(rows, length, dtype=torch.float64) * 0.4
    ref = logprobs + torch.randn(rows, length, dtype=torch.float64) * 0.4
    lengths = torch.tensor([1 + i % length for i in range(rows)])
    mask = (torch.arange(length) < lengths[:, None]).to(torch.float64)
    return logprobs.requires_grad_(), old, mask, torch.randn(rows, dtype=torch.float64), ref


def total_of(mask: Tensor) -> Totals:
    return Totals(rollouts=len(mask), tokens=int(mask.sum()), max_completion_length=6)


@pytest.mark.parametrize("garbage", [1e4, math.nan])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_contributes_nothing(loss_type: Any, level: Any, garbage: float) -> None:
    logprobs, old, mask, advantages, ref = random_answers()
    options: dict[str, Any] = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1}
    clean = surrogate(logprobs, old, mask, advantages, totals=total_of(mask), ref_logprobs=ref, **options)
    (expected,) = torch.autograd.grad(clean.loss, logprobs)
    padded = mask == 0
    assert torch.equal(expected[padded], torch.zeros(int(padded.sum()), dtype=torch.float64))
    dirty = logprobs.detach().masked_fill(padded, garbage).requires_grad_()
    found = surrogate(
        dirty,
        old.masked_fill(padded, -garbage),
        mask,
        advantages,
        totals=total_of(mask),
        ref_logprobs=ref.masked_fill(padded, 7.0),
        **options,
    )
    for name in ("loss", "kl", "clipped_low", "clipped_high"):
        assert torch.equal(getattr(found, name), getattr(clean, name)), name
    (gradient,) = torch.autograd.grad(found.loss, dirty)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_add_up_to_the_whole(loss_type: Any, level: Any) -> None:
    logprobs, old, mask, advantages, ref = random_answers()
    options: dict[str, Any] = {"loss_type": loss_type, "importance_sampling_level": level, "beta": 0.1}

    def parts_of(split: list[int], batch_of: Any) -> tuple[Tensor, Tensor, Tensor]:
        parts = [
            surrogate(
                logprobs[rows], old[rows], mask[rows], advantages[rows],
                totals=batch_of(mask[rows]), ref_logprobs=ref[rows], **options,
            )
            for rows in torch.arange(len(mask)).split(split)
        ]  # fmt: skip
        loss = torch.stack([part.loss for part in parts]).sum()
        counts = torch.stack([torch.stack([p.kl, p.clipped_low, p.clipped_high]) for p in parts]).sum(0)
        return loss, torch.autograd.grad(loss, logprobs)[0], counts

    whole = parts_of([7], lambda _: total_of(mask))
    assert whole[2].min() > 0, "nothing is clipped: the counts are not tested"
    for split in ([3, 1, 3], [1] * 7):
        for found, expected in zip(parts_of(split, lambda _: total_of(mask)), whole, strict=True):
            torch.testing.assert_close(found, expected)
    # With totals of the micro-batch in place of the whole batch's, they do not.
    assert not torch.allclose(parts_of([3, 1, 3], total_of)[0], whole[0])


@pytest.mark.parametrize("level", LEVELS)
def test_gradient_at_the_old_policy_is_the_policy_gradient(level: Any) -> None:
    # A policy that can be written down: softmax of one logit vector, K answers of two tokens, some of one.
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[0, 1], [4, 4], [2, 3], [1, 0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]], dtype=torch.float64)
    advantages = torch.tensor([0.75, -0.25, 1.5, -2.0], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)[tokens]
    batch = Totals(rollouts=4, tokens=6, max_completion_length=2)
    loss = surrogate(logprobs, logprobs.detach(), mask, advantages, totals=batch, importance_sampling_level=level).loss
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    # d log softmax_a / d logits = onehot(a) - pi, summed over an answer's tokens, by hand
    pi = logits.detach().softmax(-1)
    score = torch.nn.functional.one_hot(tokens, 5) - pi  # [4, 2, 5]
    expected = -((score * mask[..., None]).sum(1) * advantages[:, None]).mean(0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_is_the_finite_difference(loss_type: Any, level: Any) -> None:
    logprobs, old, mask, advantages, ref = random_answers()

    def loss(x: Tensor) -> Tensor:
        return surrogate(
            x, old, mask, advantages, totals=total_of(mask), ref_logprobs=ref,
            loss_type=loss_type, importance_sampling_level=level, beta=0.1,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (logprobs,))


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
