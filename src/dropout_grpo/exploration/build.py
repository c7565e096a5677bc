"""From the words of a recipe to an exploration."""

from dropout_grpo.exploration.base import Exploration, NoExploration
from dropout_grpo.exploration.config import ExplorationConfig
from dropout_grpo.exploration.dropout import PerStepDropout, SharedDropout


def build_exploration(config: ExplorationConfig) -> Exploration:
    """The exploration of a config.

    Raises:
        UserError: p, a site or a phase is not what it may be.
    """
    if config.kind == "none":
        return NoExploration()
    kinds = {"shared_dropout": SharedDropout, "per_step_dropout": PerStepDropout}
    return kinds[config.kind](config.p, config.sites, config.phases)
