"""The inputs of a case: a model with random weights, questions, seeds and sampled answers.

Questions are random words of the vocabulary, all of the same length. When answers are generated, EOS has an id outside
the vocabulary, so that no answer ends early and all arms do equal work.
"""

import copy
import random
from dataclasses import replace
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.rewards import exact_answer
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.exploration.sites import SiteMap
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.io.scratch import scratch_model
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, roll_out
from dropout_grpo.latent.tokens import add_latent_tokens, encode_answers
from dropout_grpo.rl.groups import Groups
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.tasks.word_problems import WordProblemsConfig, vocabulary
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from evidence.bench.config import Setting

TEMPERATURE = 1.0
EXPLORATION = SharedDropout(0.1, ("residual",), ("latent", "answer"))
"""Masks at every layer while thinking and answering: the most mask work that still lets a group share its prompt.

Their cost does not depend on p.
"""

_SIZES = {"tiny": (128, 3, 4), "gpt2": (768, 12, 12)}  # width, layers, heads
_WORDS = {"gpt2": 50_257, "smollm2": 49_152, "qwen-0.5b": 151_936}  # the size of the vocabulary
_OWN_TOKENS = 5  # special tokens of the word tokenizer


class Networks:
    """One set of weights, wrapped by the engine and, on demand, copied for transformers' own code."""

    def __init__(self, setting: Setting) -> None:
        words = vocabulary(WordProblemsConfig(max_number=20))
        if setting.size in _WORDS:
            words = [str(i) for i in range(_WORDS[setting.size] - _OWN_TOKENS)]
        self.words = words
        self.tokenizer: PreTrainedTokenizerFast = word_tokenizer(words)
        build = {"smollm2": _smollm2, "qwen-0.5b": _qwen}.get(setting.size, _gpt2)
        model = build(self.tokenizer, setting)
        add_latent_tokens(model, self.tokenizer)
        self.model: PreTrainedModel = model
        self.latent(1).to(setting.device)  # moves what it wraps

    @cached_property
    def reference(self) -> "Reference":
        """A copy of the weights with transformers' own attention."""
        return Reference(self)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return int(self.model.config.vocab_size)

    def latent(self, latent_steps: int) -> LatentModel:
        """The engine's model, with EOS in the vocabulary."""
        return LatentModel(self.model, self.tokenizer, latent_steps=latent_steps)

    def endless(self, latent_steps: int) -> LatentModel:
        """The engine's model with EOS outside the vocabulary: every answer has its full length."""
        model = self.latent(latent_steps)
        model.tokens = replace(model.tokens, eos=self.vocab)
        return model


def _gpt2(tokenizer: PreTrainedTokenizerFast, setting: Setting) -> PreTrainedModel:
    width, layers, heads = _SIZES[setting.size]
    return scratch_model(
        tokenizer, n_embd=width, n_layer=layers, n_head=heads, n_positions=setting.positions, seed=setting.seed
    )


def _smollm2(tokenizer: PreTrainedTokenizerFast, setting: Setting) -> PreTrainedModel:
    """SmolLM2-135M's sizes."""
    return _random(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=setting.positions,
            tie_word_embeddings=True,
            **_ids(tokenizer),
        ),
        setting,
    )


def _qwen(tokenizer: PreTrainedTokenizerFast, setting: Setting) -> PreTrainedModel:
    """Qwen2.5-0.5B's sizes, with a head of its own."""
    return _random(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=setting.positions,
            tie_word_embeddings=False,
            **_ids(tokenizer),
        ),
        setting,
    )


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def _random(config: PreTrainedConfig, setting: Setting) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(setting.seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


class Reference:
    """A copy of the weights for the arms that use transformers' own code.

    Its dropout is off. Its attention implementation is the one for the device. ``sites`` are the places for masks.
    """

    def __init__(self, networks: Networks) -> None:
        self.model = copy.deepcopy(networks.model)
        self.sites: SiteMap = LatentModel(self.model, networks.tokenizer, latent_steps=1).sites
        self.model.set_attn_implementation("sdpa")
        self.model.generation_config.eos_token_id = None  # generated text has its full length
        self.model.config.pad_token_id = None  # transformers would warn of padding tokens among the random ones


class Workload:
    """The inputs of one case. Each is made when an arm first needs it."""

    def __init__(self, setting: Setting, networks: Networks) -> None:
        self.setting, self.networks = setting, networks
        self.model = networks.endless(setting.latent_steps)
        self.exploration = EXPLORATION
        count = max(setting.questions, setting.problems)
        self.problems = problems_of(setting, networks.words, count)
        ids = self.question_ids[: setting.questions]
        self.prompts = Prompts(ids, torch.ones_like(ids))
        numbers = torch.arange(setting.questions)
        self.seeds = rollout_seeds(setting.seed, 1, numbers, setting.num_generations)  # [N, K]

    @property
    def reference(self) -> PreTrainedModel:
        """The model of the reference arms."""
        return self.networks.reference.model

    @cached_property
    def each_its_own(self) -> Prompts:
        """One copy of its prompt for every rollout, [N * K, S]."""
        k = self.setting.num_generations
        return Prompts(
            input_ids=self.prompts.input_ids.repeat_interleave(k, dim=0),
            attention_mask=self.prompts.attention_mask.repeat_interleave(k, dim=0),
        )

    @cached_property
    def sampled(self) -> Generation:
        """The engine's rollouts. The update replays them."""
        with torch.no_grad(), autocast(self.model.device, self.setting.bf16):
            return roll_out(
                self.model,
                self.prompts,
                self.seeds,
                self.exploration,
                temperature=TEMPERATURE,
                max_completion_length=self.setting.answer_tokens,
            )

    @cached_property
    def advantages(self) -> Tensor:
        """Advantages [N, K] of +1 and -1, so that every group is mixed."""
        signs = torch.ones_like(self.seeds, dtype=torch.float32)
        signs[:, ::2] = -1.0
        return signs

    @property
    def groups(self) -> Groups:
        """The engine's rollouts as the groups of an update."""
        return Groups(
            indices=list(range(len(self.seeds))),
            prompts=self.prompts,
            seeds=self.seeds,
            rewards=self.advantages,
            answers=self.sampled,
        )

    @cached_property
    def chain_of_thought(self) -> Tensor:
        """Random token ids instead of steps and answer, [rows, T + L], to train on."""
        rows = max(self.setting.questions * self.setting.num_generations, self.setting.problems)
        length = self.setting.cot_tokens + self.setting.answer_tokens
        ids = torch.tensor(self.networks.tokenizer.convert_tokens_to_ids(self.networks.words))
        generator = torch.Generator().manual_seed(self.setting.seed)
        return ids[torch.randint(len(ids), (rows, length), generator=generator)].to(self.model.device)

    @cached_property
    def question_ids(self) -> Tensor:
        """Token ids of the problems' prompts, [P, S]; all have the same length."""
        ids = torch.tensor(self.model.encode_rows([p.question for p in self.problems]), device=self.model.device)
        assert ids.shape[1] == self.setting.prompt_tokens, "a prompt has another length"
        return ids

    @cached_property
    def answer_ids(self) -> Tensor:
        """Token ids of the problems' answers with EOS, [P, L]; the target of the curriculum's last stage."""
        model = self.networks.latent(1)  # its EOS is in the vocabulary
        return torch.tensor(
            encode_answers(model.tokenizer, [p.answer for p in self.problems], model.tokens), device=model.device
        )

    @cached_property
    def trainer(self) -> GRPOTrainer:
        """The trainer whose update is measured."""
        return self._trainer()

    @cached_property
    def plain_trainer(self) -> GRPOTrainer:
        """The trainer of the plain way. It has separate micro-batches, in case one trainer must halve them."""
        return self._trainer()

    @cached_property
    def curriculum(self) -> CurriculumTrainer:
        """The trainer whose last stage is measured: all steps are thoughts."""
        setting = self.setting
        config = CurriculumConfig(c_thought=1, max_latent_stage=setting.latent_steps, batch_size=setting.problems)
        model = self.networks.latent(setting.latent_steps)
        with TemporaryDirectory() as folder:
            run = RunFolder(folder, "bench", config)
            return CurriculumTrainer(model, config, self.problems, run, seed=setting.seed, bf16=setting.bf16)

    def _trainer(self) -> GRPOTrainer:
        setting = self.setting
        config = GRPOOptions(
            prompts_per_step=setting.questions,
            num_generations=setting.num_generations,
            max_completion_length=setting.answer_tokens,
            temperature=TEMPERATURE,
            micro_batch_size=setting.micro_batch_size,
            rollout_batch_size=setting.questions * setting.num_generations,
        )
        with TemporaryDirectory() as folder:  # nothing is written while measuring
            run = RunFolder(folder, "bench", config)
            return GRPOTrainer(
                self.model,
                exact_answer,  # never called
                config,
                self.problems,
                exploration=self.exploration,
                run=run,
                seed=setting.seed,
                bf16=setting.bf16,
            )

    @property
    def on_cuda(self) -> bool:
        """True if the engine runs as CUDA graphs."""
        return self.model.device.type == "cuda"

    @property
    def untimed(self) -> int:
        """Untimed runs before the timed ones: on CUDA, graphs are recorded when a shape comes for the second time."""
        return 2 if self.on_cuda else 1

    def synchronize(self) -> None:
        """Waits until the device is idle. Does nothing on a CPU."""
        if self.on_cuda:
            torch.cuda.synchronize()

    def prepare(self, attention: str | None = None) -> None:
        """Called before each run: clears gradients and sets the attention of the reference arms."""
        self.networks.model.zero_grad(set_to_none=True)
        if attention is not None:
            self.reference.zero_grad(set_to_none=True)
            self.reference.set_attn_implementation(attention)


def problems_of(setting: Setting, words: list[str], count: int) -> list[Problem]:
    """Problems of the setting's lengths."""
    rng = random.Random(setting.seed)

    def text(length: int) -> str:
        return " ".join(rng.choice(words) for _ in range(length))

    question, answer = setting.prompt_tokens - 2, setting.answer_tokens - 2  # newline and marker; ### and EOS
    return [Problem(id=i, question=text(question), steps=("1",), answer=text(answer)) for i in range(count)]
