"""The published way: one row at a time, without a cache. Each thought and sampled token runs the whole prefix again.

Each function runs the first ``rows`` rows; the benchmark runs a few and scales their time. The way is not made slower
than necessary: the language-model head runs only for answer tokens, and scored answers share one pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dropout_grpo.exploration.base import Noise
from dropout_grpo.exploration.sites import THOUGHT_SITE
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import DecodingStrategy, Greedy, Sampling
from dropout_grpo.latent.head import at_least_float32
from dropout_grpo.rl.objective import Totals, surrogate
from evidence.bench.workload import TEMPERATURE, Workload

Parts = list[tuple[Mapping[str, Tensor], int]]
"""Factors and length of each part of a row: prompt, each thought, answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row after its thoughts."""

    embeds: Tensor  # [1, S + n, D]
    parts: Parts
    noise: Noise | None


def rollouts(work: Workload, rows: int) -> tuple[Tensor, Tensor]:
    """Token ids and log-probs, [rows, L] each."""
    made = []
    with torch.no_grad(), autocast(work.model.device, work.setting.bf16):
        for ids, seed in _rows(work, rows):
            strategy = Sampling(seed.to(work.model.device), TEMPERATURE)
            made.append(_decode(work, _think(work, ids, _noise(work, seed)), strategy))
    return torch.cat([ids for ids, _ in made]), torch.cat([logprobs for _, logprobs in made])


def update(work: Workload, rows: int) -> float:
    """Back-propagates the first rows' share of the loss through the reference model; returns that share."""
    made, loss = work.sampled, 0.0
    total = Totals(
        rollouts=work.seeds.numel(), tokens=made.mask.numel(), max_completion_length=work.setting.answer_tokens
    )
    for row, (ids, seed) in enumerate(_rows(work, rows)):
        with autocast(work.model.device, work.setting.bf16):
            logprobs = _score(work, _think(work, ids, _noise(work, seed)), made.token_ids[row : row + 1])
        part = surrogate(
            logprobs,
            made.logprobs[row : row + 1],
            made.mask[row : row + 1],
            work.advantages.flatten()[row : row + 1].to(logprobs),
            totals=total,
        )
        part.loss.backward()
        loss += float(part.loss.detach())
    return loss


def curriculum(work: Workload, rows: int) -> float:
    """Back-propagates the first problems' share of a batch's mean loss over answer tokens; returns that share."""
    loss = 0.0
    for ids, answer in zip(work.question_ids[:rows].split(1), work.answer_ids[:rows].split(1), strict=True):
        with autocast(work.model.device, work.setting.bf16):
            logprobs = _score(work, _think(work, ids, None), answer)
        part = -logprobs.sum() / (work.setting.problems * work.setting.answer_tokens)
        part.backward()
        loss += float(part.detach())
    return loss


def evaluation(work: Workload, rows: int) -> list[str]:
    """Greedy answers to the first problems, including tokenisation and decoding to text."""
    texts = []
    with torch.no_grad(), autocast(work.model.device, work.setting.bf16):
        for problem in work.problems[:rows]:
            ids = torch.tensor(work.model.encode_rows([problem.question]), device=work.model.device)
            tokens, _ = _decode(work, _think(work, ids, None), Greedy())
            texts += work.model.decode(tokens, torch.ones_like(tokens))
    return texts


def _rows(work: Workload, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompt ids [1, S] and seed [1] of the first rollouts."""
    yield from zip(work.each_its_own.input_ids[:rows].split(1), work.seeds.flatten()[:rows].split(1), strict=True)


def _noise(work: Workload, seed: Tensor) -> Noise | None:
    return work.exploration.noise(seed.to(work.model.device), work.networks.reference.sites)


def _think(work: Workload, ids: Tensor, noise: Noise | None) -> Row:
    embeds = work.reference.get_input_embeddings()(ids)
    parts: Parts = [(_factors(noise, "prompt", 0), ids.shape[1])]
    for step in range(work.setting.latent_steps):
        with work.networks.reference.sites.multiplied(_spread(parts)):
            hidden = work.reference.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1:]
        factors = _factors(noise, "latent", step)
        embeds = torch.cat([embeds, hidden * factors.get(THOUGHT_SITE, 1.0)], dim=1)
        parts.append((factors, 1))
    return Row(embeds=embeds, parts=parts, noise=noise)


def _logits(work: Workload, row: Row, inputs: Tensor, keep: int) -> Tensor:
    """Logits of the last ``keep`` positions, [1, keep, V], at least float32. ``inputs`` [1, *] follow the thoughts."""
    embeds = torch.cat([row.embeds, work.reference.get_input_embeddings()(inputs)], dim=1)
    parts = [*row.parts, (_factors(row.noise, "answer", 0), inputs.shape[1])]
    with work.networks.reference.sites.multiplied(_spread(parts)):
        logits = work.reference(inputs_embeds=embeds, use_cache=False, logits_to_keep=keep).logits
    return logits.to(at_least_float32(logits.dtype)) / TEMPERATURE


def _decode(work: Workload, row: Row, strategy: DecodingStrategy) -> tuple[Tensor, Tensor]:
    """Token ids and log-probs, [1, L] each."""
    inputs, chosen = work.model.end_marker(1), []
    for position in range(work.setting.answer_tokens):
        logprobs = _logits(work, row, inputs, 1)[:, -1].log_softmax(-1)
        token = strategy.choose(logprobs, position)[:, None]
        inputs = torch.cat([inputs, token], dim=1)
        chosen.append(logprobs.gather(-1, token))
    return inputs[:, 1:], torch.cat(chosen, dim=1)


def _score(work: Workload, row: Row, answer: Tensor) -> Tensor:
    """Log-probs [1, L] with gradient."""
    inputs = torch.cat([work.model.end_marker(1), answer[:, :-1]], dim=1)
    logits = _logits(work, row, inputs, answer.shape[1])
    return -nn.functional.cross_entropy(logits[0], answer[0], reduction="none")[None]


def _factors(noise: Noise | None, phase: str, step: int) -> Mapping[str, Tensor]:
    return {} if noise is None else noise.factors(phase, step)


def _spread(parts: Sequence[tuple[Mapping[str, Tensor], int]]) -> dict[str, Tensor]:
    """Factors by site for every position of a row, [1, S, F]; 1 where a stretch is not masked."""
    one = {name: factor for factors, _ in parts for name, factor in factors.items() if name != THOUGHT_SITE}
    return {
        name: torch.cat(
            [factors.get(name, torch.ones_like(like)).expand(-1, length, -1) for factors, length in parts], dim=1
        )
        for name, like in one.items()
    }
