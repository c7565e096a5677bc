"""The Hugging Face Hub: whether it has a checkpoint, in one look and not one per file, and uploads to it."""

import os
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, RepositoryNotFoundError

from dropout_grpo.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SECONDS = 10
_KEPT_SECONDS = 60
_OF_A_MODEL = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json", "custom_generate/*"]
"""Files of an earlier upload that would be loaded in place of the new model's, where it has none of their names."""


def require_known(path: str | Path) -> None:
    """Check that a checkpoint is a file or folder here, in the Hub's cache, or on the Hub.

    Raises:
        UserError: it is none of them, or it is a run folder, whose checkpoints are named.
    """
    local = Path(path)
    if local.exists():
        inside = sorted(str(file.parent) for file in local.glob("checkpoints/*/latent_config.json"))
        if inside and not (local / "latent_config.json").is_file():
            raise UserError(f"{path} is a run folder: give one of its checkpoints: {', '.join(inside)}.")
        return
    name = str(path)
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise UserError(
            f"{path}: there is no such folder: check the path, or give a model's name on the Hub (user/name)."
        )
    if problem := _problem_now(name):
        raise UserError(f"{path}: there is no such folder here, and {problem}.")


def is_local(name: str) -> bool:
    """Whether a model's name can only be a path of this machine, with which nobody else can load it."""
    return Path(name).is_absolute() or name.startswith(".")


def is_on_hub(name: str) -> bool:
    """Whether a name is that of a model on the Hub or in its cache; False if the Hub cannot be asked."""
    return bool(_HUB_NAME.fullmatch(name)) and _problem_now(name) is None


def _problem_now(name: str) -> str | None:
    """As ``_problem``: a command looks once, and a notebook looks again after a login."""
    return _problem(name, int(time.monotonic() // _KEPT_SECONDS))


@lru_cache(maxsize=64)
def _problem(name: str, when: int) -> str | None:
    """Why the Hub's model of this name cannot be used; None if it can. ``when`` only tells looks apart."""
    try:
        if any(repo.repo_id == name and repo.repo_type == "model" for repo in scan_cache_dir().repos):
            return None
    except CacheNotFound:
        pass
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "with HF_HUB_OFFLINE no model is fetched from the Hub"
    try:
        HfApi().model_info(name, timeout=_SECONDS)
    except RepositoryNotFoundError:
        return "the Hub has no model of this name, or it is private (log in with `hf auth login`)"
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        return f"the Hub cannot be reached ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return None


def push_folder(folder: Path, repo_id: str, *, private: bool = False, without: Sequence[str] = ()) -> str:
    """Create the repository if it does not exist, and upload the folder.

    Args:
        folder: a checkpoint, as ``save_pretrained`` writes it.
        repo_id: ``user/name`` on the Hub; ``name`` for the user who is logged in.
        private: whether a new repository is private.
        without: names of files that stay here.

    Returns:
        The address of the repository.

    Raises:
        UserError: the name is malformed, the Hub cannot be reached, or it refuses the upload.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message="Upload a dropout-grpo checkpoint",
            delete_patterns=_OF_A_MODEL,
            ignore_patterns=list(without),
        )
    except Exception as error:  # also of the HTTP library, which differs between versions of huggingface_hub
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(
            f"{folder} cannot be pushed to {repo_id!r}: {reason}. Log in with `hf auth login`, and check the name "
            "(user/name) and the connection."
        ) from error
    return str(url)
