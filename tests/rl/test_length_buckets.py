"""GRPO cuts a step's groups by length of prompt: little is padded, and nothing else changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dropout_grpo.latent import LatentModel, LatentState
from dropout_grpo.latent.rollout import Prompts
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.groups import Groups
from dropout_grpo.rl.trainer import GRPOTrainer
from helpers.grpo_run import CONFIG, alternating, trainer
from helpers.tiny_latent import tiny_latent, tiny_problems

PROBLEMS = tiny_problems(12)  # prompts of 7, 7, 8, 8, ... 12, 12 tokens: see below


def made(tmp_path: Path, groups: int) -> GRPOTrainer:
    """12 groups of 4 a step, so many of them in a micro-batch."""
    config = replace(CONFIG, prompts_per_step=12, micro_batch_size=4 * groups, rollout_batch_size=4 * groups)
    model = tiny_latent(dtype=torch.float64, seed=17)
    return trainer(tmp_path / str(groups), config, model=model, problems=PROBLEMS, reward_funcs=[alternating])


@contextmanager
def read(model: LatentModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and positions of every prompt batch that is read."""
    seen: list[tuple[int, int]] = []

    def note(ids: Tensor, *others: Any) -> LatentState:
        seen.append((ids.shape[0], ids.shape[1]))
        return LatentModel.read(model, ids, *others)

    with mock.patch.object(model, "read", note):
        yield seen


def step(of: GRPOTrainer) -> tuple[Groups, dict[str, Tensor], list[tuple[int, int]]]:
    """What was sampled, the gradients of its update, and what was read in both."""
    with read(of.model) as seen:
        groups, _ = of.sampler.sample(1)
        of.update.backward(groups, group_advantages(groups.rewards))
    return groups, {n: p.grad for n, p in of.model.named_parameters() if p.grad is not None}, seen


def test_only_neighbours_in_length_share_a_batch(tmp_path: Path) -> None:
    of = made(tmp_path, 2)
    lengths = [len(row) for row in of.sampler.encoded]
    groups, _, seen = step(of)
    assert sorted(lengths) == [length for length in range(min(lengths), max(lengths) + 1) for _ in range(2)]
    assert groups.indices != sorted(groups.indices), "they would come sorted anyway"
    pairs = [(2, length + length % 2) for length in range(max(lengths), min(lengths) - 1, -1)]
    assert seen == [*pairs, *pairs]  # rollouts, update
    assert 12 * max(lengths) > 1.2 * sum(lengths), "there would have been little to pad"


def test_a_step_does_not_depend_on_its_batches(tmp_path: Path) -> None:
    """Answers stand with their questions and seeds, and the gradient is that of the whole."""
    whole, expected, _ = step(made(tmp_path, 12))
    for groups in (1, 2, 5):
        found, gradients, _ = step(made(tmp_path, groups))
        assert found.indices == whole.indices
        assert torch.equal(found.seeds, whole.seeds)
        assert torch.equal(found.answers.token_ids, whole.answers.token_ids)
        assert torch.equal(found.answers.mask, whole.answers.mask)
        torch.testing.assert_close(found.answers.logprobs, whole.answers.logprobs, atol=1e-12, rtol=0)
        assert expected.keys() == gradients.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-12, rtol=1e-9)


def test_padding_that_a_batch_does_not_need_goes() -> None:
    ids = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4], [0, 0, 0, 7]])
    prompts = Prompts(ids, (ids > 0).long())
    assert prompts.longest_first().tolist() == [1, 0, 2]
    assert prompts.select(torch.tensor([2, 0])).input_ids.tolist() == [[0, 7], [5, 6]]
    assert prompts.select(torch.tensor([2, 0])).attention_mask.tolist() == [[0, 1], [1, 1]]
    assert prompts.select(torch.tensor([1, 2])).input_ids.tolist() == [[1, 2, 3, 4], [0, 0, 0, 7]]


def test_lengths_are_even() -> None:
    """On a CPU the bits of bf16 products depend on it, and a replay should have the bits of its rollouts."""
    model = tiny_latent()
    pad = model.tokens.pad
    ids, mask = model.pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[pad, 5, 6, 7], [pad, pad, pad, 8]]
    assert mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert model.pad([[5, 6], [8]])[0].tolist() == [[5, 6], [pad, 8]]
    prompts = Prompts(ids, mask)
    assert prompts.select(torch.tensor([1])).input_ids.tolist() == [[pad, 8]]
    assert prompts.select(torch.tensor([1, 0])).attention_mask.tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]
