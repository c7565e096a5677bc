"""The rows of the latent tokens: PEFT's own values and gradients, and no copy of a table."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.lora.token_rows import TokenRows
from helpers.tiny_lora import tiny_lora

KINDS = ("gpt2", "llama", "gemma2")  # tied embeddings; untied; tied and scaled
IDS = torch.tensor([[3, 28, 5, 30], [29, 7, 28, 1]])  # 28 to 30 are the latent tokens


def layers(model: LatentModel) -> list[TokenRows]:
    return [module for module in model.model.modules() if isinstance(module, TokenRows)]


def passed(model: LatentModel) -> tuple[Tensor, list[Tensor]]:
    """Logits of ids with latent tokens among them, and gradients of everything that is trained."""
    logits = model.model(input_ids=IDS).logits
    trained = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return logits.detach(), list(torch.autograd.grad((logits * weights).sum(), trained))


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_pefts(kind: str, tmp_path: Path) -> None:
    model = tiny_lora(tmp_path, kind, trained=True)
    assert len(layers(model)) == 2  # embeddings and head
    ours, our_gradients = passed(model)
    for layer in layers(model):
        layer.__class__ = TrainableTokensLayer
    pefts, peft_gradients = passed(model)
    torch.testing.assert_close(ours, pefts, atol=1e-5, rtol=1e-5)
    for actual, expected in zip(our_gradients, peft_gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
        assert actual.abs().max() > 1e-3


class Copies(TorchDispatchMode):
    """Counts new tensors of a table's size."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.count = table, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        is_new = isinstance(out, Tensor) and out.shape == self.table.shape
        self.count += is_new and out.untyped_storage().data_ptr() != self.table.untyped_storage().data_ptr()
        return out


@pytest.mark.parametrize(("kind", "loaded"), [("gpt2", False), ("llama", True), ("gemma2", True)])
def test_no_table_is_copied(kind: str, loaded: bool, tmp_path: Path) -> None:
    model = tiny_lora(tmp_path, kind, trained=True)
    if loaded:
        model.save_pretrained(tmp_path / "adapter")
        model = LatentModel.from_pretrained(tmp_path / "adapter")
    actual, counts = layers(model), []
    for kind_of_layer in (TokenRows, TrainableTokensLayer):
        for layer in actual:
            layer.__class__ = kind_of_layer
        with torch.no_grad(), Copies(actual[0].base_layer.weight) as copies:
            model.model(input_ids=IDS)
        counts.append(copies.count)
    assert counts == [0, 2]
    for layer in actual:
        layer.__class__ = TokenRows
    with torch.no_grad(), Copies(actual[0].base_layer.weight) as copies:  # fault: read and score asked for its width
        state = model.think(model.read(IDS, torch.ones_like(IDS)), 1)
        model.score(state, IDS[:, :2])
    assert copies.count == 0
