"""The forms of a model that the trainers take, and the refusals of what cannot be trained."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dropout_grpo import LatentModel, UserError
from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from dropout_grpo.training import model_argument
from dropout_grpo.training.model_argument import as_latent_model, lora_of, require_param_dtype, require_trainable
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tiny_latent import PLAIN_TOKENS, assert_same_weights, tiny_latent, weights_of


def plain(**options: Any) -> PreTrainedModel:
    """A language model without latent tokens, in float32."""
    return tiny_model("gpt2", torch.float32, vocab_size=PLAIN_TOKENS, **options)


def saved(folder: Path) -> Path:
    plain().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["object", "object of a folder", "folder", "text"])
def test_a_plain_model_gets_the_tokens_that_the_curriculum_adds(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path)
    given: Any = {"object": plain(), "folder": folder, "text": str(folder)}.get(form)
    if given is None:
        given = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = tiny_tokenizer() if form == "object" else None
    latent = as_latent_model(given, processing_class=tokenizer, latent_steps=2, untaught=" And now?")
    assert_same_weights(weights_of(latent), weights_of(tiny_latent()))
    assert latent.latent_steps == 2
    assert "had no latent tokens: Coconut's three are added. And now?" in " ".join(capsys.readouterr().err.split())


def test_half_precision_becomes_float32(capsys: pytest.CaptureFixture[str]) -> None:
    latent = as_latent_model(plain().to(torch.bfloat16), processing_class=tiny_tokenizer(), latent_steps=2)
    assert {parameter.dtype for parameter in latent.parameters()} == {torch.float32}
    assert "weights of bfloat16 are trained in float32" in " ".join(capsys.readouterr().err.split())


def test_a_latent_checkpoint_keeps_its_steps_by_name_and_as_an_object(tmp_path: Path) -> None:
    expected = tiny_latent(latent_steps=3)
    expected.save_pretrained(tmp_path)
    for given in (tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path)):
        latent = as_latent_model(given)
        assert latent.latent_steps == 3
        assert_same_weights(weights_of(latent), weights_of(expected))
    chat = tiny_latent()
    chat.prompt_format = "codi"
    chat.save_pretrained(tmp_path / "chat")
    for given in (
        tmp_path / "chat",
        AutoModelForCausalLM.from_pretrained(tmp_path / "chat"),
    ):  # fault: not the object's
        assert as_latent_model(given).prompt_format == "codi"
    assert as_latent_model(expected, processing_class=expected.tokenizer) is expected
    with pytest.raises(UserError, match="latent_steps=2 contradicts the model, which has 3"):
        as_latent_model(expected, latent_steps=2)
    with pytest.raises(UserError, match="processing_class is not the tokenizer of"):
        as_latent_model(tmp_path, processing_class=tiny_tokenizer())
    with_template = deepcopy(expected.tokenizer)
    with_template.chat_template = "{{ messages[0].content }}"
    for latent_form in (tmp_path, expected):
        with pytest.raises(UserError, match=r"another chat_template than the tokenizer of .*, which is used: leave"):
            as_latent_model(latent_form, processing_class=with_template)
    tiny_latent(thought="pause").save_pretrained(tmp_path / "pause")
    with pytest.raises(UserError, match="thoughts of its own kind: give its name as model"):
        as_latent_model(AutoModelForCausalLM.from_pretrained(tmp_path / "pause"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"processing_class": tiny_tokenizer()},
            "is a plain language model: give latent_steps, the number of thoughts",
        ),
        ({"latent_steps": 2}, "processing_class is missing: give the tokenizer of the GPT2LMHeadModel"),
        ({"latent_steps": 2, "processing_class": "gpt2"}, "processing_class is a str, not a tokenizer"),
        ({"model": torch.nn.Linear(1, 1)}, "model is a Linear: give a LatentModel, a PreTrainedModel, a folder or"),
    ],
)
def test_what_is_missing_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_latent_model(**{"model": plain(), **given})


def test_flash_attention_is_refused_by_its_name() -> None:
    """Fault: the message said that the model could not be run from embeddings."""
    model = tiny_model("llama", vocab_size=PLAIN_TOKENS)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="load the model with attn_implementation='sdpa'"):
        as_latent_model(model, processing_class=tiny_tokenizer(), latent_steps=2)


def test_the_thoughts_of_an_object_are_not_replaced(tmp_path: Path) -> None:
    """Fault: a trained projection began again from the seed."""
    tiny_latent(thought="projection").save_pretrained(tmp_path)
    inner, _ = load_causal_lm(tmp_path)
    for thought in ("projection", "hidden_state"):
        with pytest.raises(UserError, match="has thoughts of its own kind: give its name as model"):
            as_latent_model(inner, thought=thought)


def test_a_latent_model_on_the_cpu_is_placed_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_argument, "default_device", lambda: torch.device("meta"))  # as if it were a GPU
    given = tiny_latent()
    assert as_latent_model(given) is given
    assert given.device.type == "meta"


def test_a_plain_model_stays_on_the_gpu_where_the_user_has_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: it was moved to the first one."""
    monkeypatch.setattr(model_argument, "default_device", lambda: pytest.fail("it is not on the CPU"))
    given = plain().to("meta")  # as if it were cuda:1
    made = as_latent_model(given, processing_class=tiny_tokenizer(), latent_steps=2)
    assert made.device.type == "meta"


def test_weights_on_several_devices_are_refused() -> None:
    """Fault: torch's error at the first matrix product."""
    spread = plain()
    spread.lm_head.to("meta")
    with pytest.raises(UserError, match="GPT2LMHeadModel lie on several devices: load the model without device_map"):
        as_latent_model(spread, processing_class=tiny_tokenizer(), latent_steps=2)


@pytest.mark.parametrize("thought", ["hidden_state", "pause", "projection"])
def test_an_adapter_makes_a_bf16_latent_model_float32(thought: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_latent(thought=thought).save_pretrained(tmp_path)
    halves = LatentModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    adapted = as_latent_model(halves, peft_config=LoRAConfig(r=2))
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.float32}
    require_trainable(adapted)
    assert len(adapted.answer(["Ann has 3"], 2)) == 1


def test_a_quantised_model_is_refused_before_its_weights_are_changed() -> None:
    quantised = plain().to(torch.bfloat16)
    quantised.is_quantized = True  # as transformers marks it
    with pytest.raises(UserError, match="the weights of GPT2LMHeadModel are quantised"):
        as_latent_model(quantised, processing_class=tiny_tokenizer(), latent_steps=2)
    latent = tiny_latent()
    latent.model.is_quantized = True
    with pytest.raises(UserError, match="are quantised"):
        as_latent_model(latent)


def test_a_dtype_that_is_not_one_is_refused() -> None:
    """Fault: float32 weights were trained."""
    require_param_dtype(None, tiny_latent(), fsdp=False)
    with pytest.raises(UserError, match="param_dtype='bf16' must be one of float32, bfloat16"):
        require_param_dtype("bf16", tiny_latent(), fsdp=False)  # type: ignore[arg-type]


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_argument, "is_sharded", lambda model: True)
    for use in (as_latent_model, require_trainable):
        with pytest.raises(
            UserError, match="are sharded by an earlier training with fsdp: save the model, and load it"
        ):
            use(tiny_latent())


def test_an_adapter_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = saved(tmp_path)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn"], task_type="CAUSAL_LM")
    latent = as_latent_model(folder, latent_steps=2, peft_config=config)
    trained = [name for name, parameter in latent.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name or "trainable_tokens" in name for name in trained)
    assert lora_of(config, latent) == LoRAConfig(r=3, lora_alpha=5, target_modules=("c_attn",))
    assert lora_of(peft.LoraConfig(), latent) == LoRAConfig(r=8, lora_alpha=8, target_modules=("c_attn",))
    assert lora_of(peft.LoraConfig(r=2, target_modules="all-linear"), latent) == LoRAConfig(r=2, lora_alpha=8)
    for refused, message in (
        ({"lora_dropout": 0.1}, "lora_dropout=0.1 is not supported; noise is the trainer's exploration here"),
        ({"use_rslora": True}, "use_rslora=True is not supported: only r, lora_alpha, target_modules are"),
        ({"target_modules": ".*attn"}, "is a pattern: give a list of names"),
    ):
        with pytest.raises(UserError, match=message):
            lora_of(peft.LoraConfig(**refused), latent)
    with pytest.raises(UserError, match=r"peft_config is a dict: only peft.LoraConfig"):
        lora_of({"r": 3}, latent)
    with pytest.raises(UserError, match="model is a PeftModelForCausalLM: give its base"):
        as_latent_model(peft.get_peft_model(plain(), config), latent_steps=2)
