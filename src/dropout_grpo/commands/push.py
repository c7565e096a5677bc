"""``dropout-grpo push``: a checkpoint with its model card goes to the Hugging Face Hub."""

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.errors import UserError, reading

HELP = "upload a checkpoint with its model card to the Hugging Face Hub"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=str, help="folder of a checkpoint")
    parser.add_argument("repo_id", type=str, help="user/name on the Hub")
    card = "run folder of an eval, for the card's results"
    parser.add_argument("--eval_run", type=str | None, default=None, help=card)
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry_run", action="store_true", help="print the files and the card; write and upload nothing")


def run(options: Namespace) -> None:
    eval_run = None if options.eval_run is None else Path(options.eval_run)
    where = {"private": options.private, "dry_run": options.dry_run}
    print(push(Path(options.checkpoint), options.repo_id, eval_run=eval_run, **where))


def push(
    checkpoint: Path, repo_id: str, *, eval_run: Path | None = None, private: bool = False, dry_run: bool = False
) -> str:
    """Write the model card of a checkpoint with what its run says, and upload the folder.

    Args:
        checkpoint: a folder that ``sft``, ``grpo`` or ``merge`` wrote.
        repo_id: ``user/name`` on the Hub.
        eval_run: run folder of an ``eval`` of this checkpoint, whose results go into the card; None for the results
            of the training run.
        private: whether a new repository is private.
        dry_run: write and upload nothing.

    Returns:
        The address of the repository; of a dry run the files with their sizes, and the card.

    Raises:
        UserError: the folder is not a latent checkpoint, or an adapter on a folder of this machine; the eval run is of
            another checkpoint; or the upload fails.
    """
    from dropout_grpo.commands.shared.model_card import describe
    from dropout_grpo.latent.io.checkpoint import LATENT_CONFIG
    from dropout_grpo.latent.io.hub import is_on_hub, push_folder
    from dropout_grpo.training.checkpoint import ONLY_TO_RESUME

    if not (checkpoint / LATENT_CONFIG).is_file():
        raise UserError(f"{checkpoint} has no {LATENT_CONFIG}: give a checkpoint folder that sft, grpo or merge wrote.")
    _require_public_base(checkpoint)
    card = describe(checkpoint, eval_run, is_on_hub, write=not dry_run)
    if dry_run:
        files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name not in ONLY_TO_RESUME)
        sizes = [f"{file.stat().st_size:>14,} bytes  {file.relative_to(checkpoint)}" for file in files]
        return "\n".join([f"to {repo_id}, {'private if new' if private else 'public'}:", *sizes, "", card.rstrip()])
    return push_folder(checkpoint, repo_id, private=private, without=ONLY_TO_RESUME)


def _require_public_base(checkpoint: Path) -> None:
    """Check that a checkpoint is not an adapter on a folder of this machine, which nobody else can load."""
    from dropout_grpo.latent.io.hub import is_local
    from dropout_grpo.latent.lora.checkpoint import ADAPTER_CONFIG

    file = checkpoint / ADAPTER_CONFIG
    if not file.is_file():
        return
    with reading(file):
        base = str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])
    if is_local(base):
        raise UserError(
            f"{checkpoint} is an adapter on {base}, a folder that only this machine has: merge it "
            f"(dropout-grpo merge {checkpoint} --out FOLDER) and push FOLDER; or push the base and write its name on "
            f"the Hub as base_model_name_or_path into {file}."
        )
