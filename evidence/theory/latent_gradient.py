"""Given its mask, the latent recurrence is an ordinary differentiable function of the parameters."""

import torch
from torch import Tensor

from evidence.theory.check import Check, Row
from evidence.theory.toy import QUESTIONS, TEMPERATURE, Toy

_STEP = 1e-5  # truncation 1e-10 and rounding 1e-11 of values near 1
_TOLERANCE = 1e-7


def check_latent_gradient(toy: Toy) -> Check:
    """Compare back-propagation with central differences in float64, for every entry of every parameter tensor."""
    names, parameters = zip(*toy.model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(_value(toy), parameters, allow_unused=True, materialize_grads=True)
    differences = [_central(toy, parameter) for parameter in parameters]
    scale = max(float(difference.abs().max()) for difference in differences)
    rows: list[Row] = []
    for name, gradient, difference in zip(names, gradients, differences, strict=True):
        largest, error = (float(t.abs().max()) / scale for t in (difference, gradient - difference))
        rows.append([name.removeprefix("model.transformer."), difference.numel(), largest, error])
    worst = max(row[3] for row in rows)
    return Check(
        id="latent_gradient.differences",
        claim="Given the mask, the gradient through all thoughts and the cache is that of finite differences.",
        quantity="largest error of an entry, in units of the largest entry, over every parameter",
        expected=0.0,
        value=worst,
        holds=worst < _TOLERANCE,
        columns=["parameter", "entries", "largest entry", "error"],
        rows=rows,
    )


def _value(toy: Toy) -> Tensor:
    """A scalar that depends on every parameter: log-probabilities of answers, each under its own mask."""
    model, k = toy.model, 4
    seeds = torch.arange(QUESTIONS * k)
    noise = model.noise(toy.exploration, seeds)
    state = model.read(toy.prompts.input_ids, toy.prompts.attention_mask).repeat(k)
    state = model.think(state, model.latent_steps, noise)
    answers = toy.answers[1 + 5 * seeds % (len(toy.answers) - 1)]  # never the empty answer
    logprobs = model.score(state, answers, temperature=TEMPERATURE, noise=noise)
    return (logprobs * torch.linspace(-1.0, 1.0, logprobs.numel(), dtype=torch.float64).view_as(logprobs)).sum()


@torch.no_grad()
def _central(toy: Toy, parameter: Tensor) -> Tensor:
    """Central differences for each entry of one parameter tensor, which is restored."""
    flat, difference = parameter.view(-1), torch.zeros(parameter.numel(), dtype=torch.float64)
    for i in range(parameter.numel()):
        original = flat[i].item()
        flat[i] = original + _STEP
        above = _value(toy)
        flat[i] = original - _STEP
        below = _value(toy)
        flat[i] = original
        difference[i] = (above - below) / (2 * _STEP)
    return difference.view_as(parameter)
