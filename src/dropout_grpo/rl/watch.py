"""Watches the steps of a run for three mistakes that no single step shows, and tells of each once."""

from collections.abc import Iterator, Mapping

from dropout_grpo.config.grpo import GRPOOptions

_SKIPPED, _STEPS = 10, 20


class Watch:
    """Tells when the last steps learnt nothing, and why.

    Args:
        config: its limits are named in the messages.
    """

    def __init__(self, config: GRPOOptions) -> None:
        self._config = config
        self._rewards: list[float] = []
        self._skipped = self._cut = 0
        self._told: set[str] = set()

    def after(self, step: Mapping[str, float]) -> Iterator[str]:
        """Warnings after a step with these metrics."""
        config = self._config
        self._skipped = self._skipped + 1 if step.get("groups/step_skipped") else 0
        self._cut = self._cut + 1 if step["completions/clipped_ratio"] == 1 else 0
        alike = step["reward_std"] == 0 and self._rewards[-1:] in ([], [step["reward"]])
        self._rewards = [*self._rewards, step["reward"]] if alike else []
        if self._skipped == _SKIPPED and config.filter_groups is not None:
            low, high = config.filter_groups
            yield from self._once(
                f"the last {_SKIPPED} steps changed nothing: no group has a mean reward within grpo.filter_groups "
                f"[{low}, {high}]; the last step's mean reward is {step['reward']:.4g}. Widen the range."
            )
        if len(self._rewards) == _STEPS:
            yield from self._once(
                f"every rollout of the last {_STEPS} steps has the reward {step['reward']:.4g}, so nothing is learnt. "
                "Check the reward function and the answers (--grpo.log_completions true prints some)."
            )
        if self._cut == _STEPS:
            yield from self._once(
                f"every answer of the last {_STEPS} steps was cut at grpo.max_completion_length="
                f"{config.max_completion_length}. Raise it, or check that the model ends its answers."
            )

    def _once(self, warning: str) -> Iterator[str]:
        kind = warning.partition(":")[0]
        if kind not in self._told:
            self._told.add(kind)
            yield f"warning: {warning}"
