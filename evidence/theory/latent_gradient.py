"""Given its mask, the latent recurrence is an ordinary differentiable function of the parameters."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dropout_grpo.exploration.base import Noise
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.state import LatentState, map_cache
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.toy import QUESTIONS, Toy

Think = Callable[[LatentModel, LatentState, int, Noise | None], LatentState]
_STEP = 1e-5  # truncation 1e-10 and rounding 1e-11 of values near 1
_TOLERANCE = 1e-7


def detach_thoughts(model: LatentModel, state: LatentState, steps: int, noise: Noise | None) -> LatentState:
    """A wrong variant: thoughts are fed back as constants."""
    for _ in range(steps):
        state = model.think(replace(state, hidden=state.hidden.detach()), 1, noise)
    return state


def detach_everything(model: LatentModel, state: LatentState, steps: int, noise: Noise | None) -> LatentState:
    """A wrong variant: thoughts and the cache are constants, so only the last step and the answer have gradients."""
    for _ in range(steps):
        cache = map_cache(state.cache, torch.Tensor.detach)
        state = model.think(replace(state, hidden=state.hidden.detach(), cache=cache), 1, noise)
    return state


def check_latent_gradient(toy: Toy, *, think: Think = LatentModel.think) -> Check:
    """Compare back-propagation with central differences in float64, for every entry of every parameter tensor.

    Args:
        toy: the toy.
        think: the function whose gradient is checked; the differences are those of ``LatentModel.think``.
    """
    model = toy.setting.model
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())

    def gradient(function: Think) -> list[Tensor]:
        return list(torch.autograd.grad(_value(toy, function), parameters, allow_unused=True, materialize_grads=True))

    differences = [_central(toy, parameter) for parameter in parameters]
    scale = max(float(d.abs().max()) for d in differences)
    rows: list[Row] = []
    for name, difference, *found in zip(
        names, differences, gradient(think), gradient(detach_thoughts), gradient(detach_everything), strict=True
    ):
        errors = [float((f - difference).abs().max()) / scale for f in found]
        short = name.removeprefix("model.transformer.")
        rows.append([short, difference.numel(), float(difference.abs().max()) / scale, *errors])
    worst = max(row[3] for row in rows)
    return Check(
        id="latent_gradient.differences",
        claim="Given the mask, the gradient through all thoughts and the cache is that of finite differences.",
        quantity="largest error of an entry, in units of the largest entry, over every parameter",
        exact=0.0,
        estimate=worst,
        error=worst,
        verdict=holds_if(worst < _TOLERANCE),
        detail={
            "columns": [
                "parameter",
                "entries",
                "largest entry",
                "error",
                "error, thoughts detached",
                "error, thoughts and cache detached",
            ],
            "rows": rows,
        },
    )


def _value(toy: Toy, think: Think) -> Tensor:
    """A scalar that depends on every parameter: log-probabilities of two answers per question, each under its mask."""
    setting, model = toy.setting, toy.setting.model
    k = 4
    seeds = torch.arange(QUESTIONS * k)
    noise = model.noise(setting.exploration, seeds)
    state = model.read(setting.prompts.input_ids, setting.prompts.attention_mask).repeat(k)
    state = think(model, state, model.latent_steps, noise)
    answers = toy.answers[1 + 5 * seeds % (len(toy.answers) - 1)]  # never the empty answer
    logprobs = model.score(state, answers, temperature=setting.temperature, noise=noise)
    return (logprobs * torch.linspace(-1.0, 1.0, logprobs.numel(), dtype=torch.float64).view_as(logprobs)).sum()


@torch.no_grad()
def _central(toy: Toy, parameter: Tensor) -> Tensor:
    """Central differences for each entry of one parameter tensor, which is restored."""
    flat, difference = parameter.view(-1), torch.zeros(parameter.numel(), dtype=torch.float64)
    for i in range(parameter.numel()):
        original = flat[i].item()
        flat[i] = original + _STEP
        above = _value(toy, LatentModel.think)
        flat[i] = original - _STEP
        below = _value(toy, LatentModel.think)
        flat[i] = original
        difference[i] = (above - below) / (2 * _STEP)
    return difference.view_as(parameter)
