"""The library's fast paths and the oracle, with the same tiny weights, prompts, seeds and masks.

The engine runs padded batches with a cache, groups on one copy of their prompt, and masks from tensors of
seeds. The oracle runs one row at a time with neither padding nor cache, an attention that is not ours, and
masks of ``splitmix``.

How close is close: a ``difference`` is relative to a tensor's largest entry where that is above 1.
- Float64 is held to 1e-10 (seen: 2e-13). Nothing may round to float32 on the way for that, but transformers'
  RMSNorms do: both sides round alike in the forward pass, but gradients add up over positions in a different
  order and differ by 4e-7. ``widen`` takes that rounding out of both sides.
- Float32 rounds to 6e-8. Values are held to 1e-5 (seen: 4e-6), gradients to 1e-4: through six thoughts of a
  random Llama or Qwen the float32 oracle is itself 2e-5 away from the float64 one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from dropout_grpo.exploration import Exploration, NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.rollout import Prompts
from dropout_grpo.latent.tokens import END, LATENT, START, pad_left
from helpers import splitmix
from helpers.oracle import Factors, OracleResult, identity, no_noise, oracle_run
from helpers.tiny import EOS_ID, EXTRA_KINDS, KINDS, tiny_model, tiny_tokenizer

START_ID, LATENT_ID, END_ID = 28, 29, 30
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
GRADIENT_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}

QUESTIONS = [[5, 9, 11, 12, 6, START_ID], [7, START_ID], [22, 4, 13, START_ID]]  # ragged on purpose
ANSWERS = [  # two for each question, as K = 2 rollouts would give
    *([15, 7, 3, EOS_ID], [11, 11, 0, 33], [9, EOS_ID, 5, 8]),
    *([30, 2, 39, 17], [6, 6, 6, 6], [21, 14, EOS_ID, 0]),
]
SEEDS = torch.tensor([[3, -4], [5, 2**63 - 1], [-(2**63), 8]])

every_kind = pytest.mark.parametrize("kind", KINDS + EXTRA_KINDS)

KEEPS_ITS_ATTENTION = ("gemma2", "gemma3_text", "mistral", "qwen2_window")
"""Sliding windows and soft caps need the model's own attention, so groups copy their prompt."""

both_caches = pytest.mark.parametrize("copy_prompts", [False, True], ids=["shared", "copied"])
"""Groups share their prompt's cache, or copy it."""

WIDTHS = {"attention": 16, "mlp": 16, "mlp_hidden": 24, "heads": 4, "thought": 16}  # of all tiny models but opt_350m
WIDTHS |= {"values": 16}  # of Llama and Qwen2 the first 8: four query heads of width 4 share two value heads
ALL_SITES = ("residual", "mlp_hidden", "heads", "thought")
READING_SITES = ("values", "attention_weights")
"""What a position reads from others is masked; of the kinds above only values."""
POSITIONS = 64
"""Of all tiny models."""
ALL_PHASES = ("prompt", "latent", "answer")

OTHERS = [[9, 2, 28], [31, 7, 7, 28], [6, 28]]
"""Three questions in addition to ``QUESTIONS``; the longest of them is shorter."""
HELD = SharedDropout(0.3, ALL_SITES, ("latent", "answer"))
EXPLORATIONS = {
    "none": NoExploration(),
    "held": HELD,
    "everywhere": SharedDropout(0.3, ALL_SITES, ALL_PHASES),
    "per_step": PerStepDropout(0.3, (*ALL_SITES, *READING_SITES), ("latent", "answer")),
    "every_site": SharedDropout(0.3, (*ALL_SITES, *READING_SITES), ("latent", "answer")),
}


def latent_model(
    kind: str,
    dtype: torch.dtype = torch.float64,
    *,
    latent_steps: int = 2,
    thought: str = "hidden_state",
    copy_prompts: bool = False,
    **options: Any,
) -> LatentModel:
    """The engine on a tiny model; ``options`` are those of ``tiny_model``.

    ``copy_prompts`` makes groups copy their prompt's cache where they would share it.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [START, LATENT, END]})
    attention = WIDE if kind in KEEPS_ITS_ATTENTION else "eager"
    plain = widen(tiny_model(kind, dtype, attn_implementation=attention, **options))
    model = LatentModel(plain, tokenizer, latent_steps=latent_steps, thought=thought)
    model.shares_prefix = model.shares_prefix and not copy_prompts
    return model


def oracle_model(kind: str, dtype: torch.dtype = torch.float64, **options: Any) -> PreTrainedModel:
    """The same weights under torch's own attention, which keeps the dtype it is given.

    Gemma 2 caps its scores, which torch's attention cannot.
    """
    attention = WIDE if kind == "gemma2" else "sdpa"
    return widen(tiny_model(kind, dtype, attn_implementation=attention, **options))


def widen(model: PreTrainedModel) -> PreTrainedModel:
    """Let the RMSNorms of a float64 model compute in float64; nothing changes in another dtype."""
    for module in model.modules() if model.dtype == torch.float64 else ():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_rms_norm, module)  # type: ignore[method-assign, assignment]
    return model


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    gemma = type(module).__name__.startswith("Gemma")  # its gain is what is added to 1
    eps = module.eps if gemma else module.variance_epsilon
    gain = 1.0 + module.weight if gemma else module.weight
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain


WIDE = "softmax_in_its_own_dtype"
"""Attention as transformers' eager one, but for the softmax. That one takes it in float32, in which the lowest
float64, a mask's minus infinity, is minus infinity, and a padding row that sees nothing becomes NaN."""


def wide_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [B, H, L, E], key and value [B, N, S, E] -> [B, L, H, E]."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    scores = torch.einsum("bhle,bhse->bhls", query, key) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    return torch.einsum("bhls,bhse->blhe", scores.softmax(-1), value), None


AttentionInterface.register(WIDE, wide_attention)
AttentionMaskInterface.register(WIDE, eager_mask)


def prompts(rows: Sequence[Sequence[int]] = QUESTIONS) -> Prompts:
    """Left-padded."""
    return Prompts(*pad_left(rows, 0, "cpu"))


def reference_factors(
    seed: int, exploration: SharedDropout, *, per_step: bool = False, thought_width: int = WIDTHS["thought"]
) -> Factors:
    """The oracle's masks of one rollout, from Python's integers."""
    widths = {**WIDTHS, "thought": thought_width}
    kinds = set(exploration.sites) | ({"attention", "mlp"} if "residual" in exploration.sites else set())
    names = [f"layers.{i}.{kind}" for i in range(2) for kind in kinds - {"residual", "thought"}]
    names += ["thought"] if "thought" in kinds else []

    def factors(phase: str, step: int) -> Mapping[str, Tensor]:
        if phase not in exploration.phases:
            return {}
        drawn_from = splitmix.fold(seed, step + 1) if per_step and phase == "latent" else seed
        return {
            name: reference_mask(drawn_from, name, exploration.p, widths.get(name.split(".")[-1])) for name in names
        }

    return factors


@lru_cache(maxsize=4096)
def reference_mask(seed: int, site: str, p: float, width: int | None = None) -> Tensor:
    """[F] of a tiny model's site, or [H, positions] of attention weights, float64."""
    if by_key := site.endswith("attention_weights"):
        width = POSITIONS * WIDTHS["heads"]  # factor (position, head) is number position * H + head
    features = range(width or WIDTHS[site.split(".")[-1]])
    factors = [0.0 if splitmix.dropped(seed, site, i, p) else 1.0 / (1.0 - p) for i in features]
    drawn = torch.tensor(factors, dtype=torch.float64)
    return drawn.view(POSITIONS, -1).T if by_key else drawn


def reference_noises(
    exploration: SharedDropout, *, per_step: bool = False, thought_width: int = WIDTHS["thought"]
) -> list[Factors]:
    """Of the rows of ``SEEDS``."""
    options = {"per_step": per_step, "thought_width": thought_width}
    return [reference_factors(seed, exploration, **options) for seed in SEEDS.flatten().tolist()]


def oracle_rows(
    model: PreTrainedModel,
    latent_steps: int,
    noises: Sequence[Factors] = (no_noise,) * 6,
    *,
    temperature: float = 1.0,
    thought: Callable[[Tensor], Tensor] = identity,
) -> tuple[list[Tensor], Tensor]:
    """The oracle on ``ANSWERS``, two to each of ``QUESTIONS``: h_0 .. h_n, each [6, D], and log-probs [6, L]."""
    rows: list[OracleResult] = []
    for row, factors in enumerate(noises):
        question, answer = QUESTIONS[row // 2], ANSWERS[row]
        options = {"factors": factors, "temperature": temperature, "thought": thought}
        rows.append(oracle_run(model, question, latent_steps, END_ID, answer, **options))
    hiddens = [torch.stack(step) for step in zip(*(row.hiddens for row in rows), strict=True)]
    return hiddens, torch.stack([row.logprobs for row in rows])


def engine_rows(
    model: LatentModel, exploration: Exploration, *, temperature: float = 1.0, seeds: Tensor = SEEDS
) -> tuple[list[Tensor], Tensor]:
    """As ``oracle_rows``, by the engine's verbs: what ``replay`` does, one thought at a time."""
    noise, given, k = model.noise(exploration, seeds.flatten()), prompts(), seeds.shape[1]
    if "prompt" in exploration.phases:
        ids, mask = (t.repeat_interleave(k, dim=0) for t in (given.input_ids, given.attention_mask))
        state = model.read(ids, mask, noise)
    else:
        state = model.read(given.input_ids, given.attention_mask).repeat(k)
    hiddens = [state.hidden[:, 0]]
    for _ in range(model.latent_steps):
        state = model.think(state, 1, noise)
        hiddens.append(state.hidden[:, 0])
    return hiddens, model.score(state, torch.tensor(ANSWERS), temperature=temperature, noise=noise)


def gradients(model: nn.Module, logprobs: Tensor) -> dict[str, Tensor]:
    """By parameter name, of a sum of ``logprobs`` [R, L] in which every entry has a weight of its own.

    So a row in another's place changes it, and a token in the next one's.
    """
    weights = torch.linspace(-1.0, 2.0, logprobs.numel(), dtype=logprobs.dtype, device=logprobs.device)
    parameters = dict(model.named_parameters())
    grads = torch.autograd.grad((logprobs.flatten() * weights).sum(), list(parameters.values()), allow_unused=True)
    zero = (torch.zeros_like(parameter) for parameter in parameters.values())
    filled = (z if gradient is None else gradient for gradient, z in zip(grads, zero, strict=True))
    return dict(zip(parameters, filled, strict=True))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest |a - b|, relative to the largest |b| where that is above 1. NaN is infinitely different."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    gap = ((a - b).abs().max() / b.abs().max().clamp(min=1.0)).item()
    return gap if gap == gap else float("inf")


def differences(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest ``difference`` of all entries."""
    assert a.keys() == b.keys(), f"{sorted(a.keys() ^ b.keys())} on one side only"
    return max(difference(a[name], b[name]) for name in a)
