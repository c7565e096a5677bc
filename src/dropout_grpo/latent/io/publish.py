"""Uploads a checkpoint folder to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from dropout_grpo.errors import UserError


def push_folder(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Create the repository if it does not exist, and upload the folder.

    Args:
        folder: a checkpoint, as ``save_pretrained`` writes it.
        repo_id: ``user/name`` on the Hub.
        private: whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        UserError: the name is malformed, the Hub cannot be reached, or it refuses the upload.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a dropout-grpo checkpoint")
    except Exception as error:  # also of the HTTP library, which differs between versions of huggingface_hub
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(
            f"{folder} cannot be pushed to {repo_id!r}: {reason}. Log in with `hf auth login`, and check the name "
            "(user/name) and the connection."
        ) from error
    return str(url)
