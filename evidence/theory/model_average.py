"""The Bayesian model average, which GRPO under masks optimises, compared with the answers that are decoded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dropout_grpo.exploration.base import Exploration, NoExploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.decoding import AverageOverMasks
from dropout_grpo.latent.rollout import roll_out, think_in_groups
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.interval import inside, mean_interval
from evidence.theory.law import Law, mean_expected_reward
from evidence.theory.setting import sample
from evidence.theory.toy import LENGTH, QUESTIONS, Masks, Toy, answer_index
from evidence.theory.unbiased import EXACT

_ROWS = 256


def _rows_of_masks(masks: Masks) -> Tensor:
    """256 mask indices, in which each mask occurs in proportion to its probability, which at p = 1/4 is i / 256."""
    return torch.arange(len(masks.weights)).repeat_interleave((masks.weights * _ROWS).round().long())


def check_objective_is_average(
    toy: Toy, masks: Masks, laws: Sequence[Law], *, strategy: type[AverageOverMasks] = AverageOverMasks
) -> Check:
    """Compare E_m J(m) with the reward of the average policy, built token by token by the library's strategy.

    The strategy is given the tokens of every answer. Its weights are then pi(a | x, m), whose mean is pibar(a | x).

    Args:
        toy: the toy.
        masks: all masks.
        laws: the law of each question.
        strategy: the strategy under test.
    """
    which, worst = _rows_of_masks(masks), 0.0
    rows: list[Row] = []
    for i, law in enumerate(laws):
        average = 0.0
        for a, answer in enumerate(toy.answers):
            guide = strategy(_ROWS)
            for t in range(int(toy.answer_mask[a].sum())):
                logprobs = torch.full((_ROWS, len(toy.answers)), -torch.inf, dtype=torch.float64)
                logprobs[:, answer[t]] = law.logprobs[which, a, t]
                chosen = guide.choose(logprobs, t)
                guide = guide.after(logprobs.gather(-1, chosen[:, None])[:, 0])
            assert guide.log_weights is not None
            average += float(guide.log_weights.exp().mean() * law.rewards[a])
        error = abs(average - law.expected_reward)
        worst = max(worst, error)
        rows.append([i + 1, law.expected_reward, average, error])
    return Check(
        id="average.objective",
        claim="The mean over masks of the expected rewards is the expected reward of the Bayesian model average.",
        quantity="largest difference of the two over the questions",
        exact=0.0,
        estimate=worst,
        error=worst,
        verdict=holds_if(worst < EXACT),
        detail={"columns": ["question", "E_m J(m)", "reward of pibar", "difference"], "rows": rows},
    )


def check_rollouts_sample_average(
    toy: Toy, laws: Sequence[Law], *, seed: int, exploration: Exploration | None = None, rollouts: int = 8192
) -> Check:
    """Compare the mean reward of rollouts drawn by their seeds with J, by Monte Carlo.

    Args:
        toy: the toy.
        laws: the law of each question.
        seed: seed of the rollouts.
        exploration: exploration of the rollouts, under test; the toy's when None.
        rollouts: number of rollouts per question.
    """
    seeds = rollout_seeds(seed, 0, torch.arange(QUESTIONS), rollouts)
    drawn = sample(toy.setting, torch.arange(QUESTIONS), seeds, exploration=exploration)
    exact = mean_expected_reward(laws)
    mean, interval = mean_interval(drawn.rewards.mean(0).tolist())
    each = drawn.rewards.mean(1).tolist()
    return Check(
        id="average.sampled",
        claim="A rollout under a fresh seed is a sample of the model average: its mean reward is J.",
        quantity="mean reward, averaged over the questions",
        exact=exact,
        estimate=mean,
        interval=interval,
        verdict=holds_if(inside(exact, interval)),
        detail={
            "columns": ["question", "J", "mean reward", "rollouts"],
            "rows": [[i + 1, law.expected_reward, each[i], rollouts] for i, law in enumerate(laws)],
        },
    )


def check_decoding(
    toy: Toy, masks: Masks, laws: Sequence[Law], *, strategy: type[AverageOverMasks] = AverageOverMasks
) -> Check:
    """Compare the library's greedy decoding of the average with pibar's exact next-token distributions.

    The rewards of the plain network's answer and of the masks' vote are computed as well.

    Args:
        toy: the toy.
        masks: all masks.
        laws: the law of each question.
        strategy: the strategy under test.
    """
    setting = toy.setting
    seeds = masks.seeds[_rows_of_masks(masks)].expand(QUESTIONS, _ROWS)
    with torch.no_grad():
        state, noise = think_in_groups(setting.model, setting.prompts, seeds, setting.exploration)
        decoded = setting.model.generate(state, LENGTH, strategy=strategy(_ROWS), noise=noise)
        one = torch.zeros(QUESTIONS, 1, dtype=torch.int64)
        plain = roll_out(
            setting.model, setting.prompts, one, NoExploration(), temperature=0, max_completion_length=LENGTH
        )
    average = answer_index(toy.answers, decoded.token_ids[::_ROWS])
    greedy = answer_index(toy.answers, plain.token_ids)
    rows: list[Row] = []
    wrong = 0
    for i, law in enumerate(laws):
        exact = _greedy(toy, law.probability.sum(0))
        of_masks = torch.tensor([_greedy(toy, policy) for policy in law.policy])
        votes = torch.zeros(len(toy.answers), dtype=torch.float64).index_add(0, of_masks, law.weights)
        picks = [int(greedy[i]), int(votes.argmax()), int(average[i])]
        wrong += int(average[i]) != exact
        agree = float(votes[greedy[i]])
        rows.append([i + 1, law.expected_reward, *(float(law.rewards[pick]) for pick in picks), agree])
    return Check(
        id="average.decoding",
        claim="Greedy decoding over masks follows the exact next-token distributions of the model average.",
        quantity=f"questions of {QUESTIONS} on which the two decode differently",
        exact=0.0,
        estimate=float(wrong),
        error=float(wrong),
        verdict=holds_if(wrong == 0),
        detail={
            "columns": [
                "question",
                "J",
                "reward of the plain network",
                "of the vote",
                "of the average",
                "masks that answer as the plain network",
            ],
            "rows": rows,
        },
    )


def _greedy(toy: Toy, probability: Tensor) -> int:
    """The answer that greedy decoding gives, from the probabilities of whole answers [A]."""
    alive = torch.ones(len(toy.answers), dtype=torch.bool)
    for t in range(LENGTH):
        tokens = torch.zeros(int(toy.answers.max()) + 1, dtype=torch.float64)
        tokens = tokens.index_add(0, toy.answers[alive, t], probability[alive])
        alive &= toy.answers[:, t] == tokens.argmax()
    return int(alive.nonzero()[0])
