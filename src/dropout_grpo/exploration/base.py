"""The contract of an exploration: it turns the seeds of rollouts into noise.

To add one, write a class with ``phases`` and ``noise`` and give it a line in ``config/exploration.py``, or name it on
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
class ChangesWeights(Protocol):
    """A noise that changes the value projections' weights (``value_weights.py``)."""

    def weight_changes(self, phase: str, step: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Functions of a projection's input, whose result is added to its output; by the projection's name."""
        ...


@runtime_checkable
class Refreshed(Protocol):
    """An exploration that depends on the weights, which it reads every few training steps."""

    def begin_step(self, step: int, sites: SiteMap) -> None:
        """Called before every training step, counted from 1."""
        ...

    def end_training(self, sites: SiteMap) -> None:
        """Called after the last step."""
        ...

    def tensors(self, sites: SiteMap) -> dict[str, Tensor]:
        """The tensors for a checkpoint."""
        ...

    def load(self, tensors: Mapping[str, Tensor], sites: SiteMap) -> None:
        """The inverse of ``tensors``."""
        ...


@runtime_checkable
class Exploration(Protocol):
    """Turns seeds into noise on a model's sites. ``phases`` are the phases in which it is on."""

    @property
    def phases(self) -> frozenset[str]: ...

    def noise(self, seeds: Tensor, sites: SiteMap) -> Noise | None:
        """Noise of the rollouts with these ``seeds`` (int64 [B]); None for no noise."""
        ...


class NoExploration:
    """No noise: all rollouts of a group have the same thoughts, which causes the collapse that motivates the paper."""

    phases: frozenset[str] = frozenset()

    def noise(self, seeds: Tensor, sites: SiteMap) -> None:
        """None for all seeds."""
        return
