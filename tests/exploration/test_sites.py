"""Sites that cannot be found: the message says which layer, and what modules there are."""

import pytest
import torch
from torch import nn

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.sites import SiteMap
from helpers.tiny import tiny_model


def test_an_unknown_projection_is_named_with_the_modules_there_are() -> None:
    model = tiny_model("llama")
    layer = model.model.layers[1]
    layer.mlp.last = layer.mlp.down_proj
    del layer.mlp.down_proj
    with pytest.raises(UserError, match=r"layer 1 \(LlamaDecoderLayer\) has no MLP output projection") as error:
        SiteMap(model.get_decoder(), 16, 4)
    for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.last"):
        assert name in str(error.value)


@pytest.mark.parametrize("lists", [0, 2])
def test_a_model_without_one_list_of_layers_is_refused_with_its_children(lists: int) -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16)
            for i in range(lists):
                setattr(self, f"stack{i}", nn.ModuleList(tiny_model("llama").model.layers))

    with pytest.raises(UserError, match=f"found {lists} lists of decoder layers in Strange") as error:
        SiteMap(Strange(), 16, 4)
    assert ", ".join(["norm", "stack0", "stack1"][: lists + 1]) in str(error.value)


def test_a_config_without_heads_is_refused() -> None:
    with pytest.raises(UserError, match="config of LlamaModel has no num_attention_heads"):
        SiteMap(tiny_model("llama").get_decoder(), 16, 0)


def test_a_site_takes_its_width_from_its_module() -> None:
    """Not from what is fed back: OPT-350m's embeddings are narrower than its layers."""
    sites = SiteMap(tiny_model("opt_350m").get_decoder(), 12, 4)
    counts = {site.name: site.count for site in sites.instances(("residual", "heads", "mlp_hidden", "thought"))}
    assert counts["thought"] == 12
    assert {counts[f"layers.{i}.{kind}"] for i in range(2) for kind in ("attention", "mlp")} == {16}
    with sites.multiplied({"layers.0.attention": torch.zeros(1, 1, 16)}):
        pass  # widths agree with the module's, or the next test of a forward pass would say so
