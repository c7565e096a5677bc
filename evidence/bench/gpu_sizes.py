"""Correctness and memory at real sizes on a GPU: random weights, groups of 32, long prompts with padding.

Tests use tiny models. Kernels, their shortcuts and memory differ with the size, so this part of ``make gpu`` checks the
same statements on models of 0.1 to 1.5 billion parameters.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedConfig, Qwen2Config

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.graphs import forget_recordings, step_by_step
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.tasks.word_problems import WordProblemsConfig, vocabulary
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from evidence.bench.memory import return_memory

EXPLORATION = SharedDropout(0.1, ("residual",), ("latent", "answer"))
LONGEST_PROMPTS = (64, 192)  # key lengths of 64 modulo 128, where a masked backward pass of cuDNN gives NaN
STEPS = 3  # the third replays graphs that the second recorded


def _qwen2(*, width: int, mlp: int, layers: int, heads: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151_939,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
    )


SIZES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2, 0.12 B": lambda: GPT2Config(vocab_size=50_260),
    "qwen2, 0.63 B": lambda: _qwen2(width=896, mlp=4864, layers=24, heads=14, tied=False),
    "qwen2, 1.54 B": lambda: _qwen2(width=1536, mlp=8960, layers=28, heads=12, tied=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Sizes of the batches. The defaults are those of the paper's run, with half of its questions."""

    questions: int = 8
    num_generations: int = 32
    latent_steps: int = 6
    answer_tokens: int = 16
    longest_prompts: tuple[int, ...] = LONGEST_PROMPTS


def check_size(name: str, config: PreTrainedConfig, device: torch.device, work: Work) -> dict[str, Any]:
    """Check one model; ``wrong`` lists what does not hold.

    Args:
        name: name of the size, for the table.
        config: the model, which gets random weights.
        device: where it computes.
        work: sizes of the batches.
    """
    model = _model(config, device, work.latent_steps)
    found: dict[str, Any] = {"size": name, "parameters": model.model.num_parameters(), "wrong": []}
    seeds = rollout_seeds(0, 1, torch.arange(work.questions), work.num_generations)
    for longest in work.longest_prompts:
        prompts = Prompts(*model.encode(_questions(work.questions, longest)))
        found |= _recorded(model, prompts, seeds, work)
        found |= _bf16(model, prompts, seeds, work)
        found["wrong"] += [f"{what} (prompts of {longest})" for what in _wrong(found)]
    forget_recordings()
    model.zero_grad(set_to_none=True)
    try:
        return found | _training(model, device, work)
    except UserError as error:  # of the largest size, where the GPU is too small for it
        return found | {"not_trained": str(error)[:300]}


def _model(config: PreTrainedConfig, device: torch.device, latent_steps: int) -> LatentModel:
    tokenizer = word_tokenizer(vocabulary(WordProblemsConfig(max_number=20)))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config)
    add_latent_tokens(model, tokenizer)
    return LatentModel(model, tokenizer, latent_steps=latent_steps)


def _questions(count: int, longest: int) -> list[str]:
    """Random words; the first question has ``longest`` tokens, all others fewer, so that their rows have padding."""
    rng, words = random.Random(0), vocabulary(WordProblemsConfig(max_number=20))
    longest -= 2  # newline and start marker
    return [" ".join(rng.choice(words) for _ in range(longest - (i % 4) * longest // 8)) for i in range(count)]


def _rollouts(model: LatentModel, prompts: Prompts, seeds: torch.Tensor, work: Work) -> Generation:
    with torch.no_grad():
        return roll_out(model, prompts, seeds, EXPLORATION, temperature=1.0, max_completion_length=work.answer_tokens)


def _recorded(model: LatentModel, prompts: Prompts, seeds: torch.Tensor, work: Work) -> dict[str, float]:
    """Rollouts from recorded graphs against rollouts step by step, in float32."""
    with step_by_step():
        expected = _rollouts(model, prompts, seeds, work)
    for _ in range(STEPS):
        made = _rollouts(model, prompts, seeds, work)
    same = (made.token_ids == expected.token_ids).cumprod(dim=1).bool()  # up to the first token that a rounding flips
    gap = (made.logprobs - expected.logprobs)[same].abs().max() if bool(same.any()) else torch.tensor(torch.inf)
    return {"recorded_same_answers": float(same[:, -1].float().mean()), "recorded_logprob_gap": float(gap)}


def _bf16(model: LatentModel, prompts: Prompts, seeds: torch.Tensor, work: Work) -> dict[str, float]:
    """In bf16: the ratio at the unchanged policy, and gradients that are not finite."""
    with autocast(model.device, True):
        made = _rollouts(model, prompts, seeds, work)
    with autocast(model.device, True):  # as the trainers: casts of the first block have no gradient
        replayed = replay(model, prompts, seeds, made.token_ids, EXPLORATION, temperature=1.0)
    gap = (replayed.detach() - made.logprobs)[made.mask].abs()
    model.zero_grad(set_to_none=True)
    replayed[made.mask].mean().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    bad = sum(gradient is None or not bool(gradient.isfinite().all()) for gradient in gradients)
    return {"replay_gap_mean": float(gap.mean()), "replay_gap_max": float(gap.max()), "gradients_not_finite": bad}


def _wrong(found: dict[str, Any]) -> Iterator[str]:
    if found["recorded_same_answers"] < 0.5:  # with random weights no word stands out, and a rounding flips some
        yield "recorded answers differ from those step by step"
    if found["recorded_logprob_gap"] > 1e-3:
        yield "recorded log-probs differ from those step by step"
    if found["replay_gap_mean"] > 0.05:
        yield "replayed log-probs differ from the rollouts'"
    if found["gradients_not_finite"]:
        yield f"{found['gradients_not_finite']} gradients are not finite"


def _training(model: LatentModel, device: torch.device, work: Work) -> dict[str, Any]:
    """Seconds and peak memory of GRPO steps in bf16 with a reference model."""
    config = GRPOOptions(
        max_steps=STEPS,
        prompts_per_step=work.questions,
        num_generations=work.num_generations,
        max_completion_length=work.answer_tokens,
        beta=0.01,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
    )
    texts = _questions(4 * work.questions, max(work.longest_prompts))
    problems = [Problem(id=i, question=text, steps=(), answer="1") for i, text in enumerate(texts)]
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with TemporaryDirectory() as folder:
        run = RunFolder(folder, "gpu", config)
        trainer = GRPOTrainer(model, _length, config, problems, exploration=EXPLORATION, run=run, bf16=True)
        trainer.begin(None)
        for step in range(1, STEPS + 1):
            start = time.perf_counter()
            trainer.step(step)
            if on_gpu:
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
    return {
        "step_seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "micro_batch_size": trainer.update.batches.size,
    }


def _length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs within every group of random answers."""
    return [float(len(completion) % 7) for completion in completions]


def check_sizes(device: torch.device, work: Work, save: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """Check all sizes, smallest first. ``save`` gets the rows after each; a size that fails is a row with its error."""
    rows: list[dict[str, Any]] = []
    for name, config in SIZES.items():
        try:
            rows.append(check_size(name, config(), device, work))
        except Exception as error:  # the next size may still work, and this one's error is the result
            rows.append({"size": name, "wrong": [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]})
        save(rows)
        return_memory()
    return rows
