"""No attention row is empty: a token sees itself, and so does padding. Tokens never see padding.

Kernels disagree about an empty row; cuDNN's gradients are NaN. The rows are watched where the softmax takes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dropout_grpo.exploration import Exploration, NoExploration, SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.attention_choice import Choice, fixed_attention, without_cudnn
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.rollout import replay
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from helpers.engine import ANSWERS, SEEDS, latent_model, prompts
from helpers.families import WORDS, tiny
from helpers.tiny import EXTRA_KINDS, KINDS, VARIANTS

IN_PROMPT = SharedDropout(0.25, ("residual",), ("prompt", "latent"))
FAMILIES = ("bloom", "codegen", "falcon", "gpt_oss", "mpt")
"""They keep their own attention, and build on the masks that transformers makes."""


class Watched(TorchFunctionMode):
    """Counts the rows of attention, and those that see nothing: all scores are as low as the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.empty = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.softmax, Tensor.softmax, F.softmax):
            self._see((args[0] if args else kwargs["input"]).detach())
        elif func is F.scaled_dot_product_attention and (mask := kwargs["attn_mask"]) is not None:
            self._see(torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask.detach())
        return func(*args, **kwargs)

    def _see(self, scores: Tensor) -> None:
        lowest = 0.1 * torch.finfo(torch.bfloat16).min  # of any dtype in use; no score comes near it
        self.rows += scores[..., 0].numel()
        self.empty += int((scores.amax(-1) < lowest).sum())


def watched(model: LatentModel, exploration: Exploration = IN_PROMPT) -> Watched:
    """Read three questions of 6, 2 and 4 tokens, think and score, for two rollouts each."""
    with Watched() as seen:
        replay(model, prompts(), SEEDS, torch.tensor(ANSWERS), exploration, temperature=1.0)
    return seen


@pytest.mark.parametrize(
    ("kind", "choice", "copy_prompts"),
    [(kind, "products", False) for kind in (*KINDS, *EXTRA_KINDS, *VARIANTS)]
    + [("gpt2", "sdpa", False), ("llama", "sdpa", False), ("llama", "sdpa", True)],
)
def test_no_row_is_empty(kind: str, choice: Choice, copy_prompts: bool) -> None:
    model = latent_model(kind, torch.float32, copy_prompts=copy_prompts)
    for exploration, bf16 in ((NoExploration(), False), (IN_PROMPT, True)):
        with fixed_attention(choice), autocast(model.device, bf16):
            seen = watched(model, exploration)
        assert seen.rows > 0
        assert seen.empty == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_no_row_of_a_family_that_keeps_its_attention_is_empty(family: str) -> None:
    """With SDPA where the family has it. BLOOM, MPT and others gave NaN for an empty row in float64."""
    plain, tokenizer = tiny(family), word_tokenizer(WORDS)
    add_latent_tokens(plain, tokenizer)
    model = LatentModel(plain, tokenizer, latent_steps=2)
    seen = watched(model)
    assert seen.rows > 0
    assert seen.empty == 0


def test_a_row_of_padding_is_empty_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher notices what the tests above exclude."""

    @contextmanager
    def not_at_all(layers: object, attention_mask: Tensor) -> Iterator[None]:
        yield

    monkeypatch.setattr("dropout_grpo.latent.recurrence.padding_sees_itself", not_at_all)
    for kind in ("gpt2", "mistral"):  # 6 positions of padding, for 2 rollouts in 2 layers, and heads in products
        assert watched(latent_model(kind, torch.float32)).empty >= 24


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
def test_tokens_do_not_see_padding(kind: str) -> None:
    """Other embeddings of padding change no bit of a token's log-probabilities and gradients."""
    model, batch, tokens = latent_model(kind, torch.float32), prompts(), torch.tensor(ANSWERS)
    table = model.model.get_input_embeddings().weight
    actual = []
    for value in (0.0, 3.0):
        with torch.no_grad():
            table[0] = value  # the padding token
        logprobs = replay(model, batch, SEEDS, tokens, IN_PROMPT, temperature=1.0)[:, :2]  # answers without token 0
        actual.append([logprobs.detach(), *torch.autograd.grad(logprobs.sum(), list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*actual, strict=True))


def test_cudnn_is_off_for_our_calls_only() -> None:
    settings: list[bool] = []
    model = latent_model("qwen2", torch.float32)
    model.model.get_decoder().register_forward_pre_hook(
        lambda *args: settings.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    before = torch.backends.cuda.cudnn_sdp_enabled()
    for user in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(user)
        try:
            watched(model)
            with pytest.raises(RuntimeError), without_cudnn():
                raise RuntimeError
            assert torch.backends.cuda.cudnn_sdp_enabled() == user
        finally:
            torch.backends.cuda.enable_cudnn_sdp(before)
    assert settings == [False] * 8  # read, two thoughts and the answer, twice
