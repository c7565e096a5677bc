"""The command ``merge``: add an adapter to its base, which gives a plain checkpoint."""

from pathlib import Path

from dropout_grpo.errors import UserError
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.training.progress import tell


def merge(folder: str, out: Path) -> None:
    """Write a plain Hugging Face folder that computes the same logits as base and adapter.

    Raises:
        UserError: the folder is not an adapter, its base is missing, or ``out`` exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another --out, or remove it.")
    LatentModel.from_pretrained(folder, merge=True).save_pretrained(out)
    tell(f"{out}: {folder} merged into its base")
