"""The contract of an exploration: it turns the seeds of rollouts into noise.

To add one, write a class with ``phases`` and ``noise`` and give it a line in ``exploration/config.py``, or name it on
the command line by its import path (``examples/own_exploration.py``). Everything it draws must be a pure function of
the rollout's seed; otherwise the update cannot replay the rollout. ``HeldNoise`` (``held.py``) does most of the work.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from dropout_grpo.exploration.sites import SiteMap

PHASES = ("prompt", "latent", "answer")
"""Reading the prompt, thinking, and answering (from the end-of-thought marker on)."""


class Noise(Protocol):
    """The noise of a batch of rollouts, one seed a row."""

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """Factors by site name, each [B, 1, F]; empty where the phase is off. ``step`` counts latent steps from 0."""
        ...

    def select(self, rows: Tensor) -> "Noise":
        """The noise of some of the rows; ``rows`` is an index tensor."""
        ...


@runtime_checkable
class KeyNoise(Protocol):
    """A noise that can multiply attention weights as well (site ``attention_weights``)."""

    @property
    def masks_keys(self) -> bool:
        """Is there such a site at all?"""
        ...

    def key_factors(self, phase: str, step: int, positions: Tensor) -> Mapping[str, Tensor]:
        """Factors by site name, each [B, H, T], of H heads and the T keys at ``positions`` (int64 [B, T])."""
        ...


@runtime_checkable
class ChangesWeights(Protocol):
    """A noise that changes the value projections' weights (``value_weights.py``)."""

    def weight_changes(self, phase: str, step: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """What is added to a projection's output, by its name: a function of its input."""
        ...


@runtime_checkable
class Refreshed(Protocol):
    """An exploration that depends on the weights, at which it looks every few training steps."""

    def begin_step(self, step: int, sites: SiteMap) -> None:
        """Called before every training step, counted from 1."""
        ...

    def end_training(self, sites: SiteMap) -> None:
        """Called after the last step."""
        ...

    def tensors(self, sites: SiteMap) -> dict[str, Tensor]:
        """What a checkpoint has to keep."""
        ...

    def load(self, tensors: Mapping[str, Tensor], sites: SiteMap) -> None:
        """The inverse of ``tensors``."""
        ...


@runtime_checkable
class Exploration(Protocol):
    """Turns seeds into noise on a model's sites. ``phases`` says when it is on."""

    @property
    def phases(self) -> frozenset[str]: ...

    def noise(self, seeds: Tensor, sites: SiteMap) -> Noise | None:
        """Noise of the rollouts with these ``seeds`` (int64 [B]); None means none at all."""
        ...


class NoExploration:
    """No noise: all rollouts of a group think the same, which is the collapse that the paper starts from."""

    phases: frozenset[str] = frozenset()

    def noise(self, seeds: Tensor, sites: SiteMap) -> None:
        """None, whatever the seeds."""
        return
