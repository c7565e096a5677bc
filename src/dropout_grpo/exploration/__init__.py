"""The noise that makes the rollouts of a question differ. ``SharedDropout`` is the method of the paper."""

from typing import TYPE_CHECKING

from dropout_grpo.lazy import lazily

if TYPE_CHECKING:
    from dropout_grpo.exploration.base import (
        PHASES as PHASES,
        Exploration as Exploration,
        FollowsTraining as FollowsTraining,
        NoExploration as NoExploration,
        Noise as Noise,
        OwnHooks as OwnHooks,
    )
    from dropout_grpo.exploration.dropout import PerStepDropout as PerStepDropout, SharedDropout as SharedDropout
    from dropout_grpo.exploration.held_noise import HeldNoise as HeldNoise
    from dropout_grpo.exploration.sites import SiteMap as SiteMap

_HOME = {
    "Exploration": "base",
    "FollowsTraining": "base",
    "HeldNoise": "held_noise",
    "NoExploration": "base",
    "Noise": "base",
    "OwnHooks": "base",
    "PHASES": "base",
    "PerStepDropout": "dropout",
    "SharedDropout": "dropout",
    "SiteMap": "sites",
}
__all__ = [*_HOME]

if not TYPE_CHECKING:  # a module __getattr__ would make mypy accept any name
    __getattr__ = lazily(__name__, _HOME)
