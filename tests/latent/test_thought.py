"""What is fed back: the hidden state, CODI's projection of it, or the control's learned vector.

The projection's formula and all gradients are compared with the oracle in ``exactness/test_parity.py``.
"""

import pytest
import torch

from dropout_grpo.latent.thought import (
    PauseThought,
    ProjectionThought,
    build_thought,
)
from helpers.tiny_latent import tiny_latent


def test_pause_is_one_vector_whatever_the_hidden_state() -> None:
    thought = PauseThought(torch.tensor([1.0, 2.0, 3.0]))
    hidden = torch.randn(2, 1, 3, dtype=torch.float64, requires_grad=True)
    fed_back = thought(hidden)
    assert fed_back.tolist() == [[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]]
    assert fed_back.dtype == torch.float64
    fed_back.sum().backward()
    assert thought.vector.grad is not None
    assert thought.vector.grad.tolist() == [[[2.0, 2.0, 2.0]]]  # the gradients of both rows
    assert hidden.grad is None  # no content goes through the steps


@pytest.mark.parametrize(
    ("kind", "dtype"), [("gpt2", torch.float32), ("gemma3_text", torch.float64), ("gemma3_text", torch.bfloat16)]
)
def test_pause_starts_from_what_the_latent_token_would_feed_in(kind: str, dtype: torch.dtype) -> None:
    """In the model's dtype; Gemma multiplies its embeddings by the square root of the width, 4."""
    model = tiny_latent(kind, dtype, thought="pause", attn_implementation="sdpa")
    row = model.model.get_input_embeddings().weight[model.tokens.latent]
    assert model.thought.vector.dtype == dtype
    assert torch.equal(model.thought.vector[0, 0], row * 4 if kind == "gemma3_text" else row)


def test_projection_has_the_names_of_codis_checkpoints() -> None:
    """``prj`` is dropout (0), linear (1), GELU (2), linear (3) and ``ln`` there."""
    thought = ProjectionThought(3, 5)
    assert {name: tuple(tensor.shape) for name, tensor in thought.state_dict().items()} == {
        "prj.1.weight": (5, 3),
        "prj.1.bias": (5,),
        "prj.3.weight": (3, 5),
        "prj.3.bias": (3,),
        "prj.ln.weight": (3,),
        "prj.ln.bias": (3,),
    }


def test_projection_starts_from_its_seed_alone() -> None:
    """As torch starts its layers, from the seed given; the global generator neither matters nor moves."""
    before = torch.get_rng_state()
    first = ProjectionThought(16, 16, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    same, other, wide = (ProjectionThought(16, 16, dtype=d, seed=s) for d, s in DTYPES_AND_SEEDS)
    for name, tensor in first.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert torch.equal(wide.state_dict()[name], tensor.double())
    assert not torch.equal(other.prj[0].weight, first.prj[0].weight)
    assert first.prj[0].weight.abs().max() <= 16**-0.5  # uniform in +-1 / sqrt(width), torch's own
    assert first.prj[-1].weight.tolist() == [1.0] * 16


DTYPES_AND_SEEDS = [(torch.float32, 3), (torch.float32, 4), (torch.float64, 3)]


def test_the_seeds_of_a_gpu_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the user's own sampling on the GPU began again."""

    def refuse(seed: int) -> None:
        raise AssertionError(seed)

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    first, second = (build_thought("projection", torch.zeros(4), prj_dim=3, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
