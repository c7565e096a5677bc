"""The choice of the next token: by seeds, in agreement with the probabilities, and exactly under the average policy."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from dropout_grpo.exploration import SharedDropout
from dropout_grpo.exploration.seeds import stream, uniform
from dropout_grpo.latent import LatentModel, decoding
from dropout_grpo.latent.decoding import AverageOverMasks, Greedy, Sampling, next_token
from dropout_grpo.latent.rollout import Prompts, think_in_groups
from dropout_grpo.latent.state import LatentState
from helpers.tiny_latent import tiny_latent


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.mark.parametrize(("u", "dtype"), [(0.0, torch.float32), (0.5, torch.float64), (1 - 2**-24, torch.float32)])
def test_a_token_of_probability_zero_is_never_chosen(
    u: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Impossible tokens first, last and in between, in distributions whose sum is not exactly 1 after rounding.
    monkeypatch.setattr(decoding, "uniform", lambda seeds, streams: torch.full((len(seeds), 1), u))
    logits = 4 * torch.randn(200, 300, dtype=dtype)
    impossible = torch.rand(200, 300) < 0.5
    impossible[:, :3] = impossible[:, -3:] = True
    logprobs = logits.masked_fill(impossible, -torch.inf).log_softmax(-1)
    chosen = Sampling(torch.arange(200), 1.0).choose(logprobs, 0)
    assert not impossible.gather(1, chosen[:, None]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_single_row_is_summed_like_one_of_several(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's cumulative sum of a single row is not deterministic; the bits on a CPU are those of that sum."""
    summed: list[Tensor] = []
    cumsum = Tensor.cumsum

    def watched(self: Tensor, dim: int) -> Tensor:
        summed.append(cumsum(self, dim))
        return summed[-1]

    monkeypatch.setattr(Tensor, "cumsum", watched)
    logprobs = (4 * torch.randn(3, 5000, dtype=dtype)).log_softmax(-1)
    seeds = torch.tensor([5, 6, 7])
    together = Sampling(seeds, 1.0).choose(logprobs, 0)
    alone = [Sampling(seeds[i : i + 1], 1.0).choose(logprobs[i : i + 1], 0) for i in range(3)]
    assert torch.equal(torch.cat(alone), together)
    assert [len(rows) for rows in summed] == [3, 2, 2, 2]
    assert torch.equal(summed[1][:1], cumsum(logprobs[:1].exp(), -1))
    Sampling(seeds[:1], 1.0, 0.9).choose(logprobs[:1], 0)
    assert [len(rows) for rows in summed[4:]] == [2, 2]  # the nucleus has a sum of its own


def test_sample_is_the_uniform_of_its_seed_and_position() -> None:
    seeds = torch.arange(500)
    row = [0.1, 0.4, 0.2, 0.3]
    for position in (0, 3):
        chosen = Sampling(seeds, 1.0).choose(logs(row).expand(500, -1), position).tolist()
        drawn = uniform(seeds, stream(f"answer.{position}", 1))[:, 0].tolist()
        edges = [0.1, 0.5, 0.7]
        assert chosen == [sum(u >= edge for edge in edges) for u in drawn]
    # Another position is another draw, and rows that leave take nobody's seed with them.
    first, second = (Sampling(seeds, 1.0).choose(logs(row).expand(500, -1), position) for position in (0, 1))
    assert 100 < int((first != second).sum()) < 450
    rows = torch.tensor([7, 450, 3])
    assert torch.equal(Sampling(seeds, 1.0).select(rows).choose(logs(row).expand(3, -1), 0), first[rows])


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(0.49, [2]), (0.51, [2, 0]), (1.0, [2, 0, 3, 1])],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, nucleus: list[int]) -> None:
    n, row = 4000, torch.tensor([0.3, 0.05, 0.5, 0.15], dtype=torch.float64)
    chosen = Sampling(torch.arange(n), 1.0, top_p).choose(row.log().expand(n, -1), 0)
    shares = torch.bincount(chosen, minlength=4) / n
    expected = torch.zeros(4, dtype=torch.float64)
    expected[nucleus] = row[nucleus] / row[nucleus].sum()
    assert set(chosen.tolist()) == set(nucleus)
    torch.testing.assert_close(shares.double(), expected, atol=0.03, rtol=0)


def test_the_nucleus_is_that_of_transformers() -> None:
    logits = 2 * torch.randn(50, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for top_p in (0.1, 0.6, 0.95):
        theirs = TopPLogitsWarper(top_p)(torch.zeros(50, 0, dtype=torch.long), logits.clone()).softmax(-1)
        actual = decoding._nucleus(logits.softmax(-1), top_p)
        torch.testing.assert_close(actual / actual.sum(-1, keepdim=True), theirs)


def thought_of(model: LatentModel, questions: list[str]) -> LatentState:
    return model.think(model.read(*model.encode(questions)), model.latent_steps)


@torch.no_grad()
def test_temperature_divides_the_logits_before_a_token_is_drawn() -> None:
    model = tiny_latent(dtype=torch.float64)
    state = thought_of(model, ["Ann has 3"])
    every = torch.arange(31)[:, None]
    logits = model.score(state.repeat(31), every).T  # [1, V], up to a constant
    state = state.repeat(300)
    for temperature in (0.5, 2.0):
        strategy = Sampling(torch.arange(300), temperature)
        generation = model.generate(state, 1, strategy=strategy)
        expected = (logits / temperature).log_softmax(-1).expand(300, -1)
        torch.testing.assert_close(generation.logprobs[:, 0], expected.gather(1, generation.token_ids)[:, 0])
        assert torch.equal(generation.token_ids[:, 0], strategy.choose(expected, 0))
        torch.testing.assert_close(generation.entropy[:, 0], -(expected.exp() * expected).sum(-1))


def test_a_word_that_is_ruled_out_adds_no_entropy() -> None:
    model = SimpleNamespace(logits=lambda *_: (logs([0.5, 0.0, 0.5], [0.0, 1.0, 0.0])[:, None], None))
    _, token = next_token(model, None, None, 0, strategy=Greedy(), noise=None)  # type: ignore[arg-type]
    assert token.entropy.tolist() == pytest.approx([math.log(2), 0.0])
    assert str(token.entropy[1].item()) == "0.0"  # in metrics.jsonl


def test_average_over_masks_by_hand() -> None:
    # Two masks. First token: (0.6 + 0.1, 0.4 + 0.8, 0 + 0.1) / 2, so token 1. It weighs the masks 0.4 to 0.8.
    average = AverageOverMasks(2)
    first = logs([0.6, 0.4, 0.0], [0.1, 0.8, 0.1])
    assert average.choose(first, 0).tolist() == [1, 1]
    average = average.after(first[:, 1])
    # Second: 0.4 x 0.9 + 0.8 x 0.1 = 0.44, 0.12, 0.64, so token 2; with equal weights it would be 0 (0.5 to 0.4).
    second = logs([0.9, 0.1, 0.0], [0.1, 0.1, 0.8])
    assert average.choose(second, 1).tolist() == [2, 2]
    average = average.after(second[:, 2])
    # The first mask has ruled that out: only the second is left, whatever the first says.
    assert average.choose(logs([1.0, 0.0, 0.0], [0.3, 0.4, 0.3]), 2).tolist() == [1, 1]


def average_answer(
    model: LatentModel, state: LatentState, noise: object, length: int, *, weighted: bool = True
) -> list[int]:
    """Greedy under pibar(token | prefix) = sum_m pi(prefix token | m) / sum_m pi(prefix | m), all tokens enumerated.

    With ``weighted`` off, the plain average of the masks' next-token probabilities, which is another policy.
    """
    answer: list[int] = []
    while len(answer) < length and model.tokens.eos not in answer:
        scores = []
        for token in range(31):
            ids = torch.tensor([[*answer, token]]).expand(state.rows, -1)
            logprobs = model.score(state, ids, noise=noise)  # type: ignore[arg-type]
            scores.append((logprobs if weighted else logprobs[:, -1:]).sum(-1).exp().mean())
        answer.append(int(torch.stack(scores).argmax()))
    return answer


@torch.no_grad()
def test_average_over_masks_is_greedy_under_the_enumerated_average_policy() -> None:
    model = tiny_latent(dtype=torch.float64, std=0.5)
    prompts, seeds = Prompts(*model.encode(["Ann has 3"])), torch.tensor([[11, 12, 13]])
    state, noise = think_in_groups(model, prompts, seeds, SharedDropout(0.5, phases=("latent", "answer")))
    generation = model.generate(state, 4, strategy=AverageOverMasks(3), noise=noise)
    expected = average_answer(model, state, noise, 4)
    for row in range(3):
        assert generation.token_ids[row][generation.mask[row]].tolist() == expected
    assert average_answer(model, state, noise, 4, weighted=False) != expected, "the weights do not matter"
    alone = model.generate(state, 4, noise=noise)
    assert len({tuple(row) for row in alone.token_ids.tolist()}) > 1, "the masks agree"


@torch.no_grad()
def test_average_of_a_batch_is_that_of_each_question() -> None:
    # Questions end at different lengths, so rows leave the batch on the way.
    exploration = SharedDropout(0.3, phases=("latent", "answer"))
    model = tiny_latent(dtype=torch.float64, seed=17)
    questions = ["Ann has 3", "Bob has 4 ? ?", "how many ?", "7 + 2", "Ann gets 9 ."]
    seeds = torch.arange(20).view(5, 4)
    prompts = Prompts(*model.encode(questions))
    state, noise = think_in_groups(model, prompts, seeds, exploration)
    together = model.generate(state, 8, strategy=AverageOverMasks(4), noise=noise)
    lengths = together.mask.sum(-1).view(5, 4)
    assert len(set(lengths[:, 0].tolist())) > 1, "all end together: nothing leaves the batch"
    for i, question in enumerate(questions):
        alone, noise = think_in_groups(model, Prompts(*model.encode([question])), seeds[i : i + 1], exploration)
        generation = model.generate(alone, 8, strategy=AverageOverMasks(4), noise=noise)
        for k in range(4):
            row = together.token_ids[4 * i + k][together.mask[4 * i + k]]
            assert row.tolist() == generation.token_ids[k][generation.mask[k]].tolist()
