"""Where a result comes from: versions, commit, hardware."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.latent.shared_prompt import attention_choices

_PACKAGES = ("dropout-grpo", "torch", "transformers", "tokenizers", "safetensors")


def provenance() -> dict[str, Any]:
    """Versions, commit, hardware and the attention kernels in use, for every results file."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "attention": attention_choices(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from the source tree, without installation
        return None


def _commit() -> str | None:
    """The commit of the source tree, with ``-dirty`` if files have changed; None for an installed package."""
    here = Path(__file__)

    def git(*words: str) -> str:
        command = ["git", "-C", str(here.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()

    try:
        if not git("ls-files", here.name):  # an environment inside a repository of the user
            return None
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or None
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a slow disk
        return None
