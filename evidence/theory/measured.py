"""The same checks on a trained model, by Monte Carlo; every number has an interval."""

from collections.abc import Sequence
from statistics import fmean

import torch

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.answers import answers_match
from dropout_grpo.evaluation.answering import Answered, answer_problems, is_correct, vote
from dropout_grpo.exploration.dropout import PerStepDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import zero_variance
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.draws import Draws, K
from evidence.theory.interval import mean_interval, ratio_interval
from evidence.theory.setting import sample
from evidence.theory.small_model import ANSWER_TOKENS, P, SmallModel

_CLIP = 0.2  # epsilon of the objective


def check_baseline_measured(draws: Draws) -> Check:
    """J compared with 2 b*, and tr Cov g with the group's baseline divided by that without baseline."""
    ratio, interval = ratio_interval(draws.squares("held"), draws.squares("no baseline"))
    scale = (K / (K - 1)) ** 2  # scales it to the length of the estimator without baseline
    low, high = (scale * end for end in interval)
    both = [draws.success, 2 * draws.best_baseline]
    return Check(
        id="baseline.measured",
        claim="On the trained model, where nothing is claimed: J against 2 b*, and the variance at equal mean.",
        quantity="tr Cov g with leave-one-out over that without baseline, K = 8",
        estimate=scale * ratio,
        interval=(low, high),
        verdict="measured",
        detail={
            "columns": ["J", "2 b*", "advantage", "tr Cov g over none", "from", "to"],
            "rows": [
                [*both, "r - mean(r)", ratio, *interval],
                [*both, "leave-one-out", scale * ratio, low, high],
            ],
        },
    )


def check_replay_measured(draws: Draws, *, way: str = "held") -> Check:
    """In float32 the replayed ratio is 1 to rounding; under a fresh mask it is spread.

    Args:
        draws: gradients of the trained model.
        way: the way whose gradients are expected to have a cosine below 1 with the replayed ones.
    """
    ratios, base = draws.fresh_ratios, draws.squares("held")
    outside = float(((ratios < 1 - _CLIP) | (ratios > 1 + _CLIP)).double().mean())
    rows: list[Row] = []
    for name in ("fresh mask", "fresh mask, clipped"):
        ratio, interval = ratio_interval(draws.squares(name), base)
        rows.append([name, float(ratios.var()), outside, ratio, *interval, fmean(draws.cosines(name, way))])
    return Check(
        id="replay.measured",
        claim="On the trained model the replayed ratio is 1 up to float32 rounding, and a fresh one is spread.",
        quantity="largest |ratio - 1| of a token under the replayed mask",
        exact=0.0,
        estimate=draws.replay_error,
        error=draws.replay_error,
        verdict=holds_if(draws.replay_error < 1e-4 < float(ratios.var())),
        detail={
            "columns": [
                "update",
                "variance of the ratio",
                f"outside 1 ± {_CLIP}",
                "tr Cov g over replayed",
                "from",
                "to",
                "cosine with g",
            ],
            "rows": rows,
        },
    )


def check_holding_measured(small: SmallModel, draws: Draws, *, seed: int) -> Check:
    """Compare held with per-step masks: mixed groups with sampled and greedy answers, and variance."""
    questions = torch.arange(len(small.problems))
    rows: list[Row] = []
    for masks, noise in (("held", small.setting.exploration), ("per step", PerStepDropout(P))):
        sampled, sampled_interval = mean_interval(draws.mixed[masks])
        seeds = rollout_seeds(seed, 0, questions, K)
        greedy = sample(small.setting, questions, seeds, exploration=noise, temperature=0.0)
        mixed, interval = mean_interval((~zero_variance(greedy.rewards)).double().tolist())
        rows.append([masks, sampled, *sampled_interval, mixed, *interval])
    ratio, interval = ratio_interval(draws.squares("per step"), draws.squares("held"))
    return Check(
        id="holding.measured",
        claim="The same comparison on the trained model, where it is measured and not claimed either.",
        quantity="tr Cov g with per-step masks over that with held masks, K = 8",
        estimate=ratio,
        interval=interval,
        verdict="measured",
        detail={
            "columns": ["masks", "mixed groups, sampled", "from", "to", "mixed groups, greedy", "from", "to"],
            "rows": rows,
        },
    )


def check_average_measured(small: SmallModel, *, seed: int) -> Check:
    """Rewards of the plain network, of single masks, of their vote and of the model average on unseen problems."""
    config = EvaluationConfig(num_samples=16, temperature=0.0, max_new_tokens=ANSWER_TOKENS)
    setting = small.setting
    answered = answer_problems(setting.model, small.problems, config, exploration=setting.exploration, seed=seed)
    ways: dict[str, list[float]] = {
        "plain network": [float(a.plain_correct) for a in answered],
        "mean over masks": [fmean(float(is_correct(s, a.problem)) for s in a.samples) for a in answered],
        "vote of 16 masks": [float(_vote_is_right(a)) for a in answered],
        "average of 16 masks": [float(is_correct(a.average or "", a.problem)) for a in answered],
    }
    rows: list[Row] = []
    for name, rewards in ways.items():
        mean, interval = mean_interval(rewards)
        gap, gap_interval = mean_interval(_difference(rewards, ways["plain network"]))
        rows.append([name, mean, *interval, gap, *gap_interval])
    return Check(
        id="average.measured",
        claim="GRPO under masks optimises the mean over masks, not what one decodes: the gaps are measured.",
        quantity="reward of greedy answers, mean over masks minus plain network",
        estimate=rows[1][4],
        interval=(rows[1][5], rows[1][6]),
        verdict="measured",
        detail={
            "columns": ["answer of", "reward", "from", "to", "minus plain network", "from", "to"],
            "rows": rows,
            "problems": len(answered),
        },
    )


def _vote_is_right(answered: Answered) -> bool:
    return answers_match(vote(answered), answered.problem.answer)


def _difference(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]
