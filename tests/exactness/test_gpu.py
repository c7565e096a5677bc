"""The same seeds on an accelerator: the same bits, and the same answers up to rounding. Run with ``pytest -m gpu``.

Float32 products are true float32 there unless someone asks torch for TF32, which nothing here does.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dropout_grpo import GRPOTrainer, UserError
from dropout_grpo.exploration import Exploration, NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.exploration.seeds import bernoulli, fold, random_bits, rollout_seeds, stream, uniform
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.attention_choice import CHOICES, Choice, fixed_attention
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from dropout_grpo.latent.tokens import pad_left
from dropout_grpo.training import loop
from dropout_grpo.training.plan import require_room
from helpers.engine import (
    ALL_PHASES,
    ALL_SITES,
    ANSWERS,
    SEEDS,
    START_ID,
    difference,
    differences,
    gradients,
    latent_model,
    prompts,
)
from helpers.grpo_run import CONFIG, digits
from helpers.tiny import KINDS
from helpers.tiny_latent import tiny_latent, tiny_problems

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CUDA = torch.device("cuda")
EDGES = torch.tensor([0, 1, -1, 7, 2**32, -(2**32), 2**53 + 1, 2**63 - 1, -(2**63)])
HELD = SharedDropout(0.3, ALL_SITES, ("latent", "answer"))
EVERYWHERE = SharedDropout(0.3, ALL_SITES, ALL_PHASES)
EXPLORATIONS = [NoExploration(), HELD, EVERYWHERE, PerStepDropout(0.3, ALL_SITES)]

every_kind = pytest.mark.parametrize("kind", [*KINDS, "gemma2"])
every_exploration = pytest.mark.parametrize("exploration", EXPLORATIONS, ids=["none", "held", "everywhere", "per_step"])


def on_cuda(kind: str, dtype: torch.dtype) -> tuple[LatentModel, Prompts]:
    batch = prompts()
    moved = Prompts(batch.input_ids.to(CUDA), batch.attention_mask.to(CUDA))
    return latent_model(kind, dtype).to(CUDA), moved


@pytest.mark.parametrize("name", ["thought", "layers.11.mlp_hidden", "answer.3"])
def test_bits_of_the_gpu_are_those_of_the_cpu(name: str) -> None:
    counters, moved = stream(name, 1000), stream(name, 1000, CUDA)
    assert torch.equal(moved.cpu(), counters)
    assert torch.equal(random_bits(EDGES.to(CUDA), moved).cpu(), random_bits(EDGES, counters))
    assert torch.equal(uniform(EDGES.to(CUDA), moved).cpu(), uniform(EDGES, counters))
    assert torch.equal(fold(EDGES.to(CUDA), 12).cpu(), fold(EDGES, 12))
    for p in (0.1, 0.5):
        assert torch.equal(bernoulli(EDGES.to(CUDA), moved, p).cpu(), bernoulli(EDGES, counters, p))
    ids = torch.arange(50)
    assert torch.equal(rollout_seeds(-3, 9, ids.to(CUDA), 4).cpu(), rollout_seeds(-3, 9, ids, 4))
    assert not torch.equal(random_bits(EDGES.to(CUDA) + 1, moved).cpu(), random_bits(EDGES, counters))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masks_of_the_gpu_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    here, (there, _) = latent_model("qwen3", dtype), on_cuda("qwen3", dtype)
    ours, theirs = here.noise(EVERYWHERE, EDGES), there.noise(EVERYWHERE, EDGES)
    assert ours is not None
    assert theirs is not None
    actual = theirs.factors("latent", 0)
    for name, mask in ours.factors("latent", 0).items():
        assert actual[name].device.type == "cuda"
        assert torch.equal(actual[name].cpu(), mask)


@every_kind
@every_exploration
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_scores_and_gradients_agree(kind: str, exploration: Exploration, dtype: torch.dtype, tolerance: float) -> None:
    """Float32 gradients differ more between devices than within one: their matrix products add in other orders."""
    here, (there, moved) = latent_model(kind, dtype), on_cuda(kind, dtype)
    tokens = torch.tensor(ANSWERS)
    ours = replay(here, prompts(), SEEDS, tokens, exploration, temperature=0.9)
    theirs = replay(there, moved, SEEDS, tokens.to(CUDA), exploration, temperature=0.9)
    assert difference(theirs.detach().cpu(), ours.detach()) < min(tolerance, 1e-5)
    actual = {name: gradient.cpu() for name, gradient in gradients(there, theirs).items()}
    assert differences(actual, gradients(here, ours)) < tolerance
    other = replay(there, moved, SEEDS + 1, tokens.to(CUDA), exploration, temperature=0.9).detach().cpu()
    assert (difference(other, ours.detach()) > 1e-2) == isinstance(exploration, SharedDropout)


@every_kind
@every_exploration
def test_answers_agree(kind: str, exploration: Exploration) -> None:
    """Greedy and sampled, in float64, where no token depends on rounding."""
    here, (there, moved) = latent_model(kind), on_cuda(kind, torch.float64)
    for temperature in (0.0, 1.5):
        options = {"temperature": temperature, "max_completion_length": 8}
        ours = roll_out(here, prompts(), SEEDS, exploration, **options)
        theirs = roll_out(there, moved, SEEDS, exploration, **options)
        assert torch.equal(theirs.token_ids.cpu(), ours.token_ids)
        assert torch.equal(theirs.mask.cpu(), ours.mask)
        torch.testing.assert_close(theirs.logprobs.cpu(), ours.logprobs, rtol=0, atol=1e-10)
        torch.testing.assert_close(theirs.entropy.cpu(), ours.entropy, rtol=0, atol=1e-10)


def test_a_training_that_cannot_fit_is_refused_before_its_first_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "require_room", lambda parts, total: require_room(parts, 1000))
    with pytest.raises(UserError, match="without any batch"):
        GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(6), run=tmp_path, bf16=False).train()


def test_sampling_under_torchs_deterministic_algorithms() -> None:
    model, moved = on_cuda("qwen3", torch.float32)
    expected = roll_out(model, moved, SEEDS, HELD, temperature=1.5, max_completion_length=4, top_p=0.9)
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        actual = roll_out(model, moved, SEEDS, HELD, temperature=1.5, max_completion_length=4, top_p=0.9)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(actual.token_ids, expected.token_ids)


@every_kind
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_the_first_ratio_is_one(kind: str, bf16: bool) -> None:
    model, moved = on_cuda(kind, torch.float32)
    with autocast(CUDA, bf16):
        generation = roll_out(model, moved, SEEDS, HELD, temperature=1.3, max_completion_length=7)
        replayed = replay(model, moved, SEEDS, generation.token_ids, HELD, temperature=1.3)
    gap: Tensor = (replayed - generation.logprobs)[generation.mask].abs()
    assert gap.mean() < (0.1 if bf16 else 1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(model, replayed).values())


@pytest.mark.parametrize("longest", [64, 192])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])
def test_gradients_of_padded_prompts_in_bf16_are_finite_and_close(kind: str, longest: int) -> None:
    """At these lengths cuDNN's backward pass gives NaN for a row that sees nothing (pytorch#196678).

    The heads are 8 wide, as the fused kernels ask. Gemma 3 keeps its own attention: SDPA with a bool mask.
    """
    model = tiny_latent(kind, std=0.1, attn_implementation="sdpa").to(CUDA)
    rows = [[5 + i % 20 for i in range(length - 1)] + [START_ID] for length in (longest, longest - 1, 9)]
    batch, tokens = Prompts(*pad_left(rows, 0, CUDA)), torch.tensor(ANSWERS, device=CUDA) % START_ID
    assert batch.input_ids.shape[1] == longest
    actual = []
    for bf16 in (False, True):
        with autocast(CUDA, bf16):
            logprobs = replay(model, batch, SEEDS.to(CUDA), tokens, HELD, temperature=1.0)
        actual.append(gradients(model, logprobs))
    exact, rounded = actual
    assert all(gradient.isfinite().all() for gradient in rounded.values())
    for name, gradient in exact.items():
        assert (rounded[name] - gradient).norm() <= 0.2 * gradient.norm(), name


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("kind", KINDS)
def test_either_attention_reads_padded_prompts(choice: Choice, kind: str) -> None:
    """What a kernel makes of a row of padding must not reach the others in bf16 either."""
    here, batch = latent_model(kind, torch.float32), prompts()
    expected = here.read(batch.input_ids, batch.attention_mask)
    there, moved = on_cuda(kind, torch.float32)
    for bf16, tolerance in ((False, 1e-5), (True, 0.1)):
        with fixed_attention(choice), autocast(CUDA, bf16):
            state = there.read(moved.input_ids, moved.attention_mask)
        assert state.prefix is not None
        assert all(tensor.isfinite().all() for tensor in (*state.prefix.keys, *state.prefix.values))
        assert (state.hidden.cpu() - expected.hidden).abs().max() < tolerance
