"""Decoding in a batch that shrinks, against the oracle that decodes one row at a time by running all of it again.

Any token can be made the end of text: the one that ends a batch's answers at the most different places is.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from transformers import PreTrainedModel

from dropout_grpo.exploration import Exploration, NoExploration, SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.rollout import roll_out
from helpers import splitmix
from helpers.engine import (
    ALL_PHASES,
    END_ID,
    QUESTIONS,
    latent_model,
    oracle_model,
    prompts,
    reference_factors,
)
from helpers.oracle import Factors, no_noise, oracle_greedy, oracle_run
from helpers.tiny import PAD_ID

LENGTH = 8
SEEDS = torch.arange(12).view(3, 4) - 5  # [N, K], on both sides of 0
HELD = SharedDropout(0.3, ("residual", "heads"), ("latent", "answer"))
EVERYWHERE = SharedDropout(0.3, ("residual", "mlp_hidden"), ALL_PHASES)


def with_eos(model: LatentModel, eos: int) -> LatentModel:
    model.tokens = replace(model.tokens, eos=eos)
    return model


def answers_of(generation: Generation) -> list[list[int]]:
    return [ids[used].tolist() for ids, used in zip(generation.token_ids, generation.mask, strict=True)]


def divisive_token(model: LatentModel, exploration: Exploration, temperature: float) -> int:
    """The token which as the end of text makes answers end at the most different places."""
    with_eos(model, -1)  # no token: nothing ends
    generation = roll_out(model, prompts(), SEEDS, exploration, temperature=temperature, max_completion_length=LENGTH)
    answers = answers_of(generation)
    ends = {t: {row.index(t) if t in row else LENGTH for row in answers} for t in range(40)}
    token = max(ends, key=lambda t: len(ends[t]))
    assert len(ends[token]) >= (3 if isinstance(exploration, SharedDropout) else 2), "the answers end together"
    return token


def noises(exploration: Exploration) -> list[Factors]:
    if not isinstance(exploration, SharedDropout):
        return [no_noise] * SEEDS.numel()
    return [reference_factors(seed, exploration) for seed in SEEDS.flatten().tolist()]


@dataclass(frozen=True, slots=True)
class Decoded:
    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]


def oracle_sample(
    plain: PreTrainedModel, question: list[int], seed: int, factors: Factors, temperature: float, eos: int
) -> Decoded:
    """Token t is the first at which the distribution function exceeds the seed's uniform of "answer.t"."""
    out = Decoded([], [], [])
    while len(out.tokens) < LENGTH and eos not in out.tokens:
        unread = [*out.tokens, PAD_ID]
        with torch.no_grad():
            logits = oracle_run(plain, question, 2, END_ID, unread, factors=factors).logits[-1]
        p = (logits / temperature).softmax(-1)
        u = splitmix.uniform(seed, f"answer.{len(out.tokens)}")
        token = next(t for t in range(len(p)) if p[: t + 1].sum() > u)
        out.tokens.append(token)
        out.logprobs.append(p[token].log().item())
        out.entropies.append(-(p * p.log()).sum().item())
    return out


@pytest.mark.parametrize(
    ("kind", "exploration"), [("gpt2", NoExploration()), ("llama", HELD), ("gemma2", HELD), ("gpt2", EVERYWHERE)]
)
def test_greedy_answers_are_the_oracles(kind: str, exploration: Exploration) -> None:
    plain = oracle_model(kind)
    eos = divisive_token(latent_model(kind), exploration, 0)
    expected = [
        oracle_greedy(plain, QUESTIONS[row // 4], 2, END_ID, eos, LENGTH, factors=factors)
        for row, factors in enumerate(noises(exploration))
    ]
    for copy_prompts in (False, True):
        model = with_eos(latent_model(kind, copy_prompts=copy_prompts), eos)
        generation = roll_out(model, prompts(), SEEDS, exploration, temperature=0, max_completion_length=LENGTH)
        assert answers_of(generation) == expected


@pytest.mark.parametrize(
    ("kind", "exploration", "temperature"), [("gpt2", HELD, 1.5), ("qwen3", HELD, 1.5), ("llama", EVERYWHERE, 0.7)]
)
def test_sampled_answers_are_the_oracles(kind: str, exploration: SharedDropout, temperature: float) -> None:
    plain = oracle_model(kind)
    eos = divisive_token(latent_model(kind), exploration, temperature)
    expected = [
        oracle_sample(plain, QUESTIONS[row // 4], seed, factors, temperature, eos)
        for row, (seed, factors) in enumerate(zip(SEEDS.flatten().tolist(), noises(exploration), strict=True))
    ]
    for copy_prompts in (False, True):
        model = with_eos(latent_model(kind, copy_prompts=copy_prompts), eos)
        generation = roll_out(
            model, prompts(), SEEDS, exploration, temperature=temperature, max_completion_length=LENGTH
        )
        assert answers_of(generation) == [row.tokens for row in expected]
        for i, row in enumerate(expected):
            n = len(row.tokens)
            assert generation.logprobs[i, :n].tolist() == pytest.approx(row.logprobs, abs=1e-10)
            assert generation.entropy[i, :n].tolist() == pytest.approx(row.entropies, abs=1e-10)
            after = (generation.mask[i, n:], generation.logprobs[i, n:], generation.entropy[i, n:])
            assert not any(part.any() for part in after)
            assert (generation.token_ids[i, n:] == PAD_ID).all()
