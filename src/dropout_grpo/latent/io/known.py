"""Whether a checkpoint is here or on the Hub: one look, before a library tries each of its files for a minute."""

import os
import re
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, RepositoryNotFoundError

from dropout_grpo.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SECONDS = 10


def require_known(path: str | Path) -> None:
    """Check that a checkpoint is a file or folder here, in the Hub's cache, or on the Hub.

    Raises:
        UserError: it is none of them, or it is a run folder, whose checkpoints are named.
    """
    place = Path(path)
    if place.exists():
        inside = sorted(str(file.parent) for file in place.glob("checkpoints/*/latent_config.json"))
        if inside and not (place / "latent_config.json").is_file():
            raise UserError(f"{path} is a run folder: give one of its checkpoints: {', '.join(inside)}.")
        return
    name = str(path)
    if not _HUB_NAME.fullmatch(name) or name.startswith(".") or (place.parent != Path() and place.parent.is_dir()):
        raise UserError(f"{path}: there is no such folder.")
    if problem := _problem(name):
        raise UserError(f"{path}: there is no such folder here, and {problem}.")


def is_on_hub(name: str) -> bool:
    """Whether a name is that of a model on the Hub or in its cache; False if the Hub cannot be asked."""
    return bool(_HUB_NAME.fullmatch(name)) and _problem(name) is None


@lru_cache(maxsize=64)
def _problem(name: str) -> str | None:
    """Why the Hub's model of this name cannot be used; None if it can."""
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
