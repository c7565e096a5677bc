"""A latent model small enough to enumerate: every mask, answer and group is a term of a finite sum.

It is the library's own ``LatentModel`` around a GPT-2 of one layer and width 4 in float64, with five tokens and two
latent steps. Masks multiply the fed-back thought, so there are 2^4 = 16 of them, and answers have at most two tokens,
so there are 21. The seed and scale of the weights are chosen so that masks matter: the policies of single masks are
about 0.2 away from their average (total variation), and no mask's scores are much larger than the others'.

Shapes: N questions, G groups, K rollouts of a group, M masks, A answers, L tokens of an answer, P parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dropout_grpo.exploration.base import Exploration
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.exploration.sites import THOUGHT_SITE
from dropout_grpo.latent.model import Generation, LatentModel
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from dropout_grpo.latent.tokens import END, LATENT, START
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.objective import Totals, surrogate

_WORDS = ("<eos>", "a", START, LATENT, END)
_EOS, _START = 0, 2
_WEIGHTS_SEED, _WEIGHTS_SCALE = 558, 0.6
_QUESTIONS = ("a", "a a", "a a a")  # of different lengths, so that there is padding
_P = 0.25
TEMPERATURE = 0.8

QUESTIONS = len(_QUESTIONS)
LENGTH = 2  # maximum number of tokens of an answer
FRESH = 1 << 20
"""Added to a seed where a mask other than the rollout's is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """The policy, its questions, all answers, and their rewards."""

    model: LatentModel
    prompts: Prompts  # N questions
    exploration: Exploration
    answers: Tensor  # [A, L] int64
    answer_mask: Tensor  # [A, L] bool
    rewards: Tensor  # [N, A] float64, 0 or 1

    def at_rate(self, p: float) -> "Toy":
        """The same toy with another dropout rate."""
        return replace(self, exploration=SharedDropout(p, sites=(THOUGHT_SITE,)))


def build_toy(weights_seed: int = _WEIGHTS_SEED) -> Toy:
    """Builds the toy, or with another seed one that differs only in its weights. It is the same every time."""
    model = LatentModel(_gpt2(weights_seed), _tokenizer(), latent_steps=2)
    firsts = range(1, len(_WORDS))
    answers = torch.tensor([[_EOS, _EOS], *([i, j] for i in firsts for j in range(len(_WORDS)))])
    twice = (answers == _START).all(-1)
    empty = answers[:, 0] == _EOS
    rewards = torch.stack([twice, twice | empty, (answers[:, 0] == _START) | empty])  # rare to frequent success
    return Toy(
        model=model,
        prompts=Prompts(*model.encode(_QUESTIONS)),
        exploration=SharedDropout(_P, sites=(THOUGHT_SITE,)),
        answers=answers,
        answer_mask=torch.tensor([[True, bool(row[0] != _EOS)] for row in answers]),
        rewards=rewards.double(),
    )


def answer_index(answers: Tensor, token_ids: Tensor) -> Tensor:
    """Indices in ``answers`` [A, L] of decoded answers [R, L' <= L]; both are padded with EOS."""
    padded = nn.functional.pad(token_ids, (0, answers.shape[1] - token_ids.shape[1]), value=_EOS)
    same = (padded[:, None] == answers[None]).all(-1)  # [R, A]
    assert bool(same.any(1).all()), "an answer that was not enumerated"
    return same.int().argmax(1)


# The library's rollouts and their gradient.


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """G groups of K rollouts."""

    questions: Tensor  # [G]
    seeds: Tensor  # [G, K]
    answers: Generation  # G * K rows
    rewards: Tensor  # [G, K] float64


def sample(toy: Toy, questions: Tensor, seeds: Tensor, *, temperature: float = TEMPERATURE) -> Rollouts:
    """The library's rollouts: one group for each of ``questions`` [G] under ``seeds`` [G, K]."""
    with torch.no_grad():
        answers = roll_out(
            toy.model,
            toy.prompts.select(questions),
            seeds,
            toy.exploration,
            temperature=temperature,
            max_completion_length=LENGTH,
        )
    rows = questions.repeat_interleave(seeds.shape[1])
    rewards = toy.rewards[rows, answer_index(toy.answers, answers.token_ids)].view_as(seeds)
    return Rollouts(questions=questions, seeds=seeds, answers=answers, rewards=rewards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One backward pass of the objective."""

    gradient: Tensor  # [P], of the surrogate (not of its negation, the loss)
    log_ratio: Tensor  # [G * K, L], 0 after the end


def objective_gradient(toy: Toy, rollouts: Rollouts, *, update_seeds: Tensor | None = None, **options: Any) -> Replayed:
    """Gradient of the library's clipped surrogate at the old policy, with the library's advantages.

    Args:
        toy: the policy.
        rollouts: rollouts sampled from it.
        update_seeds: seeds of the masks in the update, [G, K]; those of the rollouts (a replay) when None.
        **options: options of ``rl.objective.surrogate``.
    """
    answers = rollouts.answers
    logprobs = replay(
        toy.model,
        toy.prompts.select(rollouts.questions),
        rollouts.seeds if update_seeds is None else update_seeds,
        answers.token_ids,
        toy.exploration,
        temperature=TEMPERATURE,
    )
    totals = Totals(rollouts=rollouts.seeds.numel(), tokens=int(answers.mask.sum()), max_completion_length=LENGTH)
    advantages = group_advantages(rollouts.rewards).flatten()
    part = surrogate(logprobs, answers.logprobs, answers.mask, advantages, totals=totals, **options)
    log_ratio = ((logprobs - answers.logprobs) * answers.mask).detach()
    return Replayed(gradient=flat_gradient(-part.loss, toy.model), log_ratio=log_ratio)


# The enumeration.


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """All masks of an exploration, each given by a seed that draws it."""

    seeds: Tensor  # [M] int64
    weights: Tensor  # [M] float64, the probability of each
    codes: Tensor  # [M] int64, the bits of each as one number, ascending

    def index(self, toy: Toy, seeds: Tensor) -> Tensor:
        """Index of the mask that each seed draws, [*seeds.shape]."""
        return torch.searchsorted(self.codes, _codes(toy, seeds.flatten())[1]).view_as(seeds)


def all_masks(toy: Toy) -> Masks:
    """All masks, each found by trying many seeds, with its Bernoulli(1-p) probability."""
    assert isinstance(toy.exploration, SharedDropout)
    p, width = toy.exploration.p, toy.model.model.config.n_embd
    rarest = min(p, 1 - p) ** width
    bits, seed_codes = _codes(toy, torch.arange(round(16 / rarest)))  # the rarest mask is drawn 16 times on average
    codes, which = torch.unique(seed_codes, return_inverse=True)
    assert len(codes) == 2**width, "some mask was never drawn"
    seeds = torch.zeros_like(codes)
    seeds[which] = torch.arange(len(bits))  # any seed that draws the mask
    ones = bits[seeds].sum(1).double()
    return Masks(seeds=seeds, weights=(1 - p) ** ones * p ** (width - ones), codes=codes)


def _codes(toy: Toy, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Bits of each seed's mask, int64 [seeds, width], 1 where an activation is not dropped; and as one number."""
    noise = toy.model.noise(toy.exploration, seeds)
    assert noise is not None, "p is 0"
    (factor,) = noise.factors("latent", 0).values()  # [seeds, 1, width]
    bits = (factor[:, 0] != 0).long()
    return bits, bits @ (2 ** torch.arange(bits.shape[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The distribution of a rollout of one question: the probability, reward and score of every mask and answer."""

    weights: Tensor  # [M], q(m)
    logprobs: Tensor  # [M, A, L], log pi(a_t | x, m, a_<t), 0 after the end
    scores: Tensor  # [M, A, L, P], their gradients
    rewards: Tensor  # [A], 0 or 1
    answer_mask: Tensor  # [A, L]

    @property
    def policy(self) -> Tensor:
        """pi(a | x, m), [M, A]."""
        return self.logprobs.sum(-1).exp()

    @property
    def probability(self) -> Tensor:
        """q(m) pi(a | x, m), [M, A]."""
        return self.weights[:, None] * self.policy

    @property
    def score(self) -> Tensor:
        """grad log pi(a | x, m), [M, A, P]."""
        return self.scores.sum(2)

    @property
    def expected_reward(self) -> float:
        """J(x) = E_m E_a R(x, a)."""
        return float((self.probability * self.rewards).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """A toy with everything that can happen in it."""

    toy: Toy
    masks: Masks
    laws: list[Law]  # of each question
    gradients: Tensor  # [N, P], grad J(x), by automatic differentiation of the finite sum J; no scores are used


def enumerate_toy(toy: Toy) -> Exact:
    """The laws of all questions, and grad J."""
    masks = all_masks(toy)
    return Exact(
        toy=toy,
        masks=masks,
        laws=[enumerate_law(toy, masks, question) for question in range(QUESTIONS)],
        gradients=expected_reward_gradients(toy, masks),
    )


def answer_logprobs(toy: Toy, masks: Masks, question: int) -> Tensor:
    """Log-probabilities [M, A, L] of all answers under all masks by the library's replay, 0 after the end."""
    count, answers = len(masks.seeds), len(toy.answers)
    logprobs = replay(
        toy.model,
        toy.prompts.select(torch.tensor([question])),
        masks.seeds.repeat_interleave(answers)[None],
        toy.answers.repeat(count, 1),
        toy.exploration,
        temperature=TEMPERATURE,
    )
    return logprobs.view(count, answers, -1) * toy.answer_mask


def enumerate_law(toy: Toy, masks: Masks, question: int) -> Law:
    """The law of one question's rollouts at the model's current weights."""
    parts, scores = [], []
    for i in range(len(masks.seeds)):  # one by one: a batched backward pass costs the square of its rows
        one = Masks(seeds=masks.seeds[i : i + 1], weights=masks.weights[i : i + 1], codes=masks.codes[i : i + 1])
        logprobs = answer_logprobs(toy, one, question)
        scores.append(flat_gradients(logprobs, toy.model))
        parts.append(logprobs.detach())
    return Law(
        weights=masks.weights,
        logprobs=torch.cat(parts),
        scores=torch.cat(scores),
        rewards=toy.rewards[question],
        answer_mask=toy.answer_mask,
    )


def expected_reward_gradients(toy: Toy, masks: Masks) -> Tensor:
    """grad J(x) of every question, [N, P]."""
    gradients = []
    for question in range(QUESTIONS):
        policy = answer_logprobs(toy, masks, question).sum(-1).exp()
        value = (masks.weights[:, None] * policy * toy.rewards[question]).sum()
        gradients.append(flat_gradient(value, toy.model))
    return torch.stack(gradients)


# Weights and gradients as vectors over all parameters.


def flat_gradient(value: Tensor, model: nn.Module) -> Tensor:
    """The gradient of a scalar, [P]; 0 for parameters that it does not depend on."""
    parts = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def flat_gradients(values: Tensor, model: nn.Module) -> Tensor:
    """The gradient of every entry of ``values``, [*values.shape, P], in one batched backward pass."""
    units = torch.eye(values.numel(), dtype=values.dtype).view(-1, *values.shape)
    parts = torch.autograd.grad(
        values, list(model.parameters()), units, is_grads_batched=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten(1) for part in parts], dim=1).view(*values.shape, -1)


def flat_weights(model: nn.Module) -> Tensor:
    """All parameters of a model, [P]."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@contextmanager
def moved(model: nn.Module, step: Tensor) -> Iterator[None]:
    """Adds ``step`` [P] to the parameters while the block runs, then restores them bit for bit."""
    before = flat_weights(model)
    nn.utils.vector_to_parameters(before + step, model.parameters())
    try:
        yield
    finally:
        nn.utils.vector_to_parameters(before, model.parameters())


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(_WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def _gpt2(weights_seed: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(_WORDS),
        n_positions=12,
        n_embd=4,
        n_layer=1,
        n_head=2,
        n_inner=8,
        bos_token_id=_EOS,
        eos_token_id=_EOS,
        pad_token_id=_EOS,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        model = GPT2LMHeadModel(config).double()
    generator = torch.Generator().manual_seed(weights_seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = _WEIGHTS_SCALE * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            # Biases and gains are spread around their initial 0 or 1, so that no parameter is special.
            parameter.copy_(noise + parameter if parameter.ndim == 1 else noise)
    return model
