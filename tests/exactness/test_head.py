"""The head in pieces: log-probabilities and gradients of the plain way, without its logits."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel, head
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.head import Table, table_of, token_logprobs
from dropout_grpo.latent.lora.adapter import adapter_off
from dropout_grpo.latent.probe import has_plain_head, probe_rows
from dropout_grpo.latent.rollout import replay
from dropout_grpo.training.fake import Ledger
from dropout_grpo.training.masters import with_masters
from helpers import grpo_run
from helpers.engine import ANSWERS, SEEDS, difference, differences, gradients, latent_model, prompts
from helpers.families import tiny
from helpers.tiny_latent import tiny_latent, tiny_problems
from helpers.tiny_lora import tiny_lora

CPU = torch.device("cpu")
MASKS = SharedDropout(0.25, ("residual", "heads"), ("latent", "answer"))


def in_pieces(patch: pytest.MonkeyPatch, words: int = 7, *, kept: bool = True) -> None:
    """However few logits there are, take so many words at a time."""
    patch.setattr(head, "PIECE", 0)
    patch.setattr(head, "_LEAST_WORDS", words)
    patch.setattr(head, "KEPT", head.KEPT if kept else 0)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def linear(words: int, width: int, *, bias: bool, dtype: torch.dtype = torch.float64) -> nn.Linear:
    made = nn.Linear(width, words, bias=bias, dtype=dtype)
    for seed, parameter in enumerate(made.parameters()):
        parameter.data.copy_(2.0 * drawn(*parameter.shape, seed=seed + 10))
    return made


def plain_way(layer: nn.Linear, hidden: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    logits = layer(hidden)
    return (logits.to(head.at_least_float32(logits.dtype)) / temperature).log_softmax(-1).gather(-1, token_ids)


def pieces(layer: nn.Linear, hidden: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    table = table_of(layer)
    assert table is not None
    return token_logprobs(table, hidden, token_ids, temperature)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("words", [1, 7, 30])
def test_values_and_gradients_of_the_plain_way(
    words: int, kept: bool, temperature: float, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last piece of one word, of two, and one piece; logits up to 60; the head's weight is the embedding's too."""
    in_pieces(monkeypatch, words, kept=kept)
    layer, ids = linear(29 + (words == 7), 8, bias=bias), torch.tensor([28, 0, 3, 5, 28])
    token_ids = torch.tensor([[0, 28], [6, 6], [7, 13], [28, 1], [20, 27]])
    mixing, weights = drawn(8, 8, seed=1), drawn(5, 2, seed=2)

    def results(way: Callable[..., Tensor]) -> list[Tensor]:
        logprobs = way(layer, (layer.weight[ids] @ mixing).tanh() * 4, token_ids, temperature)
        return [logprobs, *torch.autograd.grad((logprobs * weights).sum(), list(layer.parameters()))]

    expected, actual = results(plain_way), results(pieces)
    assert expected[0].min() < -20
    assert max(map(difference, actual, expected)) < 1e-12


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("how", ["float32", "bf16 products", "bf16 weights"])
def test_no_less_exact_than_the_plain_way(how: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both against float64. The dtypes are the plain ones.

    The logits are below 64. Pieces round their log-sum-exp to float32, the total, and what it is taken from.
    """
    in_pieces(monkeypatch, 100, kept=kept)
    dtype = torch.bfloat16 if how == "bf16 weights" else torch.float32
    layer, hidden = linear(1000, 16, bias=True, dtype=dtype), drawn(40, 16, seed=3, dtype=dtype).requires_grad_()
    token_ids, weights = torch.arange(40)[:, None] * 25, drawn(40, 1, seed=4, dtype=torch.float32)

    def results(way: Callable[..., Tensor], layer: nn.Linear, hidden: Tensor) -> list[Tensor]:
        with autocast(CPU, how == "bf16 products" and hidden.dtype == torch.float32):
            logprobs = way(layer, hidden, token_ids)
        return [logprobs, *torch.autograd.grad((logprobs * weights).sum(), [hidden, *layer.parameters()])]

    actual, plain = results(pieces, layer, hidden), results(plain_way, layer, hidden)
    wide = copy.deepcopy(layer).double()
    exact = results(plain_way, wide, hidden.detach().double().requires_grad_())
    assert [a.dtype for a in actual] == [b.dtype for b in plain]
    assert actual[0].dtype == torch.float32
    for ours, theirs, truth in zip(actual, plain, exact, strict=True):
        lost, allowed = ((t.double() - truth).norm() for t in (ours, theirs))
        assert 0 < lost < 1.1 * allowed + 3 * 64 * 2.0**-24 * truth.norm()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else [made]
        self.numel = max([self.numel, *(t.numel() for t in tensors if isinstance(t, Tensor))])
        return made


def largest(way: Callable[..., Tensor]) -> tuple[int, int]:
    """Elements of the largest tensor made for 60 tokens, 500 words and width 4, and of all that is saved."""
    layer, hidden = linear(500, 4, bias=True), drawn(60, 4, seed=3).requires_grad_()
    saved: list[int] = []
    with Largest() as seen:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            logprobs = way(layer, hidden, torch.arange(60)[:, None])
        logprobs.sum().backward()
    return seen.numel, sum(saved)


def test_no_tensor_of_all_logits_is_made_or_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    in_pieces(monkeypatch, 20, kept=False)
    weights, inputs = 500 * 4, 500 * 5 + 60 * 4
    made, saved = largest(pieces)
    assert made == weights  # a gradient; a piece has 1,200
    assert saved == inputs + 60 + 60  # tokens and their log-sum-exp
    made, saved = largest(plain_way)
    assert made == 60 * 500
    assert saved > 60 * 500
    in_pieces(monkeypatch, 20)
    monkeypatch.setattr(head, "KEPT", 60 * 500 * 8)
    made, saved = largest(pieces)
    assert (made, saved) == (weights, inputs + 60 + 60 + 60 * 500)  # in the dtype of the products, bf16 as a rule


def test_a_second_derivative_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    in_pieces(monkeypatch)
    hidden = drawn(3, 4).requires_grad_()
    logprobs = pieces(linear(9, 4, bias=False), hidden, torch.tensor([[0], [8], [3]]))
    (gradient,) = torch.autograd.grad(logprobs.square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


MASK = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
"""Of ``ANSWERS``: two rows are off, and one has a gap."""


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_tied", "qwen2", "gemma"])
def test_a_replay_in_pieces_is_the_replay(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities and gradients of all weights, without and with a mask of the tokens that count."""
    tokens = torch.tensor(ANSWERS)

    def results(mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        model = latent_model(kind)
        logprobs = replay(model, prompts(), SEEDS, tokens, MASKS, temperature=1.3, mask=mask)
        return logprobs.detach(), gradients(model, logprobs)

    whole, expected = results(None), results(MASK)
    torch.testing.assert_close(expected[0], torch.where(MASK.bool(), whole[0], 0.0), rtol=0, atol=1e-12)
    in_pieces(monkeypatch)
    for mask, same in ((None, whole), (MASK, expected)):
        actual = results(mask)
        assert difference(actual[0], same[0]) < 1e-12
        assert differences(actual[1], same[1]) < 1e-12
    assert torch.equal(results(MASK)[0] == 0, MASK == 0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_replay_with_masters_is_no_less_exact(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probabilities of bf16 weights are the same. Gradients, summed in float32, have the plain way's errors."""
    tokens = torch.tensor(ANSWERS)

    def results(model: LatentModel) -> list[Tensor]:
        model.zero_grad()
        logprobs = replay(model, prompts(), SEEDS, tokens, MASKS, temperature=0.8, mask=MASK)
        weights = torch.linspace(-1.0, 2.0, logprobs.numel()).view_as(logprobs)
        for half in weights.tril(), weights.triu(1):  # of two micro-batches
            logprobs = replay(model, prompts(), SEEDS, tokens, MASKS, temperature=0.8, mask=MASK)
            (logprobs * half).sum().backward()
        return [logprobs.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    model, wide = latent_model(kind, torch.float32), latent_model(kind)
    with with_masters(model):
        with torch.no_grad():
            for parameter, rounded in zip(wide.parameters(), model.parameters(), strict=True):
                parameter.copy_(rounded)
        exact, plain = results(wide), results(model)
        in_pieces(monkeypatch)
        actual = results(model)
    assert difference(actual[0], plain[0]) < 1e-6 < difference(actual[0], exact[0])
    assert {gradient.dtype for gradient in actual} == {torch.float32}
    lost, allowed = (
        sum((a - b).square().sum() for a, b in zip(found, exact, strict=True)).sqrt() for found in (actual, plain)
    )
    assert 0 < lost < 1.1 * allowed


def gradients_of(model: LatentModel) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gemma"])
def test_an_update_in_pieces_is_the_update(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRPO with a KL, in which one answer is not used, and a batch of the curriculum with words for its thoughts."""

    def updates(folder: Path) -> list[dict[str, Tensor]]:
        model = tiny_latent(kind, torch.float64)
        made = grpo_run.trainer(folder, replace(grpo_run.CONFIG, beta=0.1, temperature=0.8), model=model)
        groups, _ = made.sampler.sample(1)
        used = groups.answers.mask.clone()
        used[1] = False
        groups = replace(groups, answers=replace(groups.answers, mask=used))
        with torch.no_grad():  # away from the reference, or the KL would have no gradient
            model.model.get_output_embeddings().weight *= 1.1
        made.update.backward(groups, torch.linspace(-1.0, 1.0, 12).view(3, 4))
        model = tiny_latent(kind, torch.float64)
        config = CurriculumConfig(c_thought=1, max_latent_stage=2, batch_size=3, thoughts_predict=True)
        curriculum = CurriculumTrainer(model, config, tiny_problems(3, steps=3), folder / "sft")
        curriculum.backward(curriculum.stages[1], [0, 1, 2], 0)
        return [gradients_of(made.model), gradients_of(model)]

    expected = updates(tmp_path / "plain")
    in_pieces(monkeypatch)
    for actual, same in zip(updates(tmp_path / "pieces"), expected, strict=True):
        assert max(gradient.abs().max() for gradient in same.values()) > 1e-2
        assert differences(actual, same) < 1e-12


WIDE, NARROW = torch.float64, torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "dtype", "plain", "scaling"),
    [
        *((kind, WIDE, True, None) for kind in ("gpt2", "llama", "qwen2", "gemma", "opt", "gpt_neox", "phi")),
        *((kind, dtype, False, None) for kind in ("gemma2", "cohere") for dtype in (WIDE, NARROW)),
        ("granite", torch.float32, True, 1.0),
        ("granite", torch.float32, False, 1.001),
        ("llama", NARROW, True, None),
    ],
)
def test_a_cap_or_a_scale_on_logits_is_noticed(
    kind: str, dtype: torch.dtype, plain: bool, scaling: float | None
) -> None:
    """A cap of 30 is less than the rounding of bf16 where logits are about 1, as in a new model."""
    model = tiny(kind, dtype)
    if scaling is not None:
        model.config.logits_scaling = scaling
    assert has_plain_head(model, probe_rows(model)[0]) is plain


def test_such_a_model_keeps_its_own_logits_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = latent_model("gemma2"), torch.tensor(ANSWERS)

    def logprobs() -> Tensor:
        return replay(model, prompts(), SEEDS, tokens, MASKS, temperature=1.0).detach()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = logprobs()
    in_pieces(monkeypatch)
    with pytest.warns(UserWarning, match="not those of a plain linear head"):
        assert torch.equal(logprobs(), expected)
    model.plain_head = True
    assert (logprobs() - expected).abs().max() > 1e-4, "the cap does not show"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_adapters_rows_of_the_head(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers contain two of the three words that have rows of their own; with and without the adapter."""
    model = tiny_lora(tmp_path, kind, trained=True).double()
    tokens = torch.tensor(ANSWERS).clamp(max=30)
    assert {29, 30} & set(tokens.flatten().tolist()) == {30}

    def results() -> list[Tensor]:
        logprobs = replay(model, prompts(), SEEDS, tokens.where(MASK == 1, 29), MASKS, temperature=0.8)
        with adapter_off(model):
            base = replay(model, prompts(), SEEDS, tokens, MASKS, temperature=0.8).detach()
        trained = [p for p in model.parameters() if p.requires_grad]
        weights = torch.linspace(-1.0, 2.0, logprobs.numel(), dtype=logprobs.dtype).view_as(logprobs)
        return [logprobs, base, *torch.autograd.grad((logprobs * weights).sum(), trained)]

    expected = results()
    in_pieces(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert max(map(difference, results(), expected)) < 1e-12


def test_with_masters_the_weights_gradient_is_float32_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor of 4 bytes per element, which becomes the gradient, and none in bf16 beside it."""
    in_pieces(monkeypatch, 1024)
    weight = nn.Parameter(torch.randn(2**14, 16).bfloat16())
    weight.grad_dtype = torch.float32
    hidden = torch.randn(2, 16).bfloat16().requires_grad_()
    with Ledger(nn.ParameterList([weight])) as ledger:
        token_logprobs(Table(weight), hidden, torch.tensor([[3], [7]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert 4 * weight.numel() < ledger.peak < 5 * weight.numel()


def test_pieces_of_a_gpu_are_aligned() -> None:
    for rows in (1, 1500, 77_777):
        size = head._words_in_a_piece(torch.device("cuda"), rows)
        assert size % 128 == 0
        assert size >= head._LEAST_WORDS
    assert head._words_in_a_piece(CPU, 1500) == max(head._LEAST_WORDS, head.PIECE // 1500)
