"""Every model of a command is on its device, and both processes of the demo use the same kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.cli.main import main
from dropout_grpo.commands import demo
from dropout_grpo.commands.shared import context, models, training
from dropout_grpo.distributed import device
from dropout_grpo.latent.model import LatentModel
from helpers.tiny_recipe import TINY

DEVICE = torch.device("cpu", 0)
"""Stands in for a GPU: models compute on it, and it is not equal to the device that they are loaded on."""


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[LatentModel]:
    """The models that have been moved to ``DEVICE``, which is the default."""
    found: list[LatentModel] = []
    to = LatentModel.to

    def watched(self: LatentModel, *args: Any, **kwargs: Any) -> LatentModel:
        if args == (DEVICE,):
            found.append(self)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(LatentModel, "to", watched)
    for module in (device, models, context):
        monkeypatch.setattr(module, "default_device", lambda: DEVICE)
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[LatentModel]:
    """The models that the trainers get; nothing is trained."""
    found: list[LatentModel] = []

    def train(self: Any, resume_from_checkpoint: bool = False) -> None:
        found.append(self.model)

    monkeypatch.setattr(training.CurriculumTrainer, "train", train)
    monkeypatch.setattr(training.GRPOTrainer, "train", train)
    return found


def test_the_demo_trains_the_curriculum_and_both_arms_on_the_device(
    placed: list[LatentModel], trained: list[LatentModel], tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert main(["demo", "--recipe", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")]) == 0
    assert len(trained) == 3
    assert all(any(model is other for other in placed) for model in trained)


def test_the_second_process_of_the_demo_is_given_the_choices_of_the_first(
    trained: list[LatentModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    @contextmanager
    def second_process(log: Path, work: Any, recipe: Any) -> Iterator[None]:
        assert work is demo.train_temperature_only
        assert recipe.bf16 is not None
        assert recipe.attention == "products"
        raise Stop
        yield

    (tmp_path / "tiny.yaml").write_text(TINY.replace("bf16: false", "bf16: null"))
    monkeypatch.setattr(demo, "second_process", second_process)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(Stop):
        main(["demo", "--recipe", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")])
