"""The examples run with small settings, and are short."""

import random
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dropout_grpo import LatentModel
from dropout_grpo.data.files import save_problems
from dropout_grpo.latent.tokens import END, LATENT, START
from helpers.by_path import ROOT, module_at
from helpers.tiny_latent import read_metrics, tiny_latent, tiny_problems


def example(name: str) -> ModuleType:
    return module_at(f"examples/{name}.py")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_under_sixty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_own_reward_is_what_it_says() -> None:
    completions = ["### 7", "### 8", "### 12", "### x", "7", "### 7"]
    answers = ["7", "7", "7", "7", "7", "a cat"]
    said = example("own_reward").near_miss(completions, completions, answers, steps=None)
    assert said == [1.0, 0.2, 0.0, -0.1, -0.1, None]


def test_own_reward_trains_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_latent().save_pretrained(tmp_path / "checkpoint")
    save_problems(tmp_path / "problems.json", tiny_problems(5))
    given = {"checkpoint": tmp_path / "checkpoint", "problems": tmp_path / "problems.json", "out": tmp_path / "run"}
    arguments = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    example("own_reward").main([*arguments, "--steps", "2", "--prompts", "3"])
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    assert [line["rewards/near_miss/mean"] for line in lines] == pytest.approx(
        [-0.1, -0.1]
    )  # no ### from random weights
    trained = LatentModel.from_pretrained(tmp_path / "run/checkpoints/own_reward")
    assert trained.latent_steps == tiny_latent().latent_steps
    assert "(right: 3)" in capsys.readouterr().out  # of the first problem


def test_own_exploration_is_held_and_has_mean_one() -> None:
    model, uniform = tiny_latent(dtype=torch.float64), example("own_exploration").Uniform(0.3)
    noise = model.noise(uniform, torch.arange(500))
    factors = noise.factors("latent", 0)
    assert set(factors) == {f"layers.{i}.{half}" for i in (0, 1) for half in ("attention", "mlp")}
    assert noise.factors("latent", 3) is factors
    assert noise.factors("answer", 0) == {}
    drawn = torch.cat([factor[:, 0] for factor in factors.values()], dim=1)
    assert (drawn.min() > 0.7) & (drawn.max() < 1.3)
    assert drawn.mean().item() == pytest.approx(1.0, abs=4 * 0.3 / (3 * drawn.numel()) ** 0.5)
    alone = model.noise(uniform, torch.tensor([7])).factors("latent", 0)
    assert torch.equal(alone["layers.1.mlp"][0], factors["layers.1.mlp"][7])


def test_own_exploration_trains_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_latent().save_pretrained(tmp_path / "checkpoint")
    save_problems(tmp_path / "problems.json", tiny_problems(5))
    given = {"checkpoint": tmp_path / "checkpoint", "problems": tmp_path / "problems.json", "out": tmp_path / "run"}
    arguments = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    example("own_exploration").main([*arguments, "--steps", "2", "--prompts", "3"])
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]
    assert "metrics.jsonl" in capsys.readouterr().out


def test_own_model_is_wrapped_trained_and_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("own_model").main(["--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "layers.1.heads       4 factors" in out  # a Llama of two layers and four heads
    assert "eats 5 .  ### 2  (right: 2)" in out  # two problems are soon learnt by heart
    checkpoint = tmp_path / "run/checkpoints/coconut"
    assert AutoModelForCausalLM.from_pretrained(checkpoint).config.model_type == "llama"
    tokens = LatentModel.from_pretrained(checkpoint).tokenizer.get_vocab()
    assert {START, LATENT, END} <= tokens.keys()


def test_own_task_makes_right_problems() -> None:
    problems = example("own_task").cups(3, 50)
    assert len({p.question for p in problems}) > 40
    for problem in problems:
        start, *swaps = problem.question.removesuffix(" .").split(" . ")
        cups = [start.endswith(str(cup)) for cup in range(1, 5)]  # which of them has the ball
        for swap, step in zip(swaps, problem.steps, strict=True):
            a, b = (int(word) - 1 for word in swap.split()[1:])
            cups[a], cups[b] = cups[b], cups[a]
            assert step.endswith(str(cups.index(True) + 1))
        assert problem.answer == str(cups.index(True) + 1)


def test_own_task_goes_through_curriculum_and_grpo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = random.getstate()
    example("own_task").main(["--out", str(tmp_path / "run"), "--epochs", "1", "--steps", "1", "--problems", "64"])
    assert random.getstate() == state
    lines = read_metrics(tmp_path / "run")
    assert {line["part"] for line in lines} == {"sft", "grpo"}
    out = capsys.readouterr().out
    assert "after the curriculum" in out
    assert "after Dropout-GRPO" in out


def test_small_gpt2_is_a_folder_that_transformers_alone_can_load(tmp_path: Path) -> None:
    problems = tiny_problems(9, steps=3)
    save_problems(tmp_path / "problems.json", problems)
    options = ["--vocab_size", "300", "--width", "16", "--out", str(tmp_path / "base")]
    example("small_gpt2").main([str(tmp_path / "problems.json"), *options])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    for text in (problems[3].question, "never read: 7 €, naïve\n\t<<1+2=3>>"):  # bytes: nothing is unknown
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(problems[3].question)) < 6 < len(problems[3].question)  # merges were learnt
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.config.model_type == "gpt2"
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.config.eos_token_id == tokenizer.eos_token_id
