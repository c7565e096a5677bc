"""Names of version 0.1 that are elsewhere now, with what to write instead. To be removed in version 0.3."""

REMOVED_OPTIONS = {
    "grpo.train_only": "train an adapter (lora.r), or give the trainer a model with requires_grad set in Python",
}

KINDS = {"weight_noise": "evidence.rivals.gaussian_v:GaussianV", "svp": "evidence.rivals.svp:SVP"}
"""Kinds of exploration that have left the package."""

_REWARDS, _REWARDS_NOW = "dropout_grpo.problems.rewards:", "dropout_grpo.data.rewards:"


def current_path(path: str) -> str:
    """An import path as it is now: the rewards of this package were in another module."""
    return _REWARDS_NOW + path.removeprefix(_REWARDS) if path.startswith(_REWARDS) else path
