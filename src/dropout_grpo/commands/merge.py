"""``dropout-grpo merge``: add an adapter to its base."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.errors import UserError

HELP = "add an adapter to its base, which gives a plain checkpoint"


def add_options(parser: ArgumentParser) -> None:
    adapter = "folder or hub name of an adapter, as sft and grpo with lora write it"
    parser.add_argument("folder", type=str, help=adapter)
    parser.add_argument("--out", type=str, required=True, help="folder to write the checkpoint to")


def run(options: Namespace) -> None:
    merge(options.folder, Path(options.out))


def merge(folder: str, out: Path) -> None:
    """Write a plain Hugging Face folder that computes the same logits as base and adapter.

    Raises:
        UserError: the folder is not an adapter, its base is missing, or ``out`` exists and is not empty.
    """
    from dropout_grpo.latent.model import LatentModel
    from dropout_grpo.training.progress import tell

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another --out, or remove it.")
    LatentModel.from_pretrained(folder, merge=True).save_pretrained(out)
    tell(f"{out}: {folder} merged into its base")
