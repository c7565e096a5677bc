"""Ordinary tests see no GPU, also on a machine that has one."""

import os
import subprocess
import sys

import pytest

from helpers.gpu import selects_gpu


@pytest.mark.parametrize(
    ("expression", "selected"),
    [("not slow and not gpu", False), ("slow", False), ("", False), ("gpu", True), ("slow or gpu", True)],
)
def test_only_the_marker_shows_the_gpu(expression: str, selected: bool) -> None:
    assert selects_gpu(expression) == selected


def test_a_test_and_its_processes_see_no_gpu() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    seen = "import os; print(repr(os.environ.get('CUDA_VISIBLE_DEVICES')))"
    assert subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True).stdout.strip() == "''"
