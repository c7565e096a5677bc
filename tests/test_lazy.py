"""Help and mistakes need no torch; names that are imported on first use are those that a type checker sees."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dropout_grpo
from dropout_grpo.latent.model import LatentModel

PACKAGES = ("dropout_grpo", "dropout_grpo.exploration", "dropout_grpo.latent")

PROGRAM = """
import sys
from dropout_grpo.cli.main import main
try:
    status = main({words})
except SystemExit as exit:
    status = exit.code
heavy = {{"torch", "transformers", "matplotlib", "datasets", "peft"}} & set(sys.modules)
assert not heavy, heavy
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--help"], 0, "post-train a checkpoint with Dropout-GRPO"),
        (["eval", "--help"], 0, "--evaluation.num_samples"),
        (["sft", "--seed", "abc"], 2, "it must be a whole number"),
        (
            ["grpo", "--recipe", "gsm8k-gpt2", "--grpo.beta", "-1", "--checkpoint", "c"],
            2,
            "beta=-1.0 must be at least 0",
        ),
        (["demo", "--explorations.p", "0.1"], 2, "exploration.p"),
    ],
)
def test_help_and_mistakes_import_nothing_heavy(words: list[str], status: int, told: str) -> None:
    program = PROGRAM.format(words=words)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert told in done.stdout + done.stderr
    assert done.returncode == status, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_those_that_a_type_checker_sees(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    imports = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module not in ("typing", "dropout_grpo.lazy")
        for alias in node.names
    ]
    assert sorted(name for _, name in imports) == sorted(module.__all__)
    for home, name in imports:
        assert getattr(module, name) is getattr(importlib.import_module(str(home)), name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'dropout_grpo' has no attribute 'LatentModels'"):
        _ = dropout_grpo.LatentModels
    assert dropout_grpo.LatentModel is LatentModel
