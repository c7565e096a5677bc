"""Reports on a step: metrics of its rollouts, a table of completions, and warnings when steps learn nothing."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text
from torch import Tensor

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.rl.advantage import all_correct, all_wrong, standard_deviations, zero_variance
from dropout_grpo.rl.groups import Groups

_WIDTH = 60
"""Maximum number of characters shown of a question or an answer."""

_SKIPPED, _STEPS, _MOST = 10, 20, 0.9
"""Number of steps in a row without a kept group, and with equal rewards or cut answers, before a warning; and the
share of a step's answers that counts as all of them."""


def rollout_metrics(groups: Groups, truncated: Tensor) -> dict[str, float]:
    """Metrics of all rollouts of a step, with TRL's names.

    Args:
        groups: the rollouts.
        truncated: True for answers that were cut, bool [N * K].
    """
    answers, rewards = groups.answers, groups.rewards
    lengths, judged = answers.mask.sum(-1), rewards[~rewards.isnan()]
    some = rewards[(~rewards.isnan()).any(-1)] if len(judged) else rewards  # [N, K], groups with a judged rollout
    metrics = {
        "reward": float(judged.mean()) if len(judged) else 0.0,
        "reward_std": float(standard_deviations(some).mean()),
        "frac_reward_zero_std": float(zero_variance(some).float().mean()),
        "frac_groups_all_correct": float(all_correct(some).float().mean()),
        "frac_groups_all_wrong": float(all_wrong(some).float().mean()),
        "entropy": float(answers.entropy.sum() / lengths.sum()),
        "completions/mean_length": float(lengths.float().mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(truncated.float().mean()),
    }
    if len(judged) < rewards.numel():
        metrics["completions/unjudged"] = rewards.numel() - len(judged)
    return metrics


def completions_table(
    step: int,
    questions: Sequence[str],
    completions: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
    advantages: Sequence[Sequence[float]],
    answers: Sequence[str],
) -> Table:
    """One section per question and one row per rollout, as TRL's ``log_completions`` prints them.

    Args:
        step: number of the training step.
        questions: N texts.
        completions: K texts per question.
        rewards: K per question; NaN for a rollout that no reward function judged.
        advantages: K per question.
        answers: N right answers.
    """
    table = Table("question (right answer)", "answer under its mask", "reward", "advantage", title=f"step {step}")
    for question, texts, *numbers, right in zip(questions, completions, rewards, advantages, answers, strict=True):
        for k, (text, reward, advantage) in enumerate(zip(texts, *numbers, strict=True)):
            first = f"{_cut(question)} ({_cut(right)})" if k == 0 else ""
            judged = "none" if math.isnan(reward) else f"{reward:.2f}"
            # Text, so that brackets in an answer are not read as markup.
            table.add_row(Text(first), Text(_cut(text)), judged, f"{advantage:+.2f}", end_section=k == len(texts) - 1)
    return table


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..."


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
        in_doubt = config.dynamic_sampling_max_gen_batches is None or step.get("groups/mixed")  # else none is mixed
        self._skipped = self._skipped + 1 if step.get("groups/step_skipped") and in_doubt else 0
        self._cut = self._cut + 1 if step["completions/clipped_ratio"] >= _MOST else 0
        alike = step["frac_reward_zero_std"] == 1  # reward_std of equal rewards can be 1e-9
        if config.num_generations == 1:  # a group of one is always alike
            alike = self._rewards[-1:] in ([], [step["reward"]])
        self._rewards = [*self._rewards, step["reward"]] if alike else []
        if self._skipped == _SKIPPED and config.filter_groups is not None:
            low, high = config.filter_groups
            yield from self._once(
                "skipped",
                f"the last {_SKIPPED} steps changed nothing: no group has a mean reward within "
                f"{config.named('filter_groups')} [{low}, {high}]; the last step's mean reward is "
                f"{step['reward']:.4g}. Widen the range.",
            )
        if len(self._rewards) == _STEPS:
            yield from self._once(
                "alike",
                f"in the last {_STEPS} steps all rollouts of a question had the same reward, {step['reward']:.4g} on "
                "average, so nothing is learnt. "
                f"Check the reward function and the answers ({config.named('log_completions')} true prints some).",
            )
        if self._cut == _STEPS:
            yield from self._once(
                "cut",
                f"nearly all answers of the last {_STEPS} steps were cut at {config.named('max_completion_length')}="
                f"{config.max_completion_length}. Raise it, or check that the model ends its answers.",
            )

    def _once(self, kind: str, warning: str) -> Iterator[str]:
        if kind not in self._told:
            self._told.add(kind)
            yield f"warning: {warning}"
