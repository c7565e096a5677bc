"""The stages of Coconut's curriculum, and the form of a problem in each.

Stage 0 is chain of thought in words. In stage s the first s steps are replaced by s x c thoughts. Past the last stage
all steps are gone and the latent block has its full length, max_latent_stage x c (Hao et al. 2024, section 3 and
``dataset.py`` of facebookresearch/coconut). A problem with fewer than s steps still gets s x c thoughts: short problems
are padded to the block's length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Step = TypeVar("_Step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: the number of steps dropped (None for all), the thoughts that replace them, and the epochs."""

    index: int
    dropped_steps: int | None
    latent_steps: int
    epochs: int

    def words(self, steps: Sequence[_Step]) -> Sequence[_Step]:
        """The steps that stay in words, as texts or as tokens."""
        return [] if self.dropped_steps is None else steps[self.dropped_steps :]


def curriculum(
    *, c_thought: int, max_latent_stage: int, cot_epochs: int, epochs_per_stage: int, final_epochs: int
) -> list[Stage]:
    """All stages in order: 0 (words), 1 .. max_latent_stage, and the final one, which has only answers."""
    stages = [Stage(index=0, dropped_steps=0, latent_steps=0, epochs=cot_epochs)]
    stages += [
        Stage(index=s, dropped_steps=s, latent_steps=s * c_thought, epochs=epochs_per_stage)
        for s in range(1, max_latent_stage + 1)
    ]
    final = Stage(
        index=max_latent_stage + 1,
        dropped_steps=None,
        latent_steps=max_latent_stage * c_thought,
        epochs=final_epochs,
    )
    return [*stages, final]
