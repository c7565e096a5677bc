"""Dynamic sampling: the groups that the update uses, their normalisation, and what a step may depend on."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.seeds import rollout_seeds
from helpers.grpo_run import CONFIG, Replays, trainer
from helpers.tiny_latent import read_metrics, tiny_latent, tiny_problems

# A step wants 2 mixed groups and samples up to 3 batches of 2 questions, out of 12.
DYNAMIC = replace(CONFIG, max_steps=1, prompts_per_step=2, dynamic_sampling_max_gen_batches=3, micro_batch_size=100)
PROBLEMS = tiny_problems(12)
ID_OF = {problem.question: problem.id for problem in PROBLEMS}


def mixed_only(places: Sequence[int], asked: list[list[int]]) -> Callable[..., list[float | None]]:
    """A reward that differs only within the groups of these problems; ``asked`` gets the problems of each batch."""

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        asked.append([ID_OF[prompt] for prompt in prompts[::4]])
        return [float(i % 4 == 0 and ID_OF[prompt] in places) for i, prompt in enumerate(prompts)]

    return reward


def order(tmp_path: Path, steps: int = 1) -> list[int]:
    """Problems in the order in which the batches of the first steps have them."""
    made = trainer(tmp_path / "order", DYNAMIC, problems=PROBLEMS)
    return [place for number in range(1, 3 * steps + 1) for place in made.sampler.indices(number)]


@pytest.mark.parametrize(
    ("mixed", "batches", "kept"),  # places in the step's order of 6 questions, 2 a batch
    [
        ([0, 1, 2, 3, 4, 5], 1, [0, 1]),  # the first batch is enough, and no second is sampled
        ([1, 2], 2, [1, 2]),
        ([1, 2, 3], 2, [1, 2]),  # the first two of the three that are mixed
        ([0, 5], 3, [0, 5]),
        ([4], 3, [4]),  # fewer than wanted, and nothing left to sample
    ],
)
def test_the_first_mixed_groups_make_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixed: list[int], batches: int, kept: list[int]
) -> None:
    replays, asked, ids = Replays(monkeypatch), [], order(tmp_path)  # type: tuple[Replays, list[list[int]], list[int]]
    reward = mixed_only([ids[i] for i in mixed], asked)
    trainer(tmp_path / "run", DYNAMIC, problems=PROBLEMS, reward_funcs=[reward]).train()
    assert asked == [ids[2 * i : 2 * i + 2] for i in range(batches)]
    longest_first = sorted((ids[i] for i in kept), key=lambda problem: problem // 2, reverse=True)  # see tiny_problems
    expected = rollout_seeds(2, 1, torch.tensor(longest_first), 4)
    assert replays.seeds == [expected.tolist()]
    (update,) = replays.surrogates
    assert update["totals"].rollouts == 4 * len(kept)  # not of all sampled
    assert update["totals"].tokens == update["mask"].sum()
    assert update["advantages"].tolist() == [0.75, -0.25, -0.25, -0.25] * len(kept)
    (line,) = read_metrics(tmp_path / "run")
    seen = [i for i in mixed if i < 2 * batches]
    assert (line["groups/sampled"], line["groups/mixed"], line["groups/kept"]) == (2 * batches, len(seen), len(kept))
    # Metrics of rollouts are of all of them.
    assert line["frac_reward_zero_std"] == pytest.approx(1 - len(seen) / (2 * batches))
    for name in ("reward", "rewards/reward/mean"):
        assert line[name] == pytest.approx(len(seen) / (8 * batches))


def test_the_gradient_is_that_of_all_sampled_times_sampled_over_kept(tmp_path: Path) -> None:
    ids = order(tmp_path)
    norms = []
    for name, config in (
        ("dynamic", replace(DYNAMIC, dynamic_sampling_max_gen_batches=2)),
        ("plain", replace(DYNAMIC, prompts_per_step=4, dynamic_sampling_max_gen_batches=None)),
    ):
        reward = mixed_only([ids[1], ids[2]], [])
        model = tiny_latent(dtype=torch.float64)
        trainer(tmp_path / name, config, model=model, problems=PROBLEMS, reward_funcs=[reward]).train()
        norms.append(read_metrics(tmp_path / name)[0]["grad_norm"])
    assert norms[0] > 1e-3
    assert norms[0] == pytest.approx(2 * norms[1], rel=1e-9)  # 4 groups sampled, 2 kept


def test_questions_of_a_step_do_not_depend_on_how_many_the_step_before_needed(tmp_path: Path) -> None:
    ids, asked = order(tmp_path, steps=2), []  # type: tuple[list[int], list[list[int]]]
    few, many = mixed_only(range(12), asked), mixed_only([], asked)
    for name, reward in (("few", few), ("many", many)):
        asked.clear()
        trainer(tmp_path / name, replace(DYNAMIC, max_steps=2), problems=PROBLEMS, reward_funcs=[reward]).train()
        assert asked[0] == ids[:2]
        assert asked[1 if name == "few" else 3] == ids[6:8]


def test_more_questions_than_problems_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompts_per_step=2 lets a step sample 6 questions, more than the 5 problems"):
        trainer(tmp_path, DYNAMIC, problems=tiny_problems(5))
