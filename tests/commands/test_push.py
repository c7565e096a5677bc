"""Pushing to the Hub, with a stand-in for the Hub."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, RepoUrl

from dropout_grpo.cli.main import main
from dropout_grpo.commands.push import push
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io import hub as hub_module
from dropout_grpo.training.checkpoint import save_checkpoint, trainer_state
from dropout_grpo.training.optimizer import build_optimizer
from helpers.tiny_latent import tiny_latent


class FakeHub:
    """Keeps what is uploaded in memory."""

    calls: list[tuple[str, bool]]
    uploaded: dict[str, set[str]]

    def __init__(self) -> None:
        self.calls, self.uploaded = [], {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        assert exist_ok
        if repo_id == "bare":
            repo_id = "me/bare"  # the user who is logged in
        if "/" not in repo_id:
            raise ValueError("Repo id must be in the form 'namespace/repo_name'")
        self.calls.append((repo_id, private))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        commit_message: str,
        delete_patterns: list[str],
        ignore_patterns: list[str],
    ) -> None:
        before = self.uploaded.get(repo_id, set())
        kept = {name for name in before if not any(fnmatch(name, pattern) for pattern in delete_patterns)}
        files = [p for p in folder_path.rglob("*") if p.is_file() and p.name not in ignore_patterns]
        self.uploaded[repo_id] = kept | {str(p.relative_to(folder_path)) for p in files}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(hub_module, "HfApi", lambda: fake)
    monkeypatch.setattr("dropout_grpo.latent.io.hub.is_on_hub", lambda name: name == "gpt2")
    return fake


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    tiny_latent().save_pretrained(run / "checkpoints" / "grpo")
    options = {"run_dir": "runs/mine", "checkpoint": "gpt2", "seed": 0, "grpo": {"max_steps": 7}, "resume": False}
    config = {"command": "grpo", "config": options}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return run / "checkpoints" / "grpo"


def eval_run(tmp_path: Path, checkpoint: Path) -> Path:
    run = tmp_path / "eval"
    run.mkdir()
    rows: list[dict[str, Any]] = [{"file": "data/test.json", "n": 40, "pass@1": 0.5, "ci95": [0.35, 0.65]}]
    (run / "results.json").write_text(
        json.dumps({"checkpoint": str(checkpoint), "evaluations": rows}), encoding="utf-8"
    )
    return run


def test_the_folder_goes_up_with_a_card_that_has_the_results(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = eval_run(tmp_path, checkpoint)
    assert main(["push", str(checkpoint), "me/mine", "--eval_run", str(run), "--private"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/me/mine\n"
    assert hub.calls == [("me/mine", True)]
    needed = {"model.safetensors", "config.json", "latent_config.json", "README.md", "custom_generate/generate.py"}
    assert needed <= hub.uploaded["me/mine"]
    card = ModelCard.load(checkpoint / "README.md")
    assert card.data.base_model == "gpt2"
    assert "trained with Dropout-GRPO" in card.text
    assert "$ dropout-grpo grpo --run_dir runs/mine --checkpoint gpt2 --grpo.max_steps 7\n" in card.text
    assert "| test.json | 40 | 50.0% | 35.0% to 65.0% |" in card.text


def test_a_trainer_in_python_has_no_command_line(hub: FakeHub, checkpoint: Path) -> None:
    """Fault: its options were printed as those of a command that does not have them."""
    config = {"command": "grpo", "config": {"max_steps": 50, "reward_funcs": ["exact_answer"]}}
    (checkpoint.parent.parent / "config.json").write_text(json.dumps(config), encoding="utf-8")
    push(checkpoint, "me/mine")
    card = ModelCard.load(checkpoint / "README.md").text
    assert "trained with Dropout-GRPO" in card
    assert "## Training" not in card


def test_without_an_eval_run_the_card_has_what_the_training_run_measured(hub: FakeHub, checkpoint: Path) -> None:
    rows = [{"file": "valid.json", "n": 20, "pass@1": 0.75, "ci95": [0.5, 0.9]}]
    results = checkpoint.parent.parent / "results.json"
    results.write_text(json.dumps({"evaluations": rows}), encoding="utf-8")
    push(checkpoint, "me/mine")
    assert "| valid.json | 20 | 75.0% | 50.0% to 90.0% |" in ModelCard.load(checkpoint / "README.md").text
    early = checkpoint.rename(checkpoint.with_name("grpo-step-3"))  # not what the run measured at its end
    push(early, "me/mine")
    assert "valid.json" not in ModelCard.load(early / "README.md").text


def test_a_name_alone_is_that_of_the_user_who_is_logged_in(hub: FakeHub, checkpoint: Path) -> None:
    push(checkpoint, "bare")
    assert hub.uploaded.keys() == {"me/bare"}


def test_a_merged_model_takes_the_place_of_its_adapter(hub: FakeHub, checkpoint: Path) -> None:
    """Fault: the repository kept adapter_config.json, so everyone loaded the old adapter."""
    hub.uploaded["me/mine"] = {"adapter_config.json", "adapter_model.safetensors", "README.md", "notes.txt"}
    push(checkpoint, "me/mine")
    assert {"notes.txt", "model.safetensors"} <= hub.uploaded["me/mine"]
    assert not any(name.startswith("adapter") for name in hub.uploaded["me/mine"])


@pytest.mark.parametrize(("inside", "path"), [(".", "."), ("..", "grpo"), ("../..", "checkpoints/grpo")])
def test_the_card_is_that_of_the_absolute_path(
    inside: str, path: str, hub: FakeHub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(checkpoint, "me/mine")
    expected = (checkpoint / "README.md").read_text(encoding="utf-8")
    (checkpoint / "README.md").unlink()
    monkeypatch.chdir(checkpoint / inside)
    push(Path(path), "me/mine")
    assert (checkpoint / "README.md").read_text(encoding="utf-8") == expected


def test_another_checkpoints_results_are_refused(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    run = eval_run(tmp_path, tmp_path / "another")
    with pytest.raises(UserError, match="give the eval of this checkpoint"):
        push(checkpoint, "me/mine", eval_run=run)
    assert not hub.calls


class Unreachable(Exception):
    """Of an HTTP library: neither an OSError nor a ValueError."""


def test_without_network_there_is_one_line(
    hub: FakeHub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise Unreachable("[Errno -2] Name or service not known")

    monkeypatch.setattr(hub, "create_repo", fails)
    assert main(["push", str(checkpoint), "me/mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be pushed to 'me/mine': [Errno -2] Name or service not known. Log in with" in line
    assert main(["push", str(checkpoint.parent), "me/mine"]) == 2
    assert "has no latent_config.json" in capsys.readouterr().err


@pytest.mark.parametrize("gone", [False, True])
def test_a_local_base_is_not_published_from_another_folder(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    run = tmp_path / "there" / "runs" / "grpo"
    tiny_latent().save_pretrained(run / "checkpoints" / "grpo")
    if not gone:
        (tmp_path / "there" / "runs" / "base").mkdir()
    options = {"run_dir": "runs/grpo", "checkpoint": "runs/base"}
    (run / "config.json").write_text(json.dumps({"command": "grpo", "config": options}), encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    push(Path("../there/runs/grpo/checkpoints/grpo"), "me/mine")
    assert ModelCard.load(run / "checkpoints" / "grpo" / "README.md").data.base_model is None


def test_a_card_has_no_path_of_this_machine(hub: FakeHub, checkpoint: Path, tmp_path: Path) -> None:
    tiny_latent().save_pretrained(tmp_path / "base")
    options = {
        "run_dir": str(tmp_path / "run"),
        "checkpoint": str(tmp_path / "base"),
        "data": {
            "grpo": [{"source": str(tmp_path / "a.json"), "weight": 1.0}],
            "valid": f"hf:{tmp_path}/b:main@test",
            "train": "../c.json",
        },
        "reward_funcs": [f"{tmp_path}/mine.py:right"],
    }
    (tmp_path / "run" / "config.json").write_text(json.dumps({"command": "grpo", "config": options}), encoding="utf-8")
    push(checkpoint, "me/mine")
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card
    assert "Its base is base. " in card
    expected = """--run_dir run --checkpoint base --data.grpo '[{"source": "a.json", "weight": 1.0}]' """
    assert f"{expected}--data.valid hf:b:main@test --data.train ../c.json --reward_funcs '[\"mine.py:right\"]'" in card


@pytest.mark.parametrize("more", [[], ["--dry_run"]])
def test_an_adapter_on_a_local_folder_is_refused(
    hub: FakeHub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """Nobody else could load it, and the path would be public."""
    config = checkpoint / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}), encoding="utf-8")
    assert main(["push", str(checkpoint), "me/mine", *more]) == 2
    said = capsys.readouterr()
    assert f"is an adapter on {tmp_path / 'base'}, a folder that only this machine has: merge it" in said.err
    assert f"(dropout-grpo merge {checkpoint} --out FOLDER) and push FOLDER" in said.err
    assert (said.out, hub.calls) == ("", [])
    config.write_text(json.dumps({"base_model_name_or_path": "gpt2"}), encoding="utf-8")
    assert main(["push", str(checkpoint), "me/mine", *more]) == 0
    config.write_text("{", encoding="utf-8")
    assert main(["push", str(checkpoint), "me/mine", *more]) == 2
    assert "adapter_config.json is damaged" in capsys.readouterr().err


def test_a_checkpoint_to_resume_from_stays_one_and_only_its_model_goes_up(hub: FakeHub, tmp_path: Path) -> None:
    """Fault: with the card it was damaged, and the optimiser's state went up."""
    model, path = tiny_latent(), tmp_path / "grpo-step-3"
    optimizer = build_optimizer(model.parameters(), learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    save_checkpoint(path, model, optimizer, {"step": 3})
    assert "optimizer.safetensors" not in push(path, "me/x", dry_run=True)
    push(path, "me/x")
    assert trainer_state(path) == {"step": 3}
    assert "model.safetensors" in hub.uploaded["me/x"]
    assert not {"optimizer.safetensors", "trainer_state.json", "manifest.json"} & hub.uploaded["me/x"]


def test_a_dry_run_prints_the_files_and_the_card(
    hub: FakeHub, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = checkpoint / "README.md"
    card.write_text("mine", encoding="utf-8")
    assert main(["push", str(checkpoint), "me/mine", "--private", "--dry_run"]) == 0
    assert card.read_text(encoding="utf-8") == "mine", "a dry run writes nothing"
    said = capsys.readouterr().out
    assert said.startswith("to me/mine, private if new:\n")
    assert f"{(checkpoint / 'model.safetensors').stat().st_size:,} bytes  model.safetensors\n" in said
    assert "bytes  custom_generate/generate.py\n" in said
    assert not hub.calls
    assert main(["push", str(checkpoint), "me/mine"]) == 0
    assert said.endswith(card.read_text(encoding="utf-8"))
