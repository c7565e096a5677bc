"""``dropout-grpo inspect``, and the two options for what a published checkpoint does not record."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dropout_grpo.cli.main import main
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.files import save_problems
from dropout_grpo.evaluation import answering
from dropout_grpo.evaluation.answering import EVAL_STEP
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent import LatentModel, rollout
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tiny_latent import tiny_latent, tiny_problems


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent")
    tiny_latent("llama", latent_steps=3, thought="projection").save_pretrained(folder)
    return folder


def plain(folder: Path, kind: str) -> Path:
    tiny_model(kind, torch.float32, vocab_size=28).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def inspected(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    assert main(["inspect", str(path), "--json", *options]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_latent_model_by_hand(latent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Llama: 2 layers, width 16, 4 heads of width 4, an MLP of 24, 31 tokens, untied; CODI's projection 16 -> 16."""
    found = inspected(latent, capsys)
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16  # q, k and v (2 heads each), o
    layer = attention + 3 * 16 * 24 + 2 * 16  # three MLP matrices, two norms
    projection = 2 * (16 * 16 + 16) + 2 * 16
    assert found["parameters"] == 2 * 31 * 16 + 2 * layer + 16 + projection
    assert {name: found[name] for name in ("class", "dtype", "positions", "thought", "shares_prompt")} == {
        "class": "LlamaForCausalLM",
        "dtype": "float32",
        "positions": 64,
        "thought": "projection",
        "shares_prompt": True,
    }
    assert found["latent_tokens"] == {"<|start-latent|>": 28, "<|end-latent|>": 29, "<|latent|>": 30}
    assert found["latent_tokens_added"] == []
    assert (found["latent_steps"], found["latent_steps_from"]) == (3, "latent_config.json")
    out, down = "layers.0-1.self_attn.o_proj", "layers.0-1.mlp.down_proj"
    keys = ("kind", "modules", "places", "widths", "factors", "bits")
    assert [tuple(site[key] for key in keys) for site in found["sites"]] == [
        ("residual", [f"output of {out}", f"output of {down}"], 4, [16], [16], 64),
        ("attention", [f"output of {out}"], 2, [16], [16], 32),
        ("mlp", [f"output of {down}"], 2, [16], [16], 32),
        ("mlp_hidden", [f"input of {down}"], 2, [24], [24], 48),
        ("heads", [f"input of {out}"], 2, [16], [4], 8),
        ("thought", ["the vector fed back"], 1, [16], [16], 16),
        ("values", [f"input of {out}"], 2, [16], [8], 16),
        ("attention_weights", ["attention weights after the softmax, of each key position"], 2, [4], [4], 8),
    ]
    assert found["sites_lacking"] == {}
    dry = found["dry_run"]
    assert len(dry["rollouts"]) == 4
    assert dry["logprob_difference"] < 1e-5
    assert set(dry["seconds"]) == {"read", "think", "generate", "replay"}
    assert dry["plain"] == LatentModel.from_pretrained(latent).answer([dry["question"]], 8)[0]


def test_the_dry_run_notices_a_replay_that_is_another_pass(
    latent: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = rollout.replay
    monkeypatch.setattr(rollout, "replay", lambda m, p, seeds, *a, **k: replay(m, p, seeds + 1, *a, **k))
    assert inspected(latent, capsys)["dry_run"]["logprob_difference"] > 1e-2


@pytest.mark.parametrize(
    ("recorded", "told", "shown"),
    [
        ({"kind": "shared_dropout", "p": 0.4, "phases": ["prompt"]}, "as the checkpoint was trained", "p=0.4"),
        ({"kind": "mine.py:Noise"}, "trained with exploration.kind 'mine.py:Noise', whose code is not run", "p=0.1"),
    ],
)
def test_the_dry_run_has_the_masks_of_the_training(
    recorded: dict, told: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: p was 0.1 whatever the checkpoint was trained with."""
    model = tiny_latent()
    model.exploration = recorded
    model.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert told in said.err
    dry = json.loads(said.out)["dry_run"]
    assert shown in dry["exploration"]
    assert dry["logprob_difference"] < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "opt_350m"])
def test_a_model_without_latent_tokens_is_inspected_too(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in plain(tmp_path, kind).iterdir()}
    found = inspected(tmp_path, capsys, "--latent_steps", "2")
    assert found["latent_tokens_added"] == ["<|start-latent|>", "<|end-latent|>", "<|latent|>"]
    assert (found["latent_steps"], found["latent_steps_from"]) == (2, "--latent_steps")
    assert found["shares_prompt"] == (kind != "gemma3_text")
    assert found["dry_run"]["logprob_difference"] < 1e-5
    assert list(found["sites_lacking"]) == (["attention_weights"] if kind == "gemma3_text" else [])
    assert main(["inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert ("site attention_weights none, because it keeps its own attention" in text) == (kind == "gemma3_text")
    assert "absent: `dropout-grpo sft` adds them" in text
    assert "not recorded: give --latent_steps; the dry run takes 6" in text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before  # in memory alone


def test_the_text_says_what_the_json_says(latent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(latent)]) == 0
    text = capsys.readouterr().out
    for line in (
        "<|start-latent|> 28, <|end-latent|> 29, <|latent|> 30",
        "3 per answer, from latent_config.json; kind projection",
        "one copy, shared by the rollouts of a group",
        "site heads       input of layers.0-1.self_attn.o_proj: width 16 in 4 heads, 2 places, 8 bits",
        "site thought     the vector fed back: width 16, 1 place, 16 bits",
        "64 Bernoulli bits per rollout on the default site, residual",
        "8 bytes per rollout",
    ):
        assert line in text


@pytest.fixture(scope="module")
def coconut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ``state_dict`` as facebookresearch/coconut writes it, and the folder of its base."""
    folder = tmp_path_factory.mktemp("coconut")
    base = plain(folder / "base", "gpt2")
    weights = tiny_latent("gpt2", seed=3).model.state_dict()
    torch.save({f"base_causallm.{name}": tensor for name, tensor in weights.items()}, folder / "checkpoint_33")
    return folder / "checkpoint_33", base


def test_a_coconut_file_on_the_command_line(coconut: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    file, base = coconut
    found = inspected(file, capsys, "--base", str(base))
    assert (found["latent_steps"], found["latent_steps_from"]) == (6, "assumed")
    question, options = "Ann has 3", ["--masks", "0", "--max_new_tokens", "5"]
    assert main(["ask", str(file), question, *options]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["ask", str(file), question, "--base", str(base), *options]) == 2
    assert "--latent_steps" in capsys.readouterr().err
    assert main(["ask", str(file), question, "--base", str(base), "--latent_steps", "3", *options]) == 0
    expected = LatentModel.from_pretrained(file, base=base, latent_steps=3).answer([question], 5)[0]
    assert capsys.readouterr().out.strip() == f"plain    {expected}".strip()


def test_eval_and_grpo_take_the_two_options(
    coconut: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, base = coconut
    problems = [{"question": f"Ann has {i}", "answer": str(i), "steps": []} for i in range(2)]
    (tmp_path / "few.json").write_text(json.dumps(problems), encoding="utf-8")
    few = str(tmp_path / "few.json")
    given = ["--checkpoint", str(file), "--base", str(base), "--latent_steps", "3", "--bf16", "false"]
    small = ["--evaluation.num_samples", "2", "--evaluation.max_new_tokens", "3"]
    run = tmp_path / "eval"
    assert main(["eval", *given, *small, "--files", f"[{few}]", "--run_dir", str(run)]) == 0
    assert started_from(run) == (str(file), 3, str(base))
    grpo = {"max_steps": 1, "prompts_per_step": 2, "num_generations": 2, "max_completion_length": 3, "eval_steps": 0}
    options = [word for name, value in grpo.items() for word in (f"--grpo.{name}", str(value))]
    run = tmp_path / "grpo"
    data = ["--data.grpo", few, "--data.valid", few]
    assert main(["grpo", *given, *small, *options, *data, "--run_dir", str(run)]) == 0
    assert LatentModel.from_pretrained(run / "checkpoints" / "grpo").latent_steps == 3
    assert started_from(run) == (str(file), 3, str(base))


def started_from(run: Path) -> tuple[str, int, str]:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]
    return config["checkpoint"], config["latent_steps"], config["base"]


def test_the_thoughts_about_some_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the same masks, once as JSON and once as text."""
    tokens, answer = [], answering.answer_problems

    def watched(model: LatentModel, problems: Any, config: EvaluationConfig, **options: Any) -> Any:
        tokens.append(config.max_new_tokens)
        return answer(model, problems, config, **options)

    monkeypatch.setattr(answering, "answer_problems", watched)
    model = tiny_latent(latent_steps=2)
    model.save_pretrained(tmp_path / "model")
    save_problems(tmp_path / "few.json", tiny_problems(3))
    words = ["inspect", str(tmp_path / "model"), "--problems", str(tmp_path / "few.json")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["thoughts"]
    assert [line["question"] for line in found] == [p.question for p in tiny_problems(2)]  # two of a kind: wrong
    for i, line in enumerate(found):
        seeds = rollout_seeds(0, EVAL_STEP, torch.tensor([i]), 8)[0].tolist()
        (expected,) = model.thoughts([line["question"]], SharedDropout(p=0.1), seeds)
        assert line["kind"] == "wrong"
        assert line["models"][0]["thoughts"] == json.loads(json.dumps(asdict(expected)))
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "\n\nwrong: Ann has 0 ?\nright answer 3, plain answer " in text
    assert text.count("after the thoughts") == 2
    wordy = replace(tiny_problems(1)[0], answer="3 + 3 - 1 * 2 + 4")  # with ### and the end 11 tokens
    save_problems(tmp_path / "few.json", [wordy, *tiny_problems(3)])
    assert main(words) == 0
    assert tokens == [8, 8, 11], "fault: always 8, so that longer answers were wrong"
    capsys.readouterr()
    renamed = [{"q": p.question, "steps": p.steps, "answer": p.answer} for p in tiny_problems(3)]
    (tmp_path / "few.json").write_text(json.dumps(renamed), encoding="utf-8")
    assert main([*words, "--data.columns.question", "q"]) == 0
    about = "\n\nwrong: "  # after it there are no times
    assert capsys.readouterr().out.partition(about)[2] == text.partition(about)[2]


def test_layers_without_experts_before_those_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a traceback, since the two kinds of layers have paths of other lengths."""
    config = AutoConfig.for_model("qwen3_moe", vocab_size=28, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_experts": 4}
    config.update({**sizes, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [0]})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (residual,) = [site for site in inspected(tmp_path, capsys)["sites"] if site["kind"] == "residual"]  # type: ignore[attr-defined]
    assert residual["modules"] == [
        "output of layers.0-1.self_attn.o_proj",
        "output of layers.0.mlp.down_proj",
        "output of layers.1.mlp",
    ]
