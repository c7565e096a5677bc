"""A latent model small enough to enumerate: every mask, answer and group is a term of a finite sum.

It is the library's own ``LatentModel`` around a GPT-2 of one layer and width 4 in float64, with five tokens and two
latent steps. Masks multiply the fed-back thought, so there are 2^4 = 16 of them, and answers have at most two tokens,
so there are 21. The seed and scale of the weights are chosen so that masks matter: the policies of single masks are
about 0.2 away from their average (total variation), and no mask's scores are much larger than the others'.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dropout_grpo.exploration.dropout import PerStepDropout, SharedDropout
from dropout_grpo.exploration.sites import THOUGHT_SITE
from dropout_grpo.latent.model import Generation, LatentModel
from dropout_grpo.latent.rollout import Prompts
from dropout_grpo.latent.tokens import END, LATENT, START
from evidence.theory.setting import Setting

_WORDS = ("<eos>", "a", START, LATENT, END)
_EOS, _START = 0, 2
_WEIGHTS_SEED, _WEIGHTS_SCALE = 558, 0.6
_QUESTIONS = ("a", "a a", "a a a")  # of different lengths, so that there is padding
_SITE, _P = THOUGHT_SITE, 0.25

QUESTIONS = len(_QUESTIONS)
LENGTH = 2  # maximum number of tokens of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """The toy. N questions, A answers of up to L tokens."""

    setting: Setting
    exploration: SharedDropout  # the setting's
    answers: Tensor  # [A, L] int64
    answer_mask: Tensor  # [A, L] bool
    rewards: Tensor  # [N, A] float64, 0 or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """All M masks, each given by a seed that draws it."""

    seeds: Tensor  # [M] int64
    weights: Tensor  # [M] float64, the probability of each
    codes: Tensor  # [M] int64, the bits of each as one number, ascending

    def index(self, toy: Toy, exploration: SharedDropout, seeds: Tensor) -> Tensor:
        """Index of the mask that each seed draws, [*seeds.shape]."""
        codes = _bits(toy.setting.model, exploration, seeds.flatten()) @ _powers(exploration, toy)
        return torch.searchsorted(self.codes, codes).view_as(seeds)


def build_toy(weights_seed: int = _WEIGHTS_SEED) -> Toy:
    """Builds the toy, or with another seed one that differs only in its weights; it is the same every time."""
    model = LatentModel(_gpt2(weights_seed), _tokenizer(), latent_steps=2)
    firsts = range(1, len(_WORDS))
    answers = torch.tensor([[_EOS, _EOS], *([i, j] for i in firsts for j in range(len(_WORDS)))])
    answer_mask = torch.tensor([[True, bool(row[0] != _EOS)] for row in answers])
    twice = (answers == _START).all(-1)
    empty = answers[:, 0] == _EOS
    rewards = torch.stack(
        [twice, twice | empty, (answers[:, 0] == _START) | empty]
    ).double()  # rare to frequent success

    def reward(questions: Tensor, generation: Generation) -> Tensor:
        return rewards[questions, answer_index(answers, generation.token_ids)]

    exploration = SharedDropout(_P, sites=(_SITE,))
    setting = Setting(
        model=model,
        prompts=Prompts(*model.encode(_QUESTIONS)),
        reward=reward,
        exploration=exploration,
        temperature=0.8,
        max_completion_length=LENGTH,
    )
    return Toy(setting=setting, exploration=exploration, answers=answers, answer_mask=answer_mask, rewards=rewards)


def with_rate(p: float) -> SharedDropout:
    """The toy's exploration with another rate."""
    return SharedDropout(p, sites=(_SITE,))


def per_step() -> PerStepDropout:
    """The toy's exploration with a fresh mask at each of the two latent steps: 16^2 = 256 mask sequences."""
    return PerStepDropout(_P, sites=(_SITE,))


def answer_index(answers: Tensor, token_ids: Tensor) -> Tensor:
    """Indices in ``answers`` [A, L] of decoded answers [R, L' <= L]; both are padded with EOS."""
    padded = torch.nn.functional.pad(token_ids, (0, answers.shape[1] - token_ids.shape[1]), value=_EOS)
    same = (padded[:, None] == answers[None]).all(-1)  # [R, A]
    assert bool(same.any(1).all()), "an answer that was not enumerated"
    return same.int().argmax(1)


def all_masks(toy: Toy, exploration: SharedDropout) -> Masks:
    """All masks of an exploration, each found by trying many seeds, with its Bernoulli(1-p) probability."""
    width = len(_powers(exploration, toy))
    rarest = min(exploration.p, 1 - exploration.p) ** width
    bits = _bits(toy.setting.model, exploration, torch.arange(round(16 / rarest)))  # it occurs 16 times on average
    codes, which = torch.unique(bits @ _powers(exploration, toy), return_inverse=True)
    seeds = torch.zeros_like(codes)
    seeds[which] = torch.arange(len(bits))  # any seed that draws the mask
    assert len(codes) == 2 ** bits.shape[1], "some mask was never drawn"
    kept = bits[seeds].sum(1).double()
    weights = (1 - exploration.p) ** kept * exploration.p ** (bits.shape[1] - kept)
    return Masks(seeds=seeds, weights=weights, codes=codes)


def _draws(exploration: SharedDropout, toy: Toy) -> int:
    """Number of independent masks in a rollout; 1 for a held mask."""
    return toy.setting.model.latent_steps if isinstance(exploration, PerStepDropout) else 1


def _bits(model: LatentModel, exploration: SharedDropout, seeds: Tensor) -> Tensor:
    """The independent bits of each seed's masks, int64 [seeds, draws * F]: 1 where an activation is kept."""
    noise = model.noise(exploration, seeds)
    assert noise is not None, "p is 0"
    steps = range(model.latent_steps if isinstance(exploration, PerStepDropout) else 1)
    factors = [torch.cat(list(noise.factors("latent", step).values()), dim=-1) for step in steps]
    return (torch.cat(factors, dim=-1)[:, 0] != 0).long()


def _powers(exploration: SharedDropout, toy: Toy) -> Tensor:
    width = toy.setting.model.model.config.n_embd
    return 2 ** torch.arange(width * _draws(exploration, toy))


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
