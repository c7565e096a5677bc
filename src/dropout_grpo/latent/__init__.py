"""A Hugging Face causal LM that reasons in continuous latent space: read, think, answer."""

from typing import TYPE_CHECKING

from dropout_grpo.lazy import lazily

if TYPE_CHECKING:
    from dropout_grpo.latent.model import LatentModel as LatentModel
    from dropout_grpo.latent.state import LatentState as LatentState

_HOME = {
    "LatentModel": "model",
    "LatentState": "state",
}
__all__ = [*_HOME]

if not TYPE_CHECKING:  # a module __getattr__ would make mypy accept any name
    __getattr__ = lazily(__name__, _HOME)
