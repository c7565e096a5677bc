"""Run folders that may not be written or read: one line with the path, exit status 2, and nothing changed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from helpers.kills import RECIPE

NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write anywhere, so the block runs as nobody if the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture(scope="module")
def run() -> Iterator[Path]:
    """A finished ``sft``, where everybody can look into it: pytest's own folders are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    words = ["--recipe", str(folder / "recipe.yaml"), "--run_dir", str(folder / "run")]
    assert main(["sft", *words, "--curriculum.cot_epochs", "1"]) == 0
    yield folder / "run"
    for path in [folder / "run", *(folder / "run").rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def set_all(run: Path, folders: int, files: int) -> None:
    for path in (run, *run.rglob("*")):
        path.chmod(folders if path.is_dir() else files)


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("command", "folders", "files"), [("report", 0o555, 0o444), ("report", 0o000, 0o000), ("resume", 0o555, 0o444)]
)
def test_a_folder_without_permission_is_named(
    run: Path, command: str, folders: int, files: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = f"sft --recipe {run.parent}/recipe.yaml --run_dir {run} --curriculum.cot_epochs 1 --resume true"
    words = {"report": ["report", str(run)], "resume": sft.split()}[command]
    before = contents(run)
    for path in sorted(run.rglob("*"), reverse=True):
        path.chmod(folders if path.is_dir() else files)
    run.chmod(folders)
    try:
        with without_privileges():
            status = main(words)
    finally:
        set_all(run, 0o755, 0o644)
    said = capsys.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("dropout-grpo: error: ")
    assert str(run) in last
    assert contents(run) == before
