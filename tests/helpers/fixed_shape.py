"""Graphs' work on a machine without CUDA: each block is run where a graph would be replayed, on the same buffers."""

from collections.abc import Iterator
from contextlib import contextmanager

from dropout_grpo.exploration import NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.latent import LatentModel, graphs
from dropout_grpo.latent.fixed_shape import AnsweringWork, ThinkingWork
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

WorkDone = list[tuple[type, int]]
"""The works that ran, and the number of blocks of each run."""


@contextmanager
def fixed_shapes() -> Iterator[WorkDone]:
    """Inside, work of a fixed shape is done on a CPU too."""
    done: WorkDone = []
    graphs.forget_recordings()
    graphs.RECORDERS["cpu"] = lambda model, work, beside: _Direct(work, done)
    try:
        yield done
    finally:
        del graphs.RECORDERS["cpu"]
        graphs.forget_recordings()


class _Direct:
    """Runs the work again each time."""

    def __init__(self, work: ThinkingWork | AnsweringWork, done: WorkDone) -> None:
        self.work, self.done = work, done

    def replay(self, model: LatentModel) -> None:
        blocks = 0
        for _ in self.work.run(model):
            blocks += 1
            if blocks < self.work.blocks and not self.work.go_on():
                break
        self.done.append((type(self.work), blocks))
