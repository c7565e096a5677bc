"""Help and mistakes need no torch; names that are imported on first use are those that a type checker sees."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dropout_grpo
from dropout_grpo.latent.model import LatentModel

PACKAGES = ("dropout_grpo", "dropout_grpo.exploration", "dropout_grpo.latent")

PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from dropout_grpo.cli.main import main

for words in json.loads(sys.stdin.read()):
    with redirect_stdout(io.StringIO()) as told, redirect_stderr(told):
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code
    heavy = {"torch", "transformers", "matplotlib", "datasets", "peft"} & set(sys.modules)
    assert not heavy, (words, heavy)
    print(json.dumps([status, told.getvalue()]))
"""
CALLS = {
    "--help": (0, "post-train a checkpoint with Dropout-GRPO"),
    "eval --help": (0, "--evaluation.num_samples"),
    "sft --seed abc": (2, "it must be a whole number"),
    "grpo --recipe gsm8k-gpt2 --grpo.beta -1 --checkpoint c": (2, "beta=-1.0 must be at least 0"),
    "demo --explorations.p 0.1": (2, "exploration.p"),
}


def test_help_and_mistakes_import_nothing_heavy() -> None:
    calls = json.dumps([words.split() for words in CALLS])
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=calls, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line, (status, part) in zip(done.stdout.splitlines(), CALLS.values(), strict=True):
        found, told = json.loads(line)
        assert found == status
        assert part in told


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
