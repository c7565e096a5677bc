"""Graphs' work on a machine without CUDA: each block is run where a graph would be replayed, on the same buffers."""

from collections.abc import Iterator
from contextlib import contextmanager

from dropout_grpo.exploration import NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.latent import LatentModel, graphs
from dropout_grpo.latent.static import Answers, Thoughts
from helpers.engine import ALL_PHASES, ALL_SITES, READING_SITES

OTHERS = [[9, 2, 28], [31, 7, 7, 28], [6, 28]]
"""Three questions in addition to ``engine.QUESTIONS``; the longest of them is shorter."""
HELD = SharedDropout(0.3, ALL_SITES, ("latent", "answer"))
EXPLORATIONS = {
    "none": NoExploration(),
    "held": HELD,
    "everywhere": SharedDropout(0.3, ALL_SITES, ALL_PHASES),
    "per_step": PerStepDropout(0.3, (*ALL_SITES, *READING_SITES), ("latent", "answer")),
    "every_site": SharedDropout(0.3, (*ALL_SITES, *READING_SITES), ("latent", "answer")),
}

Played = list[tuple[type, int]]
"""The works that ran, and the number of blocks of each run."""


@contextmanager
def fixed_shapes() -> Iterator[Played]:
    """Inside, work of a fixed shape is done on a CPU too."""
    played: Played = []
    graphs.forget_recordings()
    graphs.PLAYERS["cpu"] = lambda model, work, beside: _Direct(work, played)
    try:
        yield played
    finally:
        del graphs.PLAYERS["cpu"]
        graphs.forget_recordings()


class _Direct:
    """Runs the work again each time."""

    def __init__(self, work: Thoughts | Answers, played: Played) -> None:
        self.work, self.played = work, played

    def play(self, model: LatentModel) -> None:
        blocks = 0
        for _ in self.work.run(model):
            blocks += 1
            if blocks < self.work.blocks and not self.work.go_on():
                break
        self.played.append((type(self.work), blocks))
