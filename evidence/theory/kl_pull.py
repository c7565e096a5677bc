"""The gradient of the objective's KL term, and the success rate at which it balances the rewards.

The mean of the k3 estimate is KL(pi || pi_ref). The mean of its gradient, taken through the log-probabilities of
sampled tokens, is grad KL(pi_ref || pi): the score has mean zero, so E[(1 - e^gap) grad log pi] = -E_ref[grad log pi].
For a policy with success rate rho and a reference with rho_0, ascent stops where

    (K-1)/K rho (1 - rho) = beta (rho - rho_0)

The balance depends on beta and not on the learning rate. With a beta that follows the learning rate, as in the paper,
it moves during training, and a run ends at the balance of its last beta.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from dropout_grpo.config.grpo import BetaSchedule, KLEstimator
from dropout_grpo.rl.objective import Batch, surrogate
from dropout_grpo.training.optimizer import build_schedule
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.gradients import flat_gradient, relative
from evidence.theory.law import Law, answer_logprobs
from evidence.theory.perturbed import moved
from evidence.theory.toy import Masks, Toy
from evidence.theory.unbiased import EXACT

_K = 8
_REFERENCE_STEP = 0.1  # distance of the reference's weights from the policy's, as a factor of random normal numbers
_QUESTION = 1
_BATCH = Batch(rollouts=1, tokens=1, max_completion_length=1)  # sums are not divided
_UPDATES, _RATE, _LAST_RATE = 800, 5.0, 0.1
_BETA, _START = 0.5, 0.3
_NEAR = 0.01


def check_kl_gradient(
    toy: Toy, masks: Masks, laws: Sequence[Law], *, kl_estimator: KLEstimator = "k3", kl_delta: float = 5.0
) -> Check:
    """Compare the mean gradient of the library's KL term with both directions of the KL, by exact sums.

    Args:
        toy: the toy.
        masks: all masks.
        laws: the law of each question.
        kl_estimator: the estimator under test.
        kl_delta: its delta, under test.
    """
    law, model = laws[_QUESTION], toy.setting.model
    generator = torch.Generator().manual_seed(0)
    size = law.scores.shape[-1]
    step = _REFERENCE_STEP * torch.randn(size, generator=generator, dtype=torch.float64)
    with moved(model, step), torch.no_grad():
        reference = answer_logprobs(toy, masks, toy.exploration, _QUESTION)  # [M, A, L]
    shape = law.logprobs.shape
    new = law.logprobs.flatten(0, 1).clone().requires_grad_()
    part = surrogate(
        new,
        law.logprobs.flatten(0, 1),
        law.answer_mask.expand(shape).flatten(0, 1),
        torch.zeros(len(new), dtype=torch.float64),
        batch=_BATCH,
        beta=1.0,
        ref_logprobs=reference.flatten(0, 1),
        kl_estimator=kl_estimator,
        kl_delta=kl_delta,
    )
    (slope,) = torch.autograd.grad(part.loss, new)
    found = torch.einsum("ma,mal,malp->p", law.probability, slope.view(shape), law.scores)
    rows: list[Row] = []
    for direction in ("reference to policy", "policy to reference"):
        logprobs = answer_logprobs(toy, masks, toy.exploration, _QUESTION)
        expected = flat_gradient(_token_kl(law, toy.answers, logprobs, reference, direction), model)
        rows.append([direction, float(expected.norm()), relative(found - expected, expected)])
    return Check(
        id="kl.gradient",
        claim="The k3 term pulls along the gradient of KL(reference || policy), whose prefixes are the policy's.",
        quantity="|E of the term's gradient - grad KL| / |grad KL|",
        exact=0.0,
        estimate=rows[0][2],
        error=rows[0][2],
        verdict=holds_if(rows[0][2] < EXACT),
        detail={"columns": ["KL from", "|grad KL|", "relative error"], "rows": rows},
    )


def _token_kl(law: Law, answers: Tensor, logprobs: Tensor, reference: Tensor, direction: str) -> Tensor:
    """Sum over tokens of the KL between next-token distributions, prefixes drawn from the policy and held.

    Summing over answers a with weight pi(a_<t) p(a_t | a_<t) counts every prefix once for each continuation of a_t, so
    each token's term is divided by the number of answers that share the prefix and the token.
    """
    first = (law.answer_mask.cumsum(-1) == 1) & law.answer_mask  # [A, L], position 0
    lengths = law.answer_mask.sum(-1)
    once = torch.ones(len(lengths), 1, dtype=torch.float64)
    share = torch.where(first & (lengths > 1)[:, None], once / _second_tokens(answers[lengths > 1]), once)
    before = (logprobs.cumsum(-1) - logprobs).exp().detach()  # [M, A, L], probability of the prefix
    weight = law.weights[:, None, None] * before * share * law.answer_mask
    if direction == "reference to policy":
        return (weight * reference.exp() * (reference - logprobs)).sum()
    return (weight * logprobs.exp() * (logprobs - reference)).sum()


def _second_tokens(longer: Tensor) -> int:
    """Number of answers that share a first token, of the answers [A, L] with more than one token."""
    return len(longer) // len(longer[:, 0].unique())


def balance(beta: float, start: float, k: int = _K, *, reverse: bool = False) -> float:
    """Success rate rho at which rewards and KL balance.

    Args:
        beta: weight of the KL.
        start: success rate of the reference.
        k: rollouts per group.
        reverse: the balance for a gradient of KL(policy || reference), rho proportional to rho_0 e^(r / beta).
    """
    gain = (k - 1) / k
    if reverse:
        odds = start / (1 - start) * torch.tensor(gain / beta, dtype=torch.float64).exp()
        return float(odds / (1 + odds))
    linear = gain - beta  # gain rho^2 - (gain - beta) rho - beta rho_0 = 0
    return (linear + sqrt(linear**2 + 4 * gain * beta * start)) / (2 * gain)


def check_balance(*, beta_schedule: BetaSchedule = "learning_rate", reverse: bool = False) -> Check:
    """Ascent along the library's expected gradient on one question, with a cosine to a tenth of the learning rate.

    Args:
        beta_schedule: the schedule under test.
        reverse: expect the balance for the other direction of the KL, under test.
    """
    rows: list[Row] = []
    for schedule in ("constant", beta_schedule):
        last_beta, end = _ascend(schedule)
        rows.append([schedule, _BETA, last_beta, end, balance(last_beta, _START, reverse=reverse)])
    expected = balance(_BETA * _LAST_RATE, _START, reverse=reverse)
    found = rows[1][3]
    return Check(
        id="kl.balance",
        claim="With beta following the learning rate, a run ends at the balance of its last beta, not of its first.",
        quantity="success rate at the end, K = 8, from 0.3 with beta 0.5 falling to a tenth",
        exact=expected,
        estimate=found,
        error=abs(found - expected),
        verdict=holds_if(abs(found - expected) < _NEAR),
        detail={
            "columns": ["beta schedule", "first beta", "last beta", "success rate at the end", "balance of last beta"],
            "rows": rows,
            "paper": [balance(beta, 0.27, 32) for beta in (5e-3, 5e-4)],
        },
    )


def _ascend(beta_schedule: BetaSchedule) -> tuple[float, float]:
    """Last beta and success rate of a policy with one logit, after ascent along the expected gradient."""
    logit = torch.tensor([torch.logit(torch.tensor(_START, dtype=torch.float64))], requires_grad=True)
    optimizer = torch.optim.SGD([logit], lr=_RATE)
    schedule = build_schedule(optimizer, "cosine", warmup_steps=0, updates=_UPDATES, min_lr_rate=_LAST_RATE)
    reference = _two_answers(logit.detach())
    beta: float = _BETA
    for _ in range(_UPDATES):
        share = float(schedule.get_last_lr()[0]) / _RATE
        beta = _BETA * (share if beta_schedule == "learning_rate" else 1.0)
        logprobs = _two_answers(logit)  # [2, 1]: right, wrong
        rate = logprobs.detach().exp().flatten()
        gains = (_K - 1) / _K * (torch.tensor([1.0, 0.0], dtype=torch.float64) - rate[0])  # E[A | reward]
        leaf = logprobs.detach().clone().requires_grad_()
        part = surrogate(
            leaf,
            leaf.detach(),
            torch.ones(2, 1),
            gains,
            batch=_BATCH,
            beta=beta,
            ref_logprobs=reference,
        )
        (slope,) = torch.autograd.grad(part.loss, leaf)
        optimizer.zero_grad()
        logprobs.backward(slope * rate[:, None])  # each answer counts with its probability
        optimizer.step()
        schedule.step()
    return beta, float(torch.sigmoid(logit.detach()))


def _two_answers(logit: Tensor) -> Tensor:
    """Log-probabilities of the right and the wrong answer, [2, 1]."""
    return torch.nn.functional.logsigmoid(torch.stack([logit, -logit]))
