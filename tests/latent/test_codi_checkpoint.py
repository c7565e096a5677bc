"""CODI's files: LoRA factors that are not merged, a projection, no newline in the prompt, ``The answer is: 7``."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dropout_grpo import GRPOTrainer, LatentModel, UserError, exact_answer, extract_answer
from dropout_grpo.cli.main import main
from dropout_grpo.data.files import save_problems
from helpers.grpo_run import CONFIG, alternating
from helpers.tiny import EOS_ID, tiny_model, tiny_tokenizer
from helpers.tiny_latent import tiny_problems

QUESTIONS = [" Ann has  3", "Bob has 4 ? ?", "7 + 2 ="]
BOT, EOT = 29, 30  # after the 28 tokens of the tiny tokenizer and CODI's padding token
STEPS, LENGTH, RANK = 3, 5, 4
TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}


class Codi(nn.Module):
    """The parts that CODI saves, under its names, and its inference without a cache."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        model = tiny_model(kind, torch.float64, vocab_size=28)
        model.resize_token_embeddings(31, mean_resizing=False)
        self.codi = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=32, target_modules=TARGETS[kind]))
        self.prj = nn.Sequential(nn.Dropout(0.0), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.prj.add_module("ln", nn.LayerNorm(16))
        generator = torch.Generator().manual_seed(5)
        for name, parameter in self.named_parameters():
            if "lora_" in name or name.startswith("prj."):
                noise = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = noise + ("ln.weight" in name)
        self.double().eval()

    @torch.no_grad()
    def answer(self, prompt: list[int]) -> list[int]:
        model = self.codi.get_base_model()
        embed = model.get_input_embeddings()

        def hidden(embeds: Tensor) -> Tensor:
            return model(inputs_embeds=embeds, output_hidden_states=True).hidden_states[-1][:, -1:]

        embeds = embed(torch.tensor([[*prompt, BOT]]))
        for _ in range(STEPS):
            embeds = torch.cat([embeds, self.prj(hidden(embeds))], dim=1)
        embeds = torch.cat([embeds, embed(torch.tensor([[EOT]]))], dim=1)
        chosen: list[int] = []
        while len(chosen) < LENGTH and EOS_ID not in chosen:
            token = int(model(inputs_embeds=embeds).logits[0, -1].argmax())
            chosen.append(token)
            embeds = torch.cat([embeds, embed(torch.tensor([[token]]))], dim=1)
        return chosen


def saved(kind: str, folder: Path) -> tuple[Codi, Path]:
    """CODI's file and, in ``folder / base``, the model that it was trained from."""
    codi = Codi(kind)
    torch.save(codi.state_dict(), folder / "pytorch_model.bin")
    tiny_model(kind, torch.float64, vocab_size=28).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    return codi, folder / "pytorch_model.bin"


def loaded_from(file: Path) -> LatentModel:
    return LatentModel.from_pretrained(file, base=file.parent / "base", latent_steps=STEPS, dtype=torch.float64)


def answers_of(model: LatentModel) -> list[list[int]]:
    with torch.no_grad():
        state = model.think(model.read(*model.encode(QUESTIONS)), model.latent_steps)
    generation = model.generate(state, LENGTH)
    return [ids[mask].tolist() for ids, mask in zip(generation.token_ids, generation.mask, strict=True)]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # Conv1D and Linear, a tied and an untied head
def test_a_state_dict_answers_as_the_model_it_was_saved_from(kind: str, tmp_path: Path) -> None:
    codi, file = saved(kind, tmp_path)
    model = loaded_from(file)
    assert (model.tokens.start, model.tokens.end, model.tokens.latent) == (BOT, EOT, 31)
    assert (model.prompt_format, model.thought.kind) == ("codi", "projection")
    ids = tiny_tokenizer()(["Ann has 3", "Bob has 4 ? ?", "7 + 2 ="])["input_ids"]
    assert model.encode_rows(QUESTIONS) == [[*row, BOT] for row in ids]
    expected = [codi.answer(row) for row in ids]
    assert answers_of(model) == expected
    assert len({tuple(row) for row in expected}) > 1
    model.save_pretrained(tmp_path / "converted")  # from here on a folder like any other
    again = LatentModel.from_pretrained(tmp_path / "converted", dtype=torch.float64)
    assert answers_of(again) == expected
    config = json.loads((tmp_path / "converted/latent_config.json").read_text(encoding="utf-8"))
    assert (config["prompt_format"], config["prj_dim"]) == ("codi", 24)


def test_it_is_trained_and_measured_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropout_grpo.report.page.inline_svg", lambda figure, **options: "")  # figures take long
    _, file = saved("gpt2", tmp_path)
    model = loaded_from(file).float()
    GRPOTrainer(model, alternating, CONFIG, tiny_problems(5), run=tmp_path / "run").train()
    save_problems(tmp_path / "test.json", tiny_problems(3))
    arguments = ["--checkpoint", str(file), "--base", str(tmp_path / "base"), "--latent_steps", str(STEPS)]
    options = ["--files", f"[{tmp_path / 'test.json'}]", "--evaluation.num_samples", "2", "--bf16", "false"]
    assert main(["eval", *arguments, *options, "--run_dir", str(tmp_path / "eval")]) == 0


def test_its_answers_have_words_instead_of_a_marker() -> None:
    assert extract_answer("The answer is: 42") == "42"
    assert extract_answer("The answer is: 41 ### 42") == "42"
    assert extract_answer("The answer is:") is None
    assert exact_answer(["q"], ["The answer is: 1,000"], ["1000"]) == [1.0]


def test_another_base_is_refused(tmp_path: Path) -> None:
    _, file = saved("gpt2", tmp_path)
    tiny_model("gpt2", vocab_size=28, n_layer=1).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"does not fit .*: its LoRA factors cannot be merged"):
        loaded_from(file)
    tiny_model("gpt2", vocab_size=40).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="has 40 embeddings and 28 tokens"):
        loaded_from(file)
