"""A checkpoint that is neither here nor on the Hub is told at once, after one look."""

from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io import hub as hub_module
from dropout_grpo.latent.io.hub import is_on_hub, require_known
from dropout_grpo.latent.model import LatentModel
from helpers.tiny_latent import tiny_latent


class Hub:
    """Counts the looks; has only org/model."""

    def __init__(self, error: Exception | None) -> None:
        self.looks, self.error = [], error

    def model_info(self, name: str, *, timeout: float) -> None:
        assert timeout <= 10
        self.looks.append(name)
        if name != "org/model" and self.error is not None:
            raise self.error


class ConnectError(Exception):
    """Of an HTTP library."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    fake = Hub(ConnectError("Name or service not known"))
    monkeypatch.setattr(hub_module, "HfApi", lambda: fake)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.chdir(tmp_path)
    hub_module._problem.cache_clear()
    return fake


@pytest.mark.parametrize("path", ["/none/x", "./none", "../none", "a/b/c", "~/none", "no such"])
def test_a_path_is_not_looked_up(hub: Hub, path: str) -> None:
    with pytest.raises(UserError, match=r"there is no such folder: check the path, or give a model's name on the Hub"):
        require_known(path)
    assert hub.looks == []


def test_a_name_is_looked_up_once(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (
        "org/none: there is no such folder here, and the Hub cannot be reached (ConnectError: Name or service not"
    )
    for words in (["ask", "org/none", "2 ?"], ["inspect", "org/none"], ["merge", "org/none", "--out", "out"]):
        assert main(words) == 2
        assert expected in capsys.readouterr().err
    assert hub.looks == ["org/none"]
    Path("org").mkdir()  # fault: a folder named like the organisation was taken for the model's place
    now = hub_module.time.monotonic()
    monkeypatch.setattr(hub_module.time, "monotonic", lambda: now + 61)
    hub.error = None
    require_known("org/none")  # a notebook tries again after a while
    assert hub.looks == ["org/none"] * 2
    require_known("org/model")
    assert is_on_hub("org/model")
    assert not is_on_hub("/org/model")


def test_a_run_folder_names_its_checkpoints(tmp_path: Path) -> None:
    for name in ("coconut", "dropout_grpo"):
        tiny_latent().save_pretrained(tmp_path / "run" / "checkpoints" / name)
    (tmp_path / "run" / "config.json").write_text("{}")
    folder = f"{tmp_path}/run/checkpoints"
    with pytest.raises(UserError, match=f"is a run folder: give one of its .*{folder}/coconut, {folder}/dropout_grpo"):
        LatentModel.from_pretrained(tmp_path / "run")
