"""Embedding gradients as rows: the same gradients as whole tables, with one table instead of one for each look-up."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.training import embeddings
from dropout_grpo.training.embeddings import make_dense, rows_as_gradients
from helpers.tiny_latent import tiny_latent, tiny_problems

STAGES = CurriculumConfig(
    c_thought=1, max_latent_stage=2, cot_epochs=0, epochs_per_stage=1, final_epochs=0, batch_size=5, micro_batch_size=2
)


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Word 2 is read twice, in two look-ups; word 0 never."""
    monkeypatch.setattr(embeddings, "LARGE", 6)
    table = nn.Embedding(3, 2)
    with rows_as_gradients(table):
        table(torch.tensor([2, 1])).sum().backward()
        (3 * table(torch.tensor([2]))).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert not table.sparse
    make_dense(table)
    assert torch.equal(table.weight.grad, torch.tensor([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0]]))


def test_who_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "LARGE", 6)

    class Scaled(nn.Embedding):
        pass

    model = nn.ModuleList([nn.Embedding(3, 2), nn.Embedding(2, 2), Scaled(3, 2), nn.Embedding(3, 2)])
    model[3].weight.requires_grad_(False)
    with rows_as_gradients(model):
        assert [table.sparse for table in model] == [True, False, False, False]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gemma"])
def test_gradients_are_those_of_whole_tables(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, with micro-batches and thoughts; heads that share the table, and heads of their own."""
    gradients = []
    for large in (1, 10**9):
        monkeypatch.setattr(embeddings, "LARGE", large)
        model = tiny_latent(kind, dtype=torch.float64)
        made = CurriculumTrainer(model, STAGES, tiny_problems(5, steps=3), tmp_path / str(large))
        with rows_as_gradients(model):
            made.backward(made.stages[1], list(range(5)), 0)
        tied = model.model.get_input_embeddings().weight is model.model.get_output_embeddings().weight
        grad = model.model.get_input_embeddings().weight.grad
        assert grad.is_sparse == (large == 1 and not tied and kind != "gemma")
        make_dense(model)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=0, atol=1e-14), name


@pytest.mark.parametrize("param_dtype", [None, "bfloat16"])
def test_a_training(param_dtype: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after three updates, also with masters, whose gradients are float32."""
    ends = []
    for large in (1, 10**9):
        monkeypatch.setattr(embeddings, "LARGE", large)
        model = tiny_latent("qwen2")
        CurriculumTrainer(
            model, STAGES, tiny_problems(5, steps=3), tmp_path / str(large), param_dtype=param_dtype
        ).train()
        ends.append({name: p.detach() for name, p in model.named_parameters()})
    for name, weight in ends[0].items():
        assert torch.allclose(weight, ends[1][name], rtol=0, atol=1e-6 if param_dtype is None else 2e-3), name
