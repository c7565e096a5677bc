"""What is fed back: the hidden state, CODI's projection of it, or the control's learned vector."""

import math

import pytest
import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.latent.thought import (
    HiddenStateThought,
    PauseThought,
    ProjectionThought,
    build_thought,
)
from helpers.tiny_latent import tiny_latent, weights_of


def test_by_name() -> None:
    latent = torch.arange(4.0)
    assert isinstance(build_thought("hidden_state", latent), HiddenStateThought)
    assert isinstance(build_thought("pause", latent), PauseThought)
    assert isinstance(build_thought("projection", latent), ProjectionThought)
    with pytest.raises(UserError, match="thought 'paus' is unknown; known are hidden_state, pause, projection"):
        build_thought("paus", latent)


def test_hidden_state_is_itself() -> None:
    hidden = torch.randn(2, 1, 4)
    assert HiddenStateThought()(hidden) is hidden
    assert not list(HiddenStateThought().parameters())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_pause_starts_from_what_the_latent_token_would_feed_in(kind: str, dtype: torch.dtype) -> None:
    """In the model's dtype; Gemma multiplies its embeddings by the square root of the width, 4."""
    model = tiny_latent(kind, dtype, thought="pause", attn_implementation="sdpa")
    row = model.model.get_input_embeddings().weight[model.tokens.latent]
    assert model.thought.vector.dtype == dtype
    assert torch.equal(model.thought.vector[0, 0], row * 4 if kind == "gemma3_text" else row)


def test_pause_learns() -> None:
    model = tiny_latent(thought="pause")
    state = model.think(model.read(*model.encode(["Ann has 3"])), 2)
    model.score(state, torch.tensor([[25, 1]])).sum().backward()
    assert model.thought.vector.grad is not None
    assert model.thought.vector.grad.abs().min() > 0
    assert "thought.vector" in weights_of(model)


def by_hand(thought: ProjectionThought, hidden: list[float]) -> list[float]:
    """CODI's projection in Python's floats: linear, GELU, linear, layer norm with its gain and bias."""
    w = {name: tensor.tolist() for name, tensor in thought.prj.state_dict().items()}

    def linear(name: str, x: list[float]) -> list[float]:
        rows = zip(w[f"{name}.weight"], w[f"{name}.bias"], strict=True)
        return [sum(a * b for a, b in zip(row, x, strict=True)) + bias for row, bias in rows]

    inner = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in linear("1", hidden)]
    out = linear("3", inner)
    mean = sum(out) / len(out)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in out) / len(out) + 1e-5)
    norm = zip(out, w["ln.weight"], w["ln.bias"], strict=True)
    return [(x - mean) / deviation * gain + bias for x, gain, bias in norm]


def test_projection_is_codis_formula() -> None:
    thought = ProjectionThought(3, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in thought.parameters():  # gains and biases that are neither 1 nor 0
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    hidden = torch.tensor([[[0.5, -1.0, 2.0]], [[3.0, 0.1, -0.7]]], dtype=torch.float64)
    found = thought(hidden)
    expected = [[by_hand(thought, row[0])] for row in hidden.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


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


def test_projection_learns_and_so_does_what_it_reads() -> None:
    model = tiny_latent(thought="projection")
    assert model.thought.prj_dim == 16  # the model's width
    state = model.think(model.read(*model.encode(["Ann has 3"])), 2)
    model.score(state, torch.tensor([[25, 1]])).sum().backward()
    for name, parameter in model.thought.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def fed_back(thought: str) -> Tensor:
    """The first thoughts about two questions, [2, 1, D]."""
    model = tiny_latent(thought=thought)
    seen: list[Tensor] = []
    model.thought.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model.think(model.read(*model.encode(["Ann has 3", "Ann has 4"])), 1)
    return seen[0]


@pytest.mark.parametrize(("thought", "carries"), [("hidden_state", True), ("projection", True), ("pause", False)])
def test_pause_steps_carry_no_content(thought: str, carries: bool) -> None:
    first, second = fed_back(thought)
    assert (not torch.equal(first, second)) == carries
