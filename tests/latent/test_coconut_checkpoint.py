"""Published layouts: facebookresearch/coconut's ``state_dict`` and ModalityDance/latent-tts-coconut's folder.

Both are made here from one tiny model, which the oracle asks for greedy answers; what is loaded must say the same.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.errors import UserError
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.io import coconut
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from helpers.oracle import oracle_greedy
from helpers.tiny import EOS_ID, PAD_ID, tiny_model, tiny_tokenizer

QUESTIONS = ["Ann has 3", "Bob has 4 ? ?", "how many ?"]
STEPS, LENGTH = 3, 6
START, END = 28, 29  # Coconut adds start, end, latent, in this order, after a vocabulary of 28

State = dict[str, Tensor]


class Coconut(nn.Module):
    """The parameters of Coconut's module under its names: the language model, and its embeddings once more."""

    def __init__(self, base_causallm: PreTrainedModel) -> None:
        super().__init__()
        self.base_causallm = base_causallm
        self.embedding = base_causallm.get_input_embeddings()


def tokenizer_of_coconut() -> PreTrainedTokenizerBase:
    tokenizer = tiny_tokenizer()
    for token in ("<|start-latent|>", "<|end-latent|>", "<|latent|>"):
        tokenizer.add_tokens(token)
    assert tokenizer.convert_tokens_to_ids(["<|start-latent|>", "<|end-latent|>", "<|latent|>"]) == [28, 29, 30]
    return tokenizer


def trained(kind: str, rows: int = 31) -> PreTrainedModel:
    """As if Coconut had trained it: other weights than the base's, other rows for each of the three tokens."""
    return tiny_model(kind, torch.float32, seed=5, vocab_size=rows)


def save_base(folder: Path, kind: str, vocab_size: int = 28) -> Path:
    tiny_model(kind, torch.float32, seed=4, vocab_size=vocab_size).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def expected_answers(model: PreTrainedModel) -> list[list[int]]:
    """Greedy answers by the oracle: no cache, no padding, none of the library's code."""
    tokenizer = tokenizer_of_coconut()
    prompts = [[*tokenizer.encode(question + "\n"), START] for question in QUESTIONS]
    answers = [oracle_greedy(model, prompt, STEPS, END, EOS_ID, LENGTH) for prompt in prompts]
    assert answers[0] != answers[1] != answers[2]
    return answers


def answers_of(model: LatentModel) -> list[list[int]]:
    """Greedy answers by the library, all questions in one padded batch."""
    with torch.no_grad():
        state = model.think(model.read(*model.encode(QUESTIONS)), model.latent_steps)
    generation = model.generate(state, LENGTH)
    return [ids[mask].tolist() for ids, mask in zip(generation.token_ids, generation.mask, strict=True)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # a tied and an untied head
@pytest.mark.parametrize("padded", [False, True], ids=["exact", "padded"])  # Coconut cuts a padded table to its tokens
def test_a_state_dict_answers_as_the_model_it_was_saved_from(kind: str, padded: bool, tmp_path: Path) -> None:
    model = trained(kind)
    torch.save(Coconut(model).state_dict(), tmp_path / "checkpoint_33")
    base = save_base(tmp_path / "base", kind, vocab_size=40 if padded else 28)
    loaded = LatentModel.from_pretrained(tmp_path / "checkpoint_33", base=base, latent_steps=STEPS)
    assert (loaded.tokens.start, loaded.tokens.end, loaded.tokens.latent) == (28, 29, 30)
    assert loaded.model.get_input_embeddings().weight.shape[0] == loaded.model.config.vocab_size == 31
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert answers_of(loaded) == expected_answers(model)
    assert loaded.name == str(tmp_path / "checkpoint_33")

    loaded.save_pretrained(tmp_path / "converted")  # from here on a folder like any other
    assert answers_of(LatentModel.from_pretrained(tmp_path / "converted")) == expected_answers(model)


def test_bf16_weights_load_in_the_dtype_asked_for(tmp_path: Path) -> None:
    """Coconut casts to bf16 with ``bf16: True``."""
    model = trained("gpt2").bfloat16()
    torch.save(Coconut(model).state_dict(), tmp_path / "checkpoint_33")
    base = save_base(tmp_path / "base", "gpt2")
    loaded = LatentModel.from_pretrained(
        tmp_path / "checkpoint_33", base=base, latent_steps=STEPS, dtype=torch.float64, thought="pause"
    )
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    assert loaded.answer(QUESTIONS, LENGTH)
    assert torch.equal(loaded.thought.vector[0, 0], model.get_input_embeddings().weight[30].double())


def test_a_plain_folder_with_the_tokens_answers_as_the_model_in_it(tmp_path: Path) -> None:
    """latent-tts-coconut: a GPT-2 folder, its own class in config.json, the tokens, no latent_config.json."""
    model = trained("gpt2")
    model.save_pretrained(tmp_path)
    tokenizer_of_coconut().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["COCONUTGPT2"], "latent_id": 30, "latent_start_id": 28, "latent_end_id": 29}
    (tmp_path / "config.json").write_text(json.dumps({**config, "target_id": 5}), encoding="utf-8")
    with pytest.raises(UserError, match=r"no latent_config\.json: give latent_steps \(on the command line --latent_"):
        LatentModel.from_pretrained(tmp_path)
    loaded = LatentModel.from_pretrained(tmp_path, latent_steps=STEPS)
    assert answers_of(loaded) == expected_answers(model)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, Path, State]:
    """A file, its base, and what the file holds."""
    return tmp_path / "checkpoint_3", save_base(tmp_path / "base", "gpt2"), Coconut(trained("gpt2")).state_dict()


NET = "base_causallm.transformer"
TABLES = ("embedding.weight", f"{NET}.wte.weight", "base_causallm.lm_head.weight")


def without_prefix(state: State) -> None:
    for name in list(state):
        state[name.removeprefix("base_causallm.")] = state.pop(name)


DAMAGES: dict[str, tuple[Callable[[State], object], str]] = {
    "weight lost": (
        lambda s: s.pop(f"{NET}.h.1.mlp.c_fc.weight"),
        r"missing: transformer\.h\.1\.mlp\.c_fc",
    ),
    "tied weight lost": (lambda s: [s.pop(name) for name in TABLES[1:]], r"missing: lm_head\.weight, transformer\.wte"),
    "too much inside": (lambda s: s.update({f"{NET}.h.2.x": torch.ones(1)}), rf"unexpected: {NET}\.h\.2\.x\."),
    "too much outside": (lambda s: s.update(projection=torch.ones(16)), r"unexpected: projection\."),
    "wider": (
        lambda s: s.update({f"{NET}.h.0.ln_1.bias": torch.ones(17)}),
        r"of another shape: transformer\.h\.0\.ln_1\.bias \(17,\) where the base has \(16,\)\.",
    ),
    "shorter": (
        lambda s: s.update({name: s[name][:30] for name in TABLES}),
        r"has 30 embeddings, but .*has 31",
    ),
    "another duplicate": (
        lambda s: s.update({TABLES[0]: s[TABLES[0]] + 1}),
        r"embedding\.weight is not base",
    ),
    "no prefix": (without_prefix, r"none of its keys begins with base_causallm\. .*CoT stage"),
    "wrapped": (lambda s: s.update(model=dict(s)), "is not a state_dict: it holds a "),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_weights_that_do_not_fit_are_refused(what: str, checkpoint: tuple[Path, Path, State]) -> None:
    file, base, state = checkpoint
    torch.save(state, file)
    LatentModel.from_pretrained(file, base=base, latent_steps=STEPS)
    change, message = DAMAGES[what]
    change(state)
    torch.save(state, file)
    with pytest.raises(UserError, match=message):
        LatentModel.from_pretrained(file, base=base, latent_steps=STEPS)


def test_one_name_of_a_tied_weight_is_enough(checkpoint: tuple[Path, Path, State]) -> None:
    file, base, state = checkpoint
    del state["base_causallm.lm_head.weight"], state["embedding.weight"]
    torch.save(state, file)
    loaded = LatentModel.from_pretrained(file, base=base, latent_steps=STEPS)
    assert answers_of(loaded) == expected_answers(trained("gpt2"))
    assert loaded.tokens.pad == PAD_ID


class Opens:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_executed(checkpoint: tuple[Path, Path, State], tmp_path: Path) -> None:
    file, base, state = checkpoint
    torch.save({**state, "evil": Opens(tmp_path / "evil")}, file)
    with pytest.raises(UserError, match=r"not a state_dict that torch\.load can read with weights_only"):
        LatentModel.from_pretrained(file, base=base, latent_steps=STEPS)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 half of a file"])
def test_a_file_that_is_none_is_named(content: bytes, checkpoint: tuple[Path, Path, State]) -> None:
    file, base, _ = checkpoint
    file.write_bytes(content)
    with pytest.raises(UserError, match="checkpoint_3 is not a state_dict") as error:
        LatentModel.from_pretrained(file, base=base, latent_steps=STEPS)
    assert "weights_only=False" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrapped_dictionary_is_read(checkpoint: tuple[Path, Path, State]) -> None:
    """As Dropout-GRPO's authors save it, among other things."""
    file, base, state = checkpoint
    torch.save({"model_state_dict": state, "epoch": 3, "optimizer_state_dict": {"state": {0: torch.ones(2)}}}, file)
    loaded = LatentModel.from_pretrained(file, base=base, latent_steps=STEPS)
    assert answers_of(loaded) == expected_answers(trained("gpt2"))


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_an_untied_head_over_a_tied_base_is_kept(kind: str, tmp_path: Path) -> None:
    model = trained(kind)
    model.config.tie_word_embeddings = False
    generator = torch.Generator().manual_seed(9)
    head = torch.randn(model.get_input_embeddings().weight.shape, generator=generator)
    model.lm_head.weight = nn.Parameter(head)
    table = model.get_input_embeddings().weight
    torch.save(Coconut(model).state_dict(), tmp_path / "checkpoint_33")
    base = tiny_model(kind, torch.float32, seed=4, vocab_size=28)
    base.config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    loaded = LatentModel.from_pretrained(tmp_path / "checkpoint_33", base=tmp_path / "base", latent_steps=STEPS)
    assert torch.equal(loaded.model.get_output_embeddings().weight, head)
    assert torch.equal(loaded.model.get_input_embeddings().weight, table)
    assert answers_of(loaded) == expected_answers(model)
    loaded.save_pretrained(tmp_path / "converted")
    again = LatentModel.from_pretrained(tmp_path / "converted")
    assert torch.equal(again.model.get_output_embeddings().weight, head)
    assert torch.equal(again.model.get_input_embeddings().weight, table)
    assert answers_of(again) == expected_answers(model)


def test_other_shared_weights_that_differ_are_refused_by_name(
    checkpoint: tuple[Path, Path, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base may share more than its head; here the two layers share a bias."""
    file, base, state = checkpoint
    torch.save(state, file)

    def sharing(path: Path, **options: object) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        model, tokenizer = load_causal_lm(path)
        layers = model.get_decoder().h
        layers[1].mlp.c_fc.bias = layers[0].mlp.c_fc.bias
        return model, tokenizer

    state["base_causallm.transformer.h.1.mlp.c_fc.bias"] += 1
    torch.save(state, file)
    monkeypatch.setattr(coconut, "load_causal_lm", sharing)
    names = r"transformer\.h\.0\.mlp\.c_fc\.bias, transformer\.h\.1\.mlp\.c_fc\.bias"
    with pytest.raises(UserError, match=rf"checkpoint_3 has different values for {names}, which are one weight in the"):
        LatentModel.from_pretrained(file, base=base, latent_steps=STEPS)


def test_a_file_needs_its_base_and_its_number_of_thoughts(checkpoint: tuple[Path, Path, State]) -> None:
    file, base, state = checkpoint
    torch.save(state, file)
    with pytest.raises(UserError, match=r"needs base \(on the command line --base\)"):
        LatentModel.from_pretrained(file, latent_steps=STEPS)
    with pytest.raises(UserError, match=r"give latent_steps \(on the command line --latent_steps\)"):
        LatentModel.from_pretrained(file, base=base)
    with pytest.raises(UserError, match="leave base out"):
        LatentModel.from_pretrained(base, base=base, latent_steps=STEPS)
    with pytest.raises(UserError, match=r"nowhere: there is no such folder"):
        LatentModel.from_pretrained(file, base=base.parent / "nowhere", latent_steps=STEPS)
