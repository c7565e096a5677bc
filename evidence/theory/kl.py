"""The gradient of the objective's KL term, and the success rate at which it balances the rewards.

The mean of the k3 estimate is KL(pi || pi_ref). The mean of its gradient, taken through the log-probabilities of
sampled tokens, is grad KL(pi_ref || pi): the score has mean zero, so E[(1 - e^gap) grad log pi] = -E_ref[grad log pi].
For a policy with success rate rho and a reference with rho_0, ascent stops where

    (K-1)/K rho (1 - rho) = beta (rho - rho_0)

The balance depends on beta and not on the learning rate. With a beta that follows the learning rate, as in the paper,
it moves during training, and a run ends at the balance of its last beta.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.rl.objective import Totals, surrogate
from dropout_grpo.rl.reference import scheduled_beta
from dropout_grpo.training.optimizer import build_schedule
from evidence.theory.check import Check, Row
from evidence.theory.sums import EXACT, relative
from evidence.theory.toy import Exact, Law, answer_logprobs, flat_gradient, moved

_K = 8
_REFERENCE_STEP = 0.1  # distance of the reference's weights from the policy's, as a factor of random normal numbers
_QUESTION = 1
_BATCH = Totals(rollouts=1, tokens=1, max_completion_length=1)  # sums are not divided
_UPDATES, _RATE, _LAST_RATE = 800, 5.0, 0.1
_BETA, _START = 0.5, 0.3
_NEAR = 0.01


def check_kl_gradient(exact: Exact, **options: Any) -> Check:
    """Compare the mean gradient of the library's KL term with both directions of the KL, by exact sums.

    Args:
        exact: the toy.
        **options: options of ``rl.objective.surrogate``, under test.
    """
    toy, law = exact.toy, exact.laws[_QUESTION]
    generator = torch.Generator().manual_seed(0)
    step = _REFERENCE_STEP * torch.randn(law.scores.shape[-1], generator=generator, dtype=torch.float64)
    with moved(toy.model, step), torch.no_grad():
        reference = answer_logprobs(toy, exact.masks, _QUESTION)  # [M, A, L]
    shape = law.logprobs.shape
    new = law.logprobs.flatten(0, 1).clone().requires_grad_()
    part = surrogate(
        new,
        law.logprobs.flatten(0, 1),
        law.answer_mask.expand(shape).flatten(0, 1),
        torch.zeros(len(new), dtype=torch.float64),
        totals=_BATCH,
        beta=1.0,
        ref_logprobs=reference.flatten(0, 1),
        **options,
    )
    (slope,) = torch.autograd.grad(part.loss, new)
    mean = torch.einsum("ma,mal,malp->p", law.probability, slope.view(shape), law.scores)
    rows: list[Row] = []
    for direction in ("reference to policy", "policy to reference"):
        logprobs = answer_logprobs(toy, exact.masks, _QUESTION)
        gradient = flat_gradient(_token_kl(law, toy.answers, logprobs, reference, direction), toy.model)
        rows.append([direction, float(gradient.norm()), relative(mean - gradient, gradient)])
    error = rows[0][2]
    return Check(
        id="kl.gradient",
        claim="The k3 term pulls along the gradient of KL(reference || policy), whose prefixes are the policy's.",
        quantity="|E of the term's gradient - grad KL| / |grad KL|",
        expected=0.0,
        value=error,
        holds=error < EXACT,
        columns=["KL from", "|grad KL|", "relative error"],
        rows=rows,
    )


def _token_kl(law: Law, answers: Tensor, logprobs: Tensor, reference: Tensor, direction: str) -> Tensor:
    """Sum over tokens of the KL between next-token distributions. Prefixes are drawn from the policy, without gradient.

    Summing over answers a with weight pi(a_<t) p(a_t | a_<t) counts the first token once for each second one, so its
    term is divided by the number of answers that share it.
    """
    shared = (answers[:, None, 0] == answers[None, :, 0]).sum(1).double()  # [A], answers with the same first token
    share = torch.stack([1 / shared, torch.ones_like(shared)], dim=1)  # [A, L]
    before = (logprobs.cumsum(-1) - logprobs).exp().detach()  # [M, A, L], probability of the prefix
    weight = law.weights[:, None, None] * before * share * law.answer_mask
    if direction == "reference to policy":
        return (weight * reference.exp() * (reference - logprobs)).sum()
    return (weight * logprobs.exp() * (logprobs - reference)).sum()


def balance(beta: float, start: float, k: int = _K) -> float:
    """Success rate rho at which rewards and KL balance.

    Args:
        beta: weight of the KL.
        start: success rate of the reference.
        k: rollouts per group.
    """
    gain = (k - 1) / k
    linear = gain - beta  # gain rho^2 - (gain - beta) rho - beta rho_0 = 0
    return (linear + sqrt(linear**2 + 4 * gain * beta * start)) / (2 * gain)


def check_balance() -> Check:
    """Ascent along the library's expected gradient on one question, with a cosine to a tenth of the learning rate."""
    rows: list[Row] = []
    for schedule in ("constant", "learning_rate"):
        last_beta, end = _ascend(follows=schedule == "learning_rate")
        rows.append([schedule, _BETA, last_beta, end, balance(last_beta, _START)])
    expected, end = balance(_BETA * _LAST_RATE, _START), rows[1][3]
    return Check(
        id="kl.balance",
        claim="With beta following the learning rate, a run ends at the balance of its last beta, not of its first.",
        quantity="success rate at the end, K = 8, from 0.3 with beta 0.5 falling to a tenth",
        expected=expected,
        value=end,
        holds=abs(end - expected) < _NEAR,
        columns=["beta schedule", "first beta", "last beta", "success rate at the end", "balance of last beta"],
        rows=rows,
    )


def _ascend(*, follows: bool) -> tuple[float, float]:
    """Last beta and success rate of a policy with one logit, after ascent along the expected gradient.

    Args:
        follows: beta follows the learning rate.
    """
    logit = torch.tensor([torch.logit(torch.tensor(_START, dtype=torch.float64))], requires_grad=True)
    optimizer = torch.optim.SGD([logit], lr=_RATE)
    schedule = build_schedule(optimizer, "cosine", warmup_steps=0, updates=_UPDATES, min_lr_rate=_LAST_RATE)
    reference = _two_answers(logit.detach())
    config = GRPOOptions(beta=_BETA, beta_schedule="learning_rate" if follows else "constant", learning_rate=_RATE)
    beta = config.beta
    for _ in range(_UPDATES):
        beta = scheduled_beta(config, float(schedule.get_last_lr()[0]))
        logprobs = _two_answers(logit)  # [2, 1]: right, wrong
        rate = logprobs.detach().exp().flatten()
        gains = (_K - 1) / _K * (torch.tensor([1.0, 0.0], dtype=torch.float64) - rate[0])  # E[A | reward]
        new = logprobs.detach().clone().requires_grad_()
        part = surrogate(new, new.detach(), torch.ones(2, 1), gains, totals=_BATCH, beta=beta, ref_logprobs=reference)
        (slope,) = torch.autograd.grad(part.loss, new)
        optimizer.zero_grad()
        logprobs.backward(slope * rate[:, None])  # each answer counts with its probability
        optimizer.step()
        schedule.step()
    return beta, float(torch.sigmoid(logit.detach()))


def _two_answers(logit: Tensor) -> Tensor:
    """Log-probabilities of the right and the wrong answer, [2, 1]."""
    return torch.nn.functional.logsigmoid(torch.stack([logit, -logit]))
