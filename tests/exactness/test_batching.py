"""A rollout is a function of its question and its seed, independent of other rows, padding, micro-batches and order."""

import pytest
import torch
from torch import Tensor

from dropout_grpo.exploration import Exploration, NoExploration, SharedDropout
from dropout_grpo.latent import LatentModel, LatentState
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from dropout_grpo.rl.objective import Totals, surrogate
from helpers.engine import (
    ALL_PHASES,
    QUESTIONS,
    both_caches,
    differences,
    gradients,
    latent_model,
    prompts,
)

SEEDS = torch.arange(12).view(3, 4) * 1_000_003 - 7  # [N, K]
HELD = SharedDropout(0.3, ("residual", "thought"), ("latent", "answer"))
EVERYWHERE = SharedDropout(0.3, ("residual", "heads"), ALL_PHASES)
READING = SharedDropout(0.3, ("values", "attention_weights"), ALL_PHASES)
TOKENS = torch.arange(12 * 5).view(12, 5) * 7 % 40  # answers of 5 tokens
USED = torch.arange(5) < (torch.arange(12) % 5 + 1)[:, None]  # of 1 to 5 of them
ADVANTAGES = torch.linspace(-1, 1, 12, dtype=torch.float64)
ROLLOUT = {"temperature": 1.5, "max_completion_length": 6}


def logprobs_of(model: LatentModel, batch: Prompts, seeds: Tensor, tokens: Tensor, exploration: Exploration) -> Tensor:
    return replay(model, batch, seeds, tokens, exploration, temperature=0.9)


def read(model: LatentModel, questions: list[list[int]] = QUESTIONS) -> LatentState:
    batch = prompts(questions)
    return model.read(batch.input_ids, batch.attention_mask)


def alone(row: int) -> tuple[Prompts, Tensor, Tensor]:
    """Row ``row`` of the batch, with no neighbour and no padding."""
    return prompts([QUESTIONS[row // 4]]), SEEDS.view(-1, 1)[row : row + 1], TOKENS[row : row + 1]


@pytest.mark.parametrize(
    ("kind", "copy_prompts", "exploration"),
    [("gpt2", False, each) for each in (NoExploration(), HELD, EVERYWHERE, READING)]
    + [("gpt2", True, HELD), ("qwen3", False, READING), ("gemma2", True, SharedDropout(0.3, "values", ALL_PHASES))],
)
def test_a_row_of_a_group_is_the_row_alone(kind: str, copy_prompts: bool, exploration: Exploration) -> None:
    """Values, and gradients: those of the batch are the sum of those of its rows."""
    model = latent_model(kind, copy_prompts=copy_prompts)
    together = logprobs_of(model, prompts(), SEEDS, TOKENS, exploration)
    rows = torch.cat([logprobs_of(model, *alone(row), exploration) for row in range(12)])
    torch.testing.assert_close(together, rows, rtol=0, atol=1e-10)
    assert differences(gradients(model, together), gradients(model, rows)) < 1e-10


@pytest.mark.parametrize(
    ("kind", "copy_prompts", "exploration"),
    [("gpt2", True, NoExploration()), ("gpt2", True, HELD), ("qwen3", False, EVERYWHERE), ("qwen3", False, READING)],
)
def test_a_sampled_answer_is_the_same_in_any_company(kind: str, copy_prompts: bool, exploration: Exploration) -> None:
    """Alone, in another order of questions and of rollouts, twice in a group: the same tokens from the same seed."""
    model = latent_model(kind, copy_prompts=copy_prompts)

    def sampled(batch: Prompts, seeds: Tensor) -> list[list[int]]:
        generation = roll_out(model, batch, seeds, exploration, **ROLLOUT)
        return [ids[used].tolist() for ids, used in zip(generation.token_ids, generation.mask, strict=True)]

    together = sampled(prompts(), SEEDS)
    assert [sampled(*alone(row)[:2])[0] for row in range(12)] == together
    backwards = sampled(prompts(QUESTIONS[::-1]), SEEDS.flip(0, 1))
    assert backwards[::-1] == together
    twice = sampled(prompts(), SEEDS[:, [0, 0, 3]])
    assert twice == [together[i] for first in (0, 4, 8) for i in (first, first, first + 3)]
    assert len({tuple(row) for row in together[:4]}) == 4, "other seeds, other answers"
    assert sampled(prompts(), SEEDS + 1) != together


@pytest.mark.parametrize(("kind", "exploration"), [("gpt2", HELD), ("qwen3", EVERYWHERE), ("qwen3", READING)])
def test_padding_does_not_run(kind: str, exploration: Exploration) -> None:
    """Layers run the tokens of prompts, and of answers up to the last one that counts; results are those of all."""
    model = latent_model(kind)
    used = USED & (torch.arange(5) != 1)  # a token that does not count is seen by those after it
    seen: list[int] = []
    model.sites.layers[0].register_forward_hook(lambda module, args, output: seen.append(output.shape[:2].numel()))

    def results(mask: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs = replay(model, prompts(), SEEDS, TOKENS, exploration, temperature=0.9, mask=mask)
        logprobs = logprobs if mask is not None else torch.where(used, logprobs, 0.0)
        return logprobs.detach(), gradients(model, logprobs)

    (all_of_it, expected), (actual, by_name) = results(None), results(used)
    torch.testing.assert_close(actual, all_of_it, rtol=0, atol=1e-12)
    assert differences(by_name, expected) < 1e-12
    prompt = 12 * 6 if "prompt" in exploration.phases else 6 + 2 + 4  # with noise it is a rollout's own, padded
    answers = int(USED.sum()) - int((USED.sum(1) == 2).sum())  # of 2 tokens the second does not count
    assert seen == [prompt, 12, 12, 12 * 5, prompt, 12, 12, answers]


def loss_gradients(model: LatentModel, chunks: list[list[int]], exploration: Exploration) -> dict[str, Tensor]:
    """Of the whole objective, summed up over micro-batches of groups as the trainer does."""
    batch = Totals(rollouts=12, tokens=int(USED.sum()), max_completion_length=5)
    with torch.no_grad():  # ratios between 0.7 and 1.3: some are clipped
        old = logprobs_of(model, prompts(), SEEDS, TOKENS, exploration)
        old += torch.linspace(-0.3, 0.3, 60, dtype=torch.float64).view(12, 5)
    model.zero_grad()
    for groups in chunks:
        rows = (torch.tensor(groups)[:, None] * 4 + torch.arange(4)).flatten()
        questions = prompts().select(torch.tensor(groups))
        logprobs = logprobs_of(model, questions, SEEDS[groups], TOKENS[rows], exploration)
        part = surrogate(logprobs, old[rows], USED[rows], ADVANTAGES[rows], totals=batch)
        part.loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "exploration"), [("gpt2", NoExploration()), ("gpt2", EVERYWHERE), ("qwen3", READING)])
def test_micro_batches_add_up_to_the_batch(kind: str, exploration: Exploration) -> None:
    model = latent_model(kind)
    whole = loss_gradients(model, [[0, 1, 2]], exploration)
    assert max(gradient.abs().max() for gradient in whole.values()) > 1e-2
    for chunks in ([[0], [1], [2]], [[0, 1], [2]], [[2, 0], [1]]):
        assert differences(loss_gradients(model, chunks, exploration), whole) < 1e-10
    assert differences(loss_gradients(model, [[0], [2]], exploration), whole) > 1e-3  # a chunk lost


@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_repeat_then_select_is_having_read_those_rows(kind: str) -> None:
    """Rows leave before, between and after thoughts, groups whole or in part."""
    model, subset = latent_model(kind), torch.tensor([4, 7, 8, 10])  # rows of groups 1 and 2, two each
    noise = model.noise(HELD, SEEDS.flatten())
    own_noise = model.noise(HELD, SEEDS.flatten()[subset])
    state = model.think(read(model, QUESTIONS[1:]).repeat(2), 2, own_noise)
    expected = model.score(state, TOKENS[subset], noise=own_noise)
    by_name = gradients(model, expected)
    assert noise is not None
    for before in range(3):
        state = model.think(read(model).repeat(4), before, noise).select(subset)
        state = model.think(state, 2 - before, noise.select(subset))
        actual = model.score(state, TOKENS[subset], noise=noise.select(subset))
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
        assert differences(gradients(model, actual), by_name) < 1e-10
    other = model.score(state, TOKENS[subset], noise=noise.select(subset + 1))
    assert (other - expected).abs().max() > 1e-2, "the noise of other rows"


@both_caches
def test_rows_that_ended_leave_and_nothing_else_changes(copy_prompts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = latent_model("gpt2", copy_prompts=copy_prompts)
    sizes: list[int] = []  # rows in every pass that makes logits
    model.model.register_forward_pre_hook(
        lambda module, args, kw: sizes.append(len(kw["inputs_embeds"])), with_kwargs=True
    )
    options = {"temperature": 2.5, "max_completion_length": 40}
    leaving = roll_out(model, prompts(), SEEDS, HELD, **options)
    lengths = leaving.mask.sum(-1).view(3, 4)
    steps = range(int(lengths.max()))
    if copy_prompts:
        expected = [int((lengths > t).sum()) for t in steps]
    else:  # every group that is still there keeps as many rows as the one with the most
        alive = [(lengths > t).sum(1) for t in steps]
        expected = [int((count > 0).sum() * count.max()) for count in alive]
    assert sizes == expected
    assert len(set(sizes)) > 3, "too few left for this to test anything"

    monkeypatch.setattr("dropout_grpo.latent.decoding.rectangle", lambda alive, group_size: torch.arange(len(alive)))
    staying = roll_out(model, prompts(), SEEDS, HELD, **options)
    assert torch.equal(staying.token_ids, leaving.token_ids)
    assert torch.equal(staying.mask, leaving.mask)
    torch.testing.assert_close(staying.logprobs, leaving.logprobs, rtol=0, atol=1e-10)
    torch.testing.assert_close(staying.entropy, leaving.entropy, rtol=0, atol=1e-10)
