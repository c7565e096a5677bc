"""The invariants of the design, each a statement about the engine only. ``test_batching`` has those on batches."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from dropout_grpo.exploration import Exploration, NoExploration, SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.rollout import replay, roll_out, think_in_groups
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.objective import Totals, surrogate
from helpers.engine import (
    ALL_PHASES,
    ALL_SITES,
    ANSWERS,
    END_ID,
    QUESTIONS,
    READING_SITES,
    SEEDS,
    TOLERANCE,
    difference,
    gradients,
    latent_model,
    oracle_model,
    prompts,
)
from helpers.tiny import EXTRA_KINDS, KINDS, tiny_model, tiny_tokenizer

NONE = NoExploration()
HELD = SharedDropout(0.3, ALL_SITES, ("latent", "answer"))
EVERYWHERE = SharedDropout(0.3, ALL_SITES, ALL_PHASES)
READING = SharedDropout(0.3, READING_SITES, ("latent", "answer"))
VALUES = SharedDropout(0.3, ("values",), ALL_PHASES)
TOKENS = torch.tensor(ANSWERS)


@pytest.mark.parametrize(
    ("kind", "dtype", "copy_prompts"),
    [(kind, torch.float64, False) for kind in KINDS + EXTRA_KINDS]
    + [("gpt2", torch.float64, True), ("gpt2", torch.float32, False), ("qwen3", torch.float32, True)],
)
def test_cached_is_cache_free(kind: str, dtype: torch.dtype, copy_prompts: bool) -> None:
    """One forward pass over prompt, thoughts, end marker and answer: the thoughts come back, and so do the scores."""
    model, plain = latent_model(kind, dtype, copy_prompts=copy_prompts), oracle_model(kind, dtype)
    embed = plain.get_input_embeddings()
    batch = prompts()
    state, thoughts = model.read(batch.input_ids, batch.attention_mask), []
    for _ in range(3):
        thoughts.append(state.hidden)  # what is fed back: [N, 1, D]
        state = model.think(state, 1)
    scores = model.score(state, TOKENS[::2])
    for row, (question, answer) in enumerate(zip(QUESTIONS, TOKENS[::2], strict=True)):
        parts = [embed(torch.tensor(question)), *(t[row] for t in thoughts), embed(torch.tensor([END_ID]))]
        inputs = torch.cat([*parts, embed(answer[:-1])])[None]
        whole = plain(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
        last = whole.hidden_states[-1][0, len(question) - 1 :]
        fed_back = torch.cat([*(t[row] for t in thoughts), state.hidden[row]])
        assert difference(fed_back.detach(), last[:4].detach()) < TOLERANCE[dtype]
        expected = whole.logits[0, -4:].log_softmax(-1).gather(1, answer[:, None])[:, 0]
        assert difference(scores[row].detach(), expected.detach()) < TOLERANCE[dtype]
        swapped = torch.cat([inputs[:, : len(question)], inputs[:, len(question) :].roll(1, dims=1)], dim=1)
        wrong = plain(inputs_embeds=swapped, use_cache=False).logits[0, -4:].log_softmax(-1)
        assert difference(scores[row].detach(), wrong.gather(1, answer[:, None])[:, 0].detach()) > 1e-2


@pytest.mark.parametrize(
    ("kind", "dtype", "copy_prompts", "exploration"),
    [(kind, torch.float64, False, HELD) for kind in KINDS + EXTRA_KINDS]
    + [("qwen3", torch.float64, False, each) for each in (NONE, EVERYWHERE, READING)]
    + [("gpt2", torch.float64, True, READING), ("gemma2", torch.float64, True, VALUES)]
    + [("gpt2", torch.float32, False, HELD)],
)
def test_the_first_ratio_is_one(kind: str, dtype: torch.dtype, copy_prompts: bool, exploration: Exploration) -> None:
    """Replayed log-probabilities are those of the rollout, token by token decoded there and all at once here."""
    model = latent_model(kind, dtype, copy_prompts=copy_prompts)
    generation = roll_out(model, prompts(), SEEDS, exploration, temperature=1.3, max_completion_length=7)
    assert generation.mask.any(dim=1).all()

    def ratio(seeds: Tensor, temperature: float = 1.3) -> Tensor:
        replayed = replay(model, prompts(), seeds, generation.token_ids, exploration, temperature=temperature)
        return (replayed.detach() - generation.logprobs).exp()[generation.mask]

    assert (ratio(SEEDS) - 1).abs().max() < TOLERANCE[dtype]
    assert (ratio(SEEDS, temperature=1.0) - 1).abs().max() > 1e-2
    if isinstance(exploration, SharedDropout):
        assert (ratio(SEEDS + 1) - 1).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_bf16_the_first_ratio_is_near_one(kind: str) -> None:
    """bf16 rounds to 4e-3, so only the mean is held to something, and no padding may overflow into a NaN."""
    model = latent_model(kind, torch.float32)
    with autocast(torch.device("cpu"), True):
        generation = roll_out(model, prompts(), SEEDS, HELD, temperature=1.3, max_completion_length=7)
        replayed = replay(model, prompts(), SEEDS, generation.token_ids, HELD, temperature=1.3)
    exact = replay(model, prompts(), SEEDS, generation.token_ids, HELD, temperature=1.3)
    assert generation.logprobs.dtype == replayed.dtype == torch.float32
    assert (replayed - generation.logprobs)[generation.mask].abs().mean() < 0.05  # seen: 0
    assert 1e-4 < (exact - generation.logprobs)[generation.mask].abs().mean() < 0.1  # seen: 0.03
    assert all(gradient.isfinite().all() for gradient in gradients(model, replayed).values())


def grpo_gradient(model: LatentModel, exploration: Exploration, temperature: float) -> tuple[Tensor, Tensor, float]:
    """Tokens [6, L], advantages [N, K] and the norm of the objective's gradient, for a reward that tokens decide."""
    generation = roll_out(model, prompts(), SEEDS, exploration, temperature=temperature, max_completion_length=5)
    rewards = (generation.token_ids.sum(1) % 7).double().view(SEEDS.shape)
    advantages = group_advantages(rewards)
    batch = Totals(rollouts=6, tokens=int(generation.mask.sum()), max_completion_length=5)
    logprobs = replay(model, prompts(), SEEDS, generation.token_ids, exploration, temperature=1.0)
    loss = surrogate(logprobs, logprobs.detach(), generation.mask, advantages.flatten(), totals=batch).loss
    squares = [gradient.square().sum() for gradient in torch.autograd.grad(loss, list(model.parameters()))]
    return generation.token_ids, advantages, float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize(("kind", "copy_prompts"), [("gpt2", False), ("gpt2", True), ("qwen3", False)])
def test_without_exploration_or_temperature_all_collapses(kind: str, copy_prompts: bool) -> None:
    """All rollouts of a group are one, every advantage is 0 and so is the gradient: exactly, not up to rounding."""
    model = latent_model(kind, torch.float32, copy_prompts=copy_prompts)
    tokens, advantages, norm = grpo_gradient(model, NoExploration(), 0.0)
    assert torch.equal(tokens[::2], tokens[1::2])
    assert not advantages.any()
    assert norm == 0.0
    for exploration, temperature in ((HELD, 0.0), (NoExploration(), 1.0)):
        tokens, advantages, norm = grpo_gradient(model, exploration, temperature)
        assert not torch.equal(tokens[::2], tokens[1::2])
        assert advantages.any()
        assert norm > 1e-3


@pytest.mark.parametrize("exploration", [NoExploration(), EVERYWHERE, READING], ids=["none", "everywhere", "reading"])
def test_the_gradient_is_that_of_finite_differences(exploration: Exploration) -> None:
    """Two entries of every tensor of GPT-2, through three thoughts, the cache and a group's shared prompt."""
    model = latent_model("gpt2", latent_steps=3)

    def total() -> Tensor:
        logprobs = replay(model, prompts(), SEEDS, TOKENS, exploration, temperature=0.8)
        return (logprobs * torch.linspace(-1.0, 2.0, 24, dtype=torch.float64).view(6, 4)).sum()

    exact = torch.autograd.grad(total(), list(model.parameters()))
    step, wrong, cut_is_wrong = 1e-5, [], 0
    model.thought.forward = lambda hidden: hidden.detach()  # type: ignore[method-assign, assignment]
    cut = torch.autograd.grad(total(), list(model.parameters()))
    del model.thought.forward
    for (name, parameter), gradient, detached in zip(model.named_parameters(), exact, cut, strict=True):
        largest = int(gradient.abs().argmax())
        for entry in (largest, parameter.numel() // 3):
            flat = parameter.detach().view(-1)
            value = flat[entry].item()
            with torch.no_grad():
                flat[entry] = value + step
                above = total().item()
                flat[entry] = value - step
                below = total().item()
                flat[entry] = value
            central = (above - below) / (2 * step)  # off by the third derivative times 2e-11, and rounding of 1e-10
            close = pytest.approx(central, rel=1e-6, abs=1e-7)
            if gradient.flatten()[entry].item() != close:
                wrong.append((name, entry, gradient.flatten()[entry].item(), central))
            cut_is_wrong += detached.flatten()[entry].item() != pytest.approx(central, rel=1e-3, abs=1e-3)
    assert not wrong
    assert cut_is_wrong > len(exact), "a gradient that does not pass through thought must fail"


def with_own_dropout(kind: str) -> LatentModel:
    """A model whose config asks for dropout wherever it can."""
    config = copy.deepcopy(tiny_model(kind).config)
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.1)
    noisy = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager")
    noisy.load_state_dict(tiny_model(kind).state_dict())
    noisy.train()
    ids = torch.tensor([[5, 9, 11, 28]])
    assert not torch.equal(noisy(ids).logits, noisy(ids).logits), "this model has no dropout of its own"
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start-latent|>", "<|latent|>", "<|end-latent|>"]})
    return LatentModel(noisy, tokenizer, latent_steps=2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "opt"])
def test_train_and_eval_mode_are_one(kind: str) -> None:
    """The model's own dropout is zero, so no mode switches noise, and masks stay on in either."""
    model = with_own_dropout(kind)

    def everything() -> list[Tensor]:
        state, noise = think_in_groups(model, prompts(), SEEDS, HELD)
        generation = model.generate(state, 5, noise=noise)
        return [state.hidden, model.score(state, TOKENS, noise=noise), generation.token_ids, generation.logprobs]

    model.train()
    first, second = everything(), everything()
    model.eval()
    third = everything()
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    quiet, _ = think_in_groups(model, prompts(), SEEDS, NoExploration())
    assert not torch.equal(quiet.hidden, first[0])


@pytest.mark.parametrize(("kind", "copy_prompts"), [("gpt2", False), ("llama", True), ("gemma3_text", True)])
def test_verbs_leave_the_old_state_as_it_was(kind: str, copy_prompts: bool) -> None:
    """One state, many futures: thinking under one seed, then another, then the first again."""
    model, batch = latent_model(kind, copy_prompts=copy_prompts), prompts()
    ours, others = (model.noise(HELD, seeds.flatten()) for seeds in (SEEDS, SEEDS + 1))
    read = model.read(batch.input_ids, batch.attention_mask)
    middle = model.think(read.repeat(2), 1, ours)
    first = model.score(model.think(middle, 1, ours), TOKENS, noise=ours)
    model.generate(middle, 5, noise=others)
    other = model.score(model.think(middle, 1, others), TOKENS, noise=others)
    model.think(middle.select(torch.tensor([2, 3])), 2)
    again = model.score(model.think(middle, 1, ours), TOKENS, noise=ours)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    from_the_start = model.think(read.repeat(2), 2, ours)
    assert torch.equal(model.score(from_the_start, TOKENS, noise=ours), first)
