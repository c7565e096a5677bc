"""Sites that cannot be found, which a message names; and what the sites of unusual layers cover."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.sites import SiteMap
from dropout_grpo.latent.recurrence import sites_of
from helpers import families
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


GEMMA4 = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
}
MIXTURE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
ALONE = {"layer_types": ["attention"] * 2, "mamba_n_heads": 4, "mamba_expand": 2, "num_local_experts": 0}


def built(kind: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> PreTrainedModel:
    if kind == "gemma4_text":
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**GEMMA4, **options})).eval()
    monkeypatch.setattr(families, "SPECIAL", {kind: options})
    return families.tiny(kind, torch.float32)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("mixtral", {}),
        ("granitemoeshared", {"shared_intermediate_size": 48}),
        ("granitemoehybrid", {**ALONE, "shared_intermediate_size": 48}),
        ("gemma4_text", MIXTURE),
    ],
)
def test_without_its_residual_sites_a_layer_changes_nothing(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: a mixture of experts and the MLP beside it were not both masked."""
    model, changes = built(kind, monkeypatch, **options), []
    sites = sites_of(model)

    def note(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        changes.append(float((after - before).abs().max().detach()))

    for layer in sites.layers:
        layer.register_forward_hook(note, with_kwargs=True)
    zeros = {site.name: torch.zeros(2, 1, site.count) for site in sites.instances(("residual",))}
    embeds = model.get_input_embeddings()(torch.tensor([[3, 4, 5], [6, 7, 8]]))
    with sites.multiplied(zeros):
        model.get_decoder()(inputs_embeds=embeds, use_cache=False)
    assert max(changes) < 1e-6
    model.get_decoder()(inputs_embeds=embeds, use_cache=False)
    assert max(changes) > 1e-2


@pytest.mark.parametrize(
    ("kind", "options", "widths"),
    [
        ("gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 1}, [(16, 2, 8), (16, 4, 16)]),
        ("mimo_v2_flash", {}, [(16, 2, 8), (32, 1, 8)]),
    ],
)
def test_values_have_the_key_heads_of_their_own_layer(
    kind: str, options: dict[str, Any], widths: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """(features, query heads that share a value head, features of a head). Fault: the config's number in all layers."""
    sites = sites_of(built(kind, monkeypatch, **options)).instances(("values",))
    assert [(site.count, site.repeat, site.block) for site in sites] == widths


@pytest.mark.parametrize("kind", ["diffllama", "doge"])
def test_attention_that_does_more_than_to_average_values_has_no_such_site(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "values" in sites_of(built(kind, monkeypatch)).lacking
