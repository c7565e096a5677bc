"""CUDA graphs of thinking and answering, compared with running step by step. Run with ``pytest -m gpu``.

What of this can be seen on a CPU is in test_graphs.py.
"""

import pytest
import torch
from torch import Tensor

from dropout_grpo.evaluation.answering import EvaluationConfig, answer_problems
from dropout_grpo.exploration import Exploration
from dropout_grpo.latent import LatentModel, graphs
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.graphs import step_by_step
from dropout_grpo.latent.rollout import Prompts, roll_out
from helpers.engine import EXPLORATIONS, HELD, OTHERS, QUESTIONS, difference, latent_model, prompts
from helpers.tiny import KINDS
from helpers.tiny_latent import tiny_latent, tiny_problems

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

CUDA = torch.device("cuda")
SEEDS = torch.arange(12).view(3, 4) - 5
LENGTH = 6


def on_cuda(kind: str, dtype: torch.dtype = torch.float64) -> LatentModel:
    graphs.forget_recordings()
    return latent_model(kind, dtype).to(CUDA)


def rollouts(
    model: LatentModel,
    rows: list[list[int]],
    seeds: Tensor = SEEDS,
    exploration: Exploration = HELD,
    *,
    temperature: float = 1.5,
    bf16: bool = False,
) -> Generation:
    batch = prompts(rows)
    moved = Prompts(batch.input_ids.to(CUDA), batch.attention_mask.to(CUDA))
    with torch.no_grad(), autocast(CUDA, bf16):
        return roll_out(model, moved, seeds, exploration, temperature=temperature, max_completion_length=LENGTH)


def recorded(model: LatentModel) -> int:
    """Shapes of the model that have graphs."""
    return len(graphs._RECORDINGS[model])


def assert_same(actual: Generation, expected: Generation, tolerance: float = 1e-10) -> None:
    assert torch.equal(actual.token_ids, expected.token_ids)
    assert torch.equal(actual.mask, expected.mask)
    assert difference(actual.logprobs, expected.logprobs) < tolerance
    assert difference(actual.entropy, expected.entropy) < tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exploration", EXPLORATIONS.values(), ids=list(EXPLORATIONS))
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_replayed_graphs_are_the_steps(kind: str, exploration: Exploration, temperature: float) -> None:
    """Two batches through one graph, one after the other and back."""
    model, batches = on_cuda(kind), [(QUESTIONS, SEEDS), (OTHERS, SEEDS + 100)]
    with step_by_step():
        expected = [rollouts(model, *batch, exploration, temperature=temperature) for batch in batches]
    for batch in (0, 0, 1, 0):
        assert_same(rollouts(model, *batches[batch], exploration, temperature=temperature), expected[batch])
    assert recorded(model) == 2


@pytest.mark.parametrize("bf16", [False, True])
def test_moved_weights_are_seen(bf16: bool) -> None:
    model = on_cuda("llama", torch.float32)
    with step_by_step():
        before = rollouts(model, OTHERS, bf16=bf16)
    for _ in range(2):
        rollouts(model, QUESTIONS, bf16=bf16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1).add_(0.02)
    actual = rollouts(model, OTHERS, bf16=bf16)
    with step_by_step():
        expected = rollouts(model, OTHERS, bf16=bf16)
    gaps = [(actual.entropy[:, 0] - other.entropy[:, 0]).abs().max() for other in (expected, before)]
    assert gaps[0] < (2e-2 if bf16 else 1e-5) < gaps[1] / 2
    assert recorded(model) == 2


def test_steps_after_a_recording_have_casts_with_values() -> None:
    """In one block of autocast: recorded, then launched one by one on weights that the recording has cast."""
    model = on_cuda("llama", torch.float32)
    with autocast(CUDA, True):
        for _ in range(2):
            rollouts(model, QUESTIONS, bf16=True)
        with step_by_step():
            actual = rollouts(model, QUESTIONS, bf16=True)
    with step_by_step():
        assert_same(actual, rollouts(model, QUESTIONS, bf16=True), 1e-6)


def test_evaluation_is_the_same() -> None:
    graphs.forget_recordings()
    model, problems = tiny_latent(dtype=torch.float64, seed=17).to(CUDA), tiny_problems(7)
    config = EvaluationConfig(num_samples=3, max_new_tokens=6, batch_size=9)
    with step_by_step():
        expected = answer_problems(model, problems, config, exploration=HELD)
    for _ in range(3):
        assert answer_problems(model, problems, config, exploration=HELD) == expected
    assert recorded(model) >= 5


def test_shapes_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings that share memory, of which the oldest go; then all of them, and one is made anew."""
    monkeypatch.setattr(graphs, "MOST_SHAPES", 4)
    model = on_cuda("gpt2")
    with step_by_step():
        expected = {k: rollouts(model, QUESTIONS, SEEDS[:, :k]) for k in (1, 2, 3, 4)}
    for _ in range(2):
        for k in (1, 2, 3, 4, 3):
            for _ in range(3):
                assert_same(rollouts(model, QUESTIONS, SEEDS[:, :k]), expected[k])
    assert recorded(model) == 4
    graphs.forget_recordings()
    torch.cuda.empty_cache()
    for _ in range(3):
        assert_same(rollouts(model, QUESTIONS), expected[4])
