"""Groups of rollouts: shared prompts, the mask of each rollout, and the results of a replay."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from dropout_grpo.exploration import Exploration, NoExploration, SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.model import Generation
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from helpers.tiny_latent import tiny_latent

QUESTIONS = ["Ann has 3", "Bob has 4 ? ?", "7 + 2 ="]
SEEDS = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]])
LATENT = SharedDropout(0.4)
EVERYWHERE = SharedDropout(0.4, phases=("prompt", "latent", "answer"))
EXPLORATIONS = (NoExploration(), LATENT, EVERYWHERE)


def prompts_of(model: LatentModel, questions: list[str] = QUESTIONS) -> Prompts:
    return Prompts(*model.encode(questions))


@torch.no_grad()
def made(
    model: LatentModel, prompts: Prompts, seeds: torch.Tensor, exploration: Exploration, **options: Any
) -> Generation:
    return roll_out(model, prompts, seeds, exploration, **{"temperature": 1.0, "max_completion_length": 4, **options})


def texts(generation: Generation) -> list[list[int]]:
    """Token ids of each row, as far as they go."""
    return [ids[mask].tolist() for ids, mask in zip(generation.token_ids, generation.mask, strict=True)]


@contextmanager
def decoder_calls(model: LatentModel) -> Iterator[list[tuple[int, int]]]:
    """(rows, positions) of every forward pass through the decoder, in order."""
    calls: list[tuple[int, int]] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(tuple(kwargs["inputs_embeds"].shape[:2]))  # type: ignore[arg-type]

    handle = model.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    yield calls
    handle.remove()


@pytest.mark.parametrize(
    ("exploration", "read"), [(NoExploration(), (1, 6 + 5 + 7)), (LATENT, (1, 6 + 5 + 7)), (EVERYWHERE, (12, 8))]
)
def test_a_question_is_read_once_unless_the_mask_is_on_while_reading(
    exploration: Exploration, read: tuple[int, int]
) -> None:
    model = tiny_latent()
    with decoder_calls(model) as calls:
        replay(model, prompts_of(model), SEEDS, torch.full((12, 3), 5), exploration, temperature=1.0)
    assert calls == [read, (12, 1), (12, 1), (12, 3)]  # read, think, think, score


@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_rollouts_of_a_question_are_adjacent_and_in_the_order_of_their_seeds(exploration: Exploration) -> None:
    model = tiny_latent(dtype=torch.float64)
    prompts = prompts_of(model)
    together = texts(made(model, prompts, SEEDS, exploration))
    for g in range(3):
        for k in range(4):
            alone = made(model, prompts_of(model, [QUESTIONS[g]]), SEEDS[g, k].view(1, 1), exploration)
            assert texts(alone) == [together[4 * g + k]], (g, k)
    backwards = texts(made(model, prompts, SEEDS.flip(1), exploration))
    assert [backwards[4 * g : 4 * g + 4][::-1] for g in range(3)] == [together[4 * g : 4 * g + 4] for g in range(3)]
    assert len({tuple(row) for row in together}) > 6, "too many alike to tell rows apart"


def test_without_exploration_and_temperature_a_group_says_one_thing() -> None:
    model = tiny_latent()
    rows = texts(made(model, prompts_of(model), SEEDS, NoExploration(), temperature=0))
    assert all(rows[4 * g + k] == rows[4 * g] for g in range(3) for k in range(4))
    masked = texts(made(model, prompts_of(model), SEEDS, LATENT, temperature=0))
    assert any(masked[4 * g + k] != masked[4 * g] for g in range(3) for k in range(4))  # masks alone tell them apart


def test_answers_end_at_eos_or_at_full_length() -> None:
    model = tiny_latent()
    generation = made(model, prompts_of(model), SEEDS, LATENT, temperature=2.0, max_completion_length=12)
    eos, lengths = model.tokens.eos, generation.mask.sum(-1)
    for ids, mask, length in zip(generation.token_ids, generation.mask, lengths.tolist(), strict=True):
        assert mask.tolist() == [i < length for i in range(mask.shape[0])]  # no holes
        assert eos not in ids[: length - 1].tolist()
        assert ids[length - 1] == eos or length == 12
        assert (ids[length:] == model.tokens.pad).all()
    ended = (generation.token_ids == eos).any(-1)
    assert 0 < int(ended.sum()) < 12, "all end, or none"
    assert (generation.logprobs[~generation.mask] == 0).all()
    assert (generation.logprobs[generation.mask] < 0).all()
    assert (generation.entropy[~generation.mask] == 0).all()


@pytest.mark.parametrize(
    ("exploration", "temperature"), [(NoExploration(), 1.0), (LATENT, 0.7), (LATENT, 2.0), (EVERYWHERE, 1.0)]
)
def test_a_replay_gives_the_log_probs_of_the_rollout(exploration: Exploration, temperature: float) -> None:
    model = tiny_latent(dtype=torch.float64)
    prompts = prompts_of(model)
    generation = made(model, prompts, SEEDS, exploration, temperature=temperature, max_completion_length=6)

    def gap(seeds: torch.Tensor, temperature: float) -> float:
        logprobs = replay(model, prompts, seeds, generation.token_ids, exploration, temperature=temperature)
        assert logprobs.requires_grad
        return float(((logprobs - generation.logprobs).abs() * generation.mask).max().detach())

    assert gap(SEEDS, temperature) < 1e-10
    assert gap(SEEDS, temperature + 0.1) > 1e-3  # another temperature is another policy
    if not isinstance(exploration, NoExploration):
        assert gap(SEEDS.flip(1), temperature) > 1e-3  # and so is another mask


def test_a_nucleus_changes_the_choice_and_not_the_log_probs() -> None:
    """As in TRL: rollout and replay have the log-probs of the whole distribution, so their first ratio is 1."""
    model = tiny_latent(dtype=torch.float64)
    prompts, options = prompts_of(model), {"temperature": 1.5, "max_completion_length": 6}
    whole, few = (made(model, prompts, SEEDS, LATENT, top_p=top_p, **options) for top_p in (1.0, 0.3))
    logprobs = replay(model, prompts, SEEDS, few.token_ids, LATENT, temperature=1.5).detach()
    assert float(((logprobs - few.logprobs).abs() * few.mask).max()) < 1e-10
    assert texts(whole) != texts(few)
    assert float(few.logprobs[:, 0].mean()) > float(whole.logprobs[:, 0].mean())
