"""--smoke: every shipped recipe goes through sft and grpo on a small stand-in, offline, and touches nothing else."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared.smoke import architecture_of, smoke
from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.config.model import ModelConfig
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.config.recipe_file import load_recipe, recipe_names
from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.runs.files import jsonable
from helpers.grpo_run import Replays
from helpers.tiny_latent import read_metrics, tiny_latent, tiny_problems

FAST = ("gsm8k-qwen-0.5b", "prosqa")
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in recipe_names()]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; temporary folders are made next to it, in ``temporary``."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def smoke_folder(elsewhere: Path) -> Path:
    """What the one smoke run left behind."""
    (folder,) = (elsewhere / "temporary").iterdir()
    assert list((elsewhere / "here").iterdir()) == []  # no run folder where the recipe would have put it
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_sft_takes_two_updates_in_every_stage_with_epochs(
    name: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", "--recipe", name, "--smoke"]) == 0
    said = capsys.readouterr().err
    assert "smoke run (its results mean nothing)" in said
    assert "no effect" not in said  # fault: of settings that the smoke run had made
    run = smoke_folder(elsewhere) / "run"
    updates = [line["stage"] for line in read_metrics(run) if "loss" in line]
    # words, the latent stages, answers alone; some recipes have no epochs in some of them
    some = {"prosqa": [0, 7], "gsm8k-smollm2": [0, 1, 2], "gsm8k-qwen-0.5b": [0, 1, 2, 3]}
    stages = some.get(name, [0, 1, 2, 3, 4])
    assert updates == [stage for stage in stages for _ in range(2)]
    latent = json.loads((run / "checkpoints/coconut/latent_config.json").read_text(encoding="utf-8"))
    assert latent["latent_steps"] == {"prosqa": 12, "gsm8k-smollm2": 4}.get(name, 6)
    assert (run / "report.html").is_file()
    if name == "gsm8k-llama-lora":
        assert "a random llama of 2 layers for meta-llama/Llama-3.2-1B" in said


def test_grpo_takes_two_steps_of_exactly_the_papers_objective(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    assert main(["grpo", "--recipe", "gsm8k-qwen", "--smoke"]) == 0
    base = json.loads((smoke_folder(elsewhere) / "base" / "config.json").read_text(encoding="utf-8"))
    assert base["model_type"] == "qwen2"
    lines = [line for line in read_metrics(smoke_folder(elsewhere) / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["replay/logprob_diff_max"] < 0.1 and line["grad_norm"] > 0 for line in lines)
    assert lines[0]["kl"] == 0 < lines[1]["kl"]
    assert [line["beta"] for line in lines] == pytest.approx([500 * line["learning_rate"] for line in lines])
    assert len(replays.surrogates) == 4  # two groups a step, one in a micro-batch
    for update in replays.surrogates:
        names = ("epsilon", "epsilon_high", "loss_type", "kl_estimator", "kl_delta", "importance_sampling_level")
        assert [update[name] for name in names] == [0.1, 0.12, "grpo", "k3_huber", 5.0, "token"]
        assert update["totals"].rollouts == 8
        assert update["ref_logprobs"] is not None


@pytest.mark.parametrize("name", NAMES)
def test_grpo_takes_two_steps_that_move_the_weights(name: str, elsewhere: Path) -> None:
    assert main(["grpo", "--recipe", name, "--checkpoint", "no/such-checkpoint", "--smoke"]) == 0
    lines = read_metrics(smoke_folder(elsewhere) / "run")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["frac_reward_zero_std"] == 0  # every group was made to differ ...
        assert line["grad_norm"] > 0  # ... and replayed
        assert "eval/pass@1" in line


def test_dynamic_sampling_is_reduced_too() -> None:
    """Fault: 2 questions in each of 10 batches were more than the 4 problems."""
    assert smoke(load_recipe("prosqa", {"grpo.dynamic_sampling_max_gen_batches": "10"})).grpo.questions_per_step == 4


def test_the_demo_and_eval_have_it_too(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--smoke", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_test"] == 4
    (elsewhere / "temporary").rename(elsewhere / "demo")
    cards = [card.read_text(encoding="utf-8") for card in (elsewhere / "demo").rglob("README.md")]
    assert sum("| test.json | 4 |" in card for card in cards) == 3
    (elsewhere / "temporary").mkdir()
    save_problems(elsewhere / "six.json", tiny_problems(6))
    files = f"[{elsewhere / 'six.json'},no-such-file.json]"
    assert main(["eval", "--recipe", "prosqa", "--checkpoint", "none", "--files", files, "--smoke", "--json"]) == 0
    said = capsys.readouterr()
    assert [evaluation["n"] for evaluation in json.loads(said.out)["evaluations"]] == [4, 4]
    assert "problems of the built-in task for no-such-file.json" in said.err
    first, second = (load_problems(smoke_folder(elsewhere) / f"file-{i}.json", require_steps=False) for i in (0, 1))
    assert first == tiny_problems(6)[:4]
    assert all(problem.answer.endswith("pus.") for problem in second)  # the recipe's own task


def test_files_that_are_here_are_read(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without, with_steps = tiny_problems(2), tiny_problems(8, steps=2)[2:]
    save_problems(elsewhere / "train.json", [*without, *with_steps])
    command = ["sft", "--data.train", str(elsewhere / "train.json"), "--data.valid", "not-here.json", "--smoke"]
    assert main([*command, "--model.name_or_path", "gpt2"]) == 0
    err = capsys.readouterr().err
    assert "problems of the built-in task for not-here.json; it writes to" in err
    used = load_problems(smoke_folder(elsewhere) / "train.json")
    assert [p.question for p in used] == [p.question for p in with_steps[:4]]  # the curriculum needs steps

    (elsewhere / "train.json").write_text('[{"question": "?"}]', encoding="utf-8")
    assert main(command) == 2
    assert "train.json, record 1: field 'answer' is missing" in capsys.readouterr().err


def test_conversations(elsewhere: Path) -> None:
    """Fault: the stand-in had no chat template, which the user's model has."""
    said = [{"role": "system", "content": "Be brief ."}, {"role": "user", "content": "2 and 3 ?"}]
    (elsewhere / "chat.json").write_text(json.dumps([{"question": said, "steps": ["2 + 3"], "answer": "5"}] * 4))
    chat = ["--model.name_or_path=org/Qwen3-9B", f"--data.train={elsewhere / 'chat.json'}", "--smoke"]
    assert (
        main(["sft", *chat, "--data.chat_template=true", "--data.chat_template_kwargs={enable_thinking: false}"]) == 0
    )
    assert main(["grpo", "--checkpoint=org/mine", f"--data.grpo={elsewhere / 'chat.json'}", "--smoke"]) == 0


def test_a_checkpoint_says_its_architecture_and_is_not_touched(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, run = elsewhere / "checkpoint", elsewhere / "run"
    tiny_latent("qwen2").save_pretrained(checkpoint)
    run.mkdir()
    (run / "config.json").write_text("another run", encoding="utf-8")
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    assert main(["grpo", "--checkpoint", str(checkpoint), "--run_dir", str(run), "--smoke"]) == 0
    assert f"it writes to {smoke_folder(elsewhere)}, not to {run}\n" in capsys.readouterr().err
    trained = smoke_folder(elsewhere) / "run/checkpoints/grpo/config.json"
    assert json.loads(trained.read_text(encoding="utf-8"))["model_type"] == "qwen2"
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before
    assert [path.name for path in run.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("openai-community/gpt2", "gpt2"),
        ("meta-llama/Llama-3.2-1B", "llama"),
        ("HuggingFaceTB/SmolLM2-135M", "llama"),
        ("Qwen/Qwen2.5-0.5B", "qwen2"),
        ("Qwen/Qwen3-0.6B", "qwen3"),
        ("google/gemma-2b", "gemma"),
        ("EleutherAI/pythia-70m", "gpt_neox"),
        ("facebook/opt-125m", "opt"),
        ("somebody/model", None),
        ("/no/such/folder", None),
    ],
)
def test_a_name_that_is_not_here_is_taken_at_its_word(name: str, architecture: str | None) -> None:
    assert architecture_of(name) == architecture


def test_no_number_grows_and_no_choice_changes() -> None:
    few = Recipe(
        model=ModelConfig(n_layer=1),
        curriculum=CurriculumConfig(cot_epochs=0, epochs_per_stage=5, eval_steps=0, thought="pause"),
        grpo=GRPOConfig(max_steps=1, num_generations=3, eval_steps=0, beta=0.1, temperature=0.7),
    )
    small = smoke(few)
    assert (small.model.n_layer, small.model.n_embd) == (1, 32)
    assert (small.curriculum.cot_epochs, small.curriculum.epochs_per_stage, small.curriculum.eval_steps) == (0, 1, 0)
    assert (small.grpo.max_steps, small.grpo.num_generations, small.grpo.eval_steps) == (1, 3, 0)
    assert smoke(few) == small  # pure
    changed = {key for key, value in flat(jsonable(few)).items() if flat(jsonable(small))[key] != value}
    assert all(
        key.split(".")[0] in {"data", "model", "curriculum", "grpo", "evaluation", "reward_funcs"} for key in changed
    )
    for choice in ("thought", "c_thought", "max_latent_stage", "learning_rate", "uniform_prob"):
        assert f"curriculum.{choice}" not in changed
    for choice in ("beta", "temperature", "learning_rate", "num_iterations", "scale_rewards", "loss_type"):
        assert f"grpo.{choice}" not in changed
    again = smoke(replace(few, resume=True, report_to=("wandb",)))
    assert (again.resume, again.report_to) == (False, ())


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values
