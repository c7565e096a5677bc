"""Trackers get the same metrics as metrics.jsonl, part by part, and are checked before training."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dropout_grpo.errors import UserError
from dropout_grpo.latent import LatentModel
from dropout_grpo.runs import trackers
from dropout_grpo.runs.folder import RunFolder
from helpers.grpo_run import CONFIG, Stopped, trainer
from helpers.tiny_latent import read_metrics

pytest.importorskip("accelerate")
pytest.importorskip("tensorboard")
Points = dict[str, list[tuple[int, float]]]


def written(folder: Path) -> Points:
    """What TensorBoard shows of a folder: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(records: list[dict[str, Any]]) -> Points:
    """The numbers of metrics.jsonl in the same form, by hand."""
    points: Points = {}
    for record in records:
        for name, value in record.items():
            if name not in ("part", "step"):
                points.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    return points


def train(folder: Path, config: Any = CONFIG, *, resume: bool = False, **options: Any) -> None:
    grpo = trainer(folder / "aside", config, **options)
    grpo._run = RunFolder(folder / "run", "grpo", {}, resume=resume, report_to=("tensorboard",))
    grpo.train(resume_from_checkpoint=resume)


def test_tensorboard_has_the_metrics_of_every_step(tmp_path: Path) -> None:
    config = replace(CONFIG, eval_steps=2)
    train(tmp_path, config, part="dropout_grpo", evaluate=lambda model: 0.25)
    actual = written(tmp_path / "run" / "tensorboard" / "dropout_grpo")
    assert actual == expected(read_metrics(tmp_path / "run"))
    assert actual["eval/pass@1"] == [(2, 0.25)]
    assert [step for step, _ in actual["reward"]] == [1, 2, 3]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    def stop(model: LatentModel) -> float:
        raise Stopped

    config = replace(CONFIG, max_steps=5, save_steps=2, eval_steps=4)
    with pytest.raises(Stopped):
        train(tmp_path, config, evaluate=stop)  # 3 steps are logged, and the checkpoint is of step 2
    assert [step for step, _ in written(tmp_path / "run" / "tensorboard" / "grpo")["reward"]] == [1, 2, 3]
    grpo = trainer(tmp_path / "again", config)
    grpo._run = RunFolder(tmp_path / "run", "grpo", {}, resume=True, report_to=("tensorboard",))
    grpo.train(resume_from_checkpoint=True)
    actual = written(tmp_path / "run" / "tensorboard" / "grpo")
    assert [step for step, _ in actual["reward"]] == [1, 2, 3, 4, 5]
    assert actual["loss"] == expected(read_metrics(tmp_path / "run"))["loss"]


class FakeRun:
    """A run as wandb and trackio have it."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, [], False  # type: tuple[Any, list[Any], bool]

    def log(self, values: dict[str, Any], step: int) -> None:
        assert not self.finished
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


class FakePackage(ModuleType):
    """wandb or trackio, as far as accelerate's tracker classes call them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.runs: list[FakeRun] = []
        self.configs: list[dict[str, Any]] = []
        self.config = self  # wandb.config.update(...)

    def init(self, **options: Any) -> FakeRun:
        assert all(run.finished for run in self.runs), "two runs at a time"
        self.runs.append(FakeRun(**options))
        return self.runs[-1]

    def update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        self.configs.append(values)


def test_a_tracker_that_cannot_start_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a traceback, such as without a login."""

    def refuse(**options: Any) -> FakeRun:
        raise RuntimeError("no API key configured")

    package = FakePackage("wandb")
    package.init = refuse  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "wandb", package)
    run = RunFolder(tmp_path / "demo", "demo", {}, report_to=("wandb",))
    with (
        pytest.raises(UserError, match=r"report_to wandb cannot start: no API key configured. Log in,"),
        run.tracking("a", 0),
    ):
        pass


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_part_is_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    package = FakePackage(name)
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    config = {"seed": 3, "grpo": {"beta": 0.02, "epsilon_high": None}, "report_to": [name]}
    run = RunFolder(tmp_path / "demo", "demo", config, report_to=(name,))
    with run.tracking("sft", 0):
        run.log({"part": "sft", "step": 1, "loss": 2.5, "stage": 0})
        run.log({"part": "sft", "step": 2, "loss": 2.0, "stage": 0, "note": "text", "flag": True, "none": None})

    def fails() -> None:
        with run.tracking("grpo", 0):
            run.log({"part": "grpo", "step": 1, "reward": 0.5})
            raise Stopped

    with pytest.raises(Stopped):
        fails()
    run.log({"part": "grpo", "step": 9})  # nobody listens any more
    first, second = package.runs
    run_id = json.loads((tmp_path / "demo" / "config.json").read_text(encoding="utf-8"))["id"]
    same = {"wandb": {"id": f"{run_id}-sft", "resume": "allow"}, "trackio": {"resume": "never"}}[name]
    assert first.options == {"project": "dropout-grpo", "name": "demo-sft", "group": "demo", **same}
    assert second.options["name"] == "demo-grpo"
    assert first.logged == [(1, {"loss": 2.5, "stage": 0}), (2, {"loss": 2.0, "stage": 0})]
    assert second.logged == [(1, {"reward": 0.5})]
    assert first.finished
    assert second.finished
    assert package.configs[0] == {
        "seed": 3, "grpo.beta": 0.02, "grpo.epsilon_high": None, "report_to": str([name])
    }  # fmt: skip
    assert len(read_metrics(tmp_path / "demo")) == 4  # JSONL always
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "mine")
    with run.tracking("grpo", 1):
        pass
    assert package.runs[-1].options["project"] == "mine"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_is_the_same_run_in_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any) -> None:
    package = FakePackage(name)
    monkeypatch.setitem(sys.modules, name, package)
    for folder, resume, done in (("a", False, 0), ("a", True, 4), ("b", False, 0)):
        with RunFolder(tmp_path / folder, "grpo", {}, resume=resume, report_to=(name,)).tracking("grpo", done):
            pass
    first, again, other = (run.options for run in package.runs)
    assert first["name"] == again["name"] != other["name"]
    assert again["resume"] == "allow"
    assert again.get("id") == first.get("id")
    assert other.get("id") != first.get("id") or name == "trackio"


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report_to wandb needs .* not installed: pip install accelerate wandb$"):
        RunFolder(tmp_path / "run", "grpo", {}, report_to=("wandb",))
    assert not (tmp_path / "run").exists()
    RunFolder(tmp_path / "run", "grpo", {})  # none asked for, none needed


def test_trackers_may_change_on_resuming(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "grpo", {"seed": 1, "report_to": []})
    RunFolder(tmp_path / "run", "grpo", {"seed": 1, "report_to": ["tensorboard"]}, resume=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["config"] == {"seed": 1, "report_to": []}
