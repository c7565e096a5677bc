"""The contract of an exploration: it turns the seeds of rollouts into noise.

To add one, write a class with ``phases`` and ``noise`` and give it a line in ``config/exploration.py``, or name it on
the command line by its import path (``examples/own_exploration.py``). Everything it draws must be a pure function of
the rollout's seed; otherwise the update cannot replay the rollout. ``HeldNoise`` (``held_noise.py``) does most of the
work. A noise that is not a factor of an activation installs hooks of its own (``OwnHooks``). An exploration that
depends on the weights or on the step derives from ``FollowsTraining``. ``evidence/rivals/`` has examples of both.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from dropout_grpo.exploration.sites import SiteMap

PHASES = ("prompt", "latent", "answer")
"""Reading the prompt, thinking, and answering (from the end-of-thought marker on)."""


class Noise(Protocol):
    """The noise of a batch of rollouts, one seed per row."""

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """Factors by site name, each [B, 1, F]; empty if the phase is off. ``step`` counts latent steps from 0."""
        ...

    def select(self, rows: Tensor) -> "Noise":
        """The noise of some of the rows; ``rows`` is an index tensor."""
        ...


@runtime_checkable
class KeyNoise(Protocol):
    """A noise that can also multiply attention weights (site ``attention_weights``)."""

    @property
    def masks_keys(self) -> bool:
        """Whether there is such a site."""
        ...

    def key_factors(self, phase: str, step: int, positions: Tensor) -> Mapping[str, Tensor]:
        """Factors by site name, each [B, H, T], of H heads and the T keys at ``positions`` (int64 [B, T])."""
        ...


@runtime_checkable
class OwnHooks(Protocol):
    """A noise that also changes a model by hooks of its own. Rollouts under it use no CUDA graphs."""

    def hooks(self, sites: SiteMap, phase: str, step: int) -> AbstractContextManager[None]:
        """A context for one forward pass, which registers hooks and removes them, also after an exception.

        With gradient checkpointing it is entered once more for each layer that runs again, so what a hook does in one
        layer must not depend on the layers before it.

        Args:
            sites: those of the model that runs, which may be the KL's reference; ``sites.layers`` are its layers.
            phase: one of ``PHASES``; no hook may change the result in a phase that is off.
            step: counts latent steps from 0.
        """
        ...


@runtime_checkable
class Exploration(Protocol):
    """Turns seeds into noise on a model's sites. ``phases`` are the phases in which it is on."""

    @property
    def phases(self) -> frozenset[str]: ...

    def noise(self, seeds: Tensor, sites: SiteMap) -> Noise | None:
        """Noise of the rollouts with these ``seeds`` (int64 [B]); None for no noise."""
        ...


class FollowsTraining:
    """Base class of an exploration that the GRPO trainer tells of each step. A subclass overrides what it needs."""

    @contextmanager
    def training(self, model: nn.Module, sites: SiteMap) -> Iterator[None]:
        """A context for the whole training. It begins before the optimiser is made, so it may freeze weights."""
        yield

    def begin_step(self, step: int, sites: SiteMap) -> None:
        """Called before the rollouts of every step, counted from 1; all processes call it together."""

    def tensors(self, sites: SiteMap) -> dict[str, Tensor]:
        """The tensors that a resumed run needs, for a checkpoint."""
        return {}

    def load(self, tensors: Mapping[str, Tensor], sites: SiteMap) -> None:
        """The inverse of ``tensors``; called before the first step of a resumed run."""


class NoExploration:
    """No noise: all rollouts of a group have the same thoughts, which causes the collapse that motivates the paper."""

    phases: frozenset[str] = frozenset()

    def noise(self, seeds: Tensor, sites: SiteMap) -> None:
        """None for all seeds."""
        return
