"""A small Coconut for what cannot be enumerated, trained when needed: sums of four digits, with three thoughts.

    question "3 5 0 7", steps "8", "8", "15", answer "15"

A GPT-2 of two layers and width 32 is trained with the curriculum on 250 of the 4,096 problems in a few seconds. It then
answers two of three unseen problems right, with high confidence, so that GRPO can still improve it.
"""

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.data.problem import Problem
from dropout_grpo.evaluation.answering import is_correct
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.latent.model import Generation, LatentModel
from dropout_grpo.latent.rollout import Prompts
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from evidence.theory.setting import Setting

_DIGITS, _BASE, _TRAIN = 4, 8, 250
ANSWER_TOKENS = 3  # ###, the sum, EOS
P = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallModel:
    """A trained model and problems that it was not trained on."""

    setting: Setting  # over ``problems``
    problems: list[Problem]


def train_small_model(seed: int, unseen: int = 500) -> SmallModel:
    """The model after its curriculum and ``unseen`` problems; takes about 6 seconds on one core."""
    problems = _problems(seed, _TRAIN + unseen)
    tokenizer = word_tokenizer([str(n) for n in range(_DIGITS * _BASE)])
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=24,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.15,  # about 1 / sqrt(width): at the usual 0.02 a width this small takes long to start
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gpt2 = GPT2LMHeadModel(config)
        add_latent_tokens(gpt2, tokenizer)
    curriculum = CurriculumConfig(
        c_thought=1,
        max_latent_stage=_DIGITS - 1,
        cot_epochs=30,
        epochs_per_stage=10,
        final_epochs=30,
        batch_size=50,
        learning_rate=5e-3,
        lr_scheduler_type="linear",
        warmup_steps=10,
    )
    model = LatentModel(gpt2, tokenizer, latent_steps=curriculum.latent_steps)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", "theory", curriculum)
        CurriculumTrainer(model, curriculum, problems[:_TRAIN], run, seed=seed).train()
    held_out = problems[_TRAIN:]

    def reward(questions: Tensor, generation: Generation) -> Tensor:
        texts = model.decode(generation.token_ids, generation.mask)
        asked = [held_out[i] for i in questions.tolist()]
        right = [is_correct(text, problem) for text, problem in zip(texts, asked, strict=True)]
        return torch.tensor(right, dtype=torch.float64)

    setting = Setting(
        model=model,
        prompts=Prompts(*model.encode([p.question for p in held_out])),
        reward=reward,
        exploration=SharedDropout(P),
        temperature=1.0,
        max_completion_length=ANSWER_TOKENS,
    )
    return SmallModel(setting=setting, problems=held_out)


def _problems(seed: int, count: int) -> list[Problem]:
    """Distinct problems in random order."""
    codes = random.Random(seed).sample(range(_BASE**_DIGITS), count)
    return [_problem(i, code) for i, code in enumerate(codes)]


def _problem(number: int, code: int) -> Problem:
    digits = [code // _BASE**place % _BASE for place in range(_DIGITS)]
    totals = [sum(digits[: i + 1]) for i in range(1, _DIGITS)]
    return Problem(
        id=number,
        question=" ".join(map(str, digits)),
        steps=tuple(str(total) for total in totals),
        answer=str(totals[-1]),
    )
