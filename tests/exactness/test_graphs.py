"""Recorded and replayed work equals running it, on a CPU with a stand-in for CUDA graphs that replays the operations.

With CUDA itself: test_gpu_graphs.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dropout_grpo.exploration import Exploration, NoExploration
from dropout_grpo.latent import LatentModel, fixed_shape, graphs as graphs_module
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.rollout import roll_out
from dropout_grpo.training.memory import MicroBatches
from helpers.engine import QUESTIONS, difference, latent_model, prompts
from helpers.fake_cuda import Recorder, fake_cuda, patched_cuda
from helpers.fixed_shape import EXPLORATIONS, HELD, OTHERS, fixed_shapes

SEEDS = torch.arange(12).view(3, 4) - 5
LENGTH = 6


def rollouts(
    model: LatentModel,
    rows: list[list[int]],
    seeds: Tensor,
    exploration: Exploration = HELD,
    *,
    temperature: float = 1.5,
    bf16: bool = False,
) -> Generation:
    with torch.no_grad(), autocast(model.device, bf16):
        return roll_out(model, prompts(rows), seeds, exploration, temperature=temperature, max_completion_length=LENGTH)


def same(a: Generation, b: Generation, tolerance: float = 1e-10) -> bool:
    return (
        torch.equal(a.token_ids, b.token_ids)
        and torch.equal(a.mask, b.mask)
        and difference(a.logprobs, b.logprobs) < tolerance
        and difference(a.entropy, b.entropy) < tolerance
    )


@pytest.mark.parametrize(
    ("kind", "name", "temperature"), [("gpt2", name, 1.5) for name in EXPLORATIONS] + [("qwen3", "every_site", 0.0)]
)
def test_replayed_is_run(kind: str, name: str, temperature: float) -> None:
    model, exploration = latent_model(kind), EXPLORATIONS[name]
    batches = [(QUESTIONS, SEEDS), (OTHERS, SEEDS + 100), (QUESTIONS, SEEDS - 100)]
    expected = [rollouts(model, *batch, exploration, temperature=temperature) for batch in batches]
    assert not same(expected[0], expected[1])
    with fake_cuda() as graphs:
        for batch in (0, 0, 1, 2, 0):
            actual = rollouts(model, *batches[batch], exploration, temperature=temperature)
            assert same(actual, expected[batch]), batch
    assert [graph.replays for graph in graphs] == [4, 4, 4]  # thoughts, two blocks of tokens
    assert len({id(graph.pool()) for graph in graphs}) == 1


def test_what_comes_after_all_rows_have_ended_is_not_replayed() -> None:
    model = latent_model("gpt2")
    first = rollouts(model, QUESTIONS, SEEDS, NoExploration(), temperature=0.0).token_ids
    model.tokens = replace(model.tokens, eos=int(first[0, 2]))
    alone = ([QUESTIONS[0]], SEEDS[:1], NoExploration())
    expected = rollouts(model, *alone, temperature=0.0)
    with fake_cuda() as graphs:
        for _ in range(3):
            assert same(rollouts(model, *alone, temperature=0.0), expected)
    assert expected.token_ids.shape[1] <= fixed_shape.BLOCK
    assert [graph.replays for graph in graphs] == [2, 2, 0]


def test_every_stop_of_a_list_ends_an_answer_in_recorded_work() -> None:
    """``generation_config`` may name several tokens that end an answer."""
    model = latent_model("qwen3")
    whole = rollouts(model, QUESTIONS, SEEDS)
    stops = tuple({int(whole.token_ids[0, 1]), int(whole.token_ids[-1, 2])} - {model.tokens.eos})
    assert len(stops) == 2
    model.tokens = replace(model.tokens, stops=stops)
    expected = rollouts(model, QUESTIONS, SEEDS)
    assert expected.mask[0].sum() == 2, "the first answer ends with the first stop"
    assert expected.mask.sum() < whole.mask.sum()
    with fake_cuda():
        for _ in range(3):
            assert same(rollouts(model, QUESTIONS, SEEDS), expected)


def moved(model: LatentModel) -> None:
    """As an optimiser moves them: in place."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1).add_(0.02)


@pytest.mark.parametrize("bf16", [False, True])
def test_moved_weights_are_seen(bf16: bool) -> None:
    """Of bf16 it is the cast that could be an old one."""
    model, reference = (latent_model("llama", torch.float32) for _ in range(2))
    before = rollouts(reference, OTHERS, SEEDS, bf16=bf16)
    moved(reference)
    expected = rollouts(reference, OTHERS, SEEDS, bf16=bf16)
    with fake_cuda() as graphs:
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS, bf16=bf16)
        moved(model)
        actual = rollouts(model, OTHERS, SEEDS, bf16=bf16)
    assert [graph.replays for graph in graphs] == [2, 2, 2]
    gaps = [(actual.entropy[:, 0] - other.entropy[:, 0]).abs().max() for other in (expected, before)]
    assert gaps[0] < (2e-2 if bf16 else 1e-5) < gaps[1] / 2


def test_memory_that_runs_out_gives_the_graphs_back() -> None:
    """The same size is tried once more without graphs, whose shapes are not recorded again; then it is halved."""
    model = latent_model("gpt2")
    batches, sizes = MicroBatches("rollout_batch_size", 12), []  # type: tuple[MicroBatches, list[int]]

    def work(size: int) -> None:
        sizes.append(size)
        for groups in torch.arange(3).split(size):
            rollouts(model, [QUESTIONS[i] for i in groups], SEEDS[groups])
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with fake_cuda() as graphs:
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS)
        batches.fit(3, work, rows=4)
        assert sizes == [3, 3, 1]
        assert len(graphs) == 6, "those of three groups and, anew, of one"
        rollouts(model, QUESTIONS, SEEDS)
        assert [graph.replays for graph in graphs[:3]] == [2, 2, 2], "they were not kept"
        assert len(graphs) == 6


def test_graphs_are_given_back_before_the_size_is_halved() -> None:
    """Also at the smallest size: with the graphs' memory the work fits."""
    model, batches = latent_model("gpt2"), MicroBatches("rollout_batch_size", 4)

    def work(size: int) -> Generation:
        if len(graphs_module._RECORDINGS[model]):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return rollouts(model, QUESTIONS[:1], SEEDS[:1])

    with fake_cuda():
        for _ in range(2):
            expected = rollouts(model, QUESTIONS[:1], SEEDS[:1])
        for _ in range(3):
            assert same(batches.fit(1, work, rows=4), expected)
    assert batches.size == 4


@contextmanager
def failing(model: LatentModel, error: RuntimeError, at: int = 0) -> Iterator[list[None]]:
    """Forward passes that are recorded fail, after ``at`` of them; yields one entry for each that does."""
    failed: list[None] = []
    passes = iter(range(1000))

    def forward(*args: object) -> None:
        if fake.recording is not None and next(passes) >= at:
            failed.append(None)
            raise error

    with patched_cuda("cpu") as fake, Recorder(fake):
        handle = model.model.get_decoder().register_forward_pre_hook(forward)
        yield failed
        handle.remove()
        assert not fake.underway
        assert max(fake.uses.values()) == 0


HOST = RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture\nand a second line")
MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


@pytest.mark.parametrize("error", [HOST, MEMORY], ids=["host", "memory"])
def test_work_that_cannot_be_recorded_runs_step_by_step(error: RuntimeError, recwarn: pytest.WarningsRecorder) -> None:
    model = latent_model("gpt2")
    expected = rollouts(model, QUESTIONS, SEEDS)
    with failing(model, error) as failed:
        for _ in range(4):
            stream = torch.cuda.current_stream()
            assert same(rollouts(model, QUESTIONS, SEEDS), expected)
            assert torch.cuda.current_stream() is stream
        assert len(graphs_module._RECORDINGS[model]) == 0
    assert len(failed) == 2, "thoughts and answers, once each"
    reason = str(error).splitlines()[0]
    assert [str(line.message) for line in recwarn] == [
        f"GPT2LMHeadModel: a CUDA graph cannot be recorded ({reason}); batches of this shape run step by step, with "
        "the same results but more slowly."
    ]


@pytest.mark.filterwarnings("ignore:.*second block")
def test_a_failed_recording_does_not_hinder_the_next_ones() -> None:
    """Of another shape: it uses other memory, since torch takes that of the failed one for still recorded into."""
    model, few = latent_model("gpt2"), SEEDS[:, :2]
    expected = rollouts(model, QUESTIONS, few)
    fake_error = RuntimeError("an error in the second block of answers")
    with patched_cuda("cpu") as fake, Recorder(fake):
        handle = model.model.get_decoder().register_forward_pre_hook(
            lambda *_: _raise(fake_error) if fake.recording is not None and len(fake.graphs) == 2 else None
        )
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS)
        assert len(graphs_module._RECORDINGS[model]) == 1, "the thoughts"
        handle.remove()
        spoiled = fake.graphs[0].pool()
        for _ in range(3):
            rollouts(model, QUESTIONS, few)
        assert len(graphs_module._RECORDINGS[model]) == 3
        assert {graph.pool() for graph in fake.graphs[2:]}.isdisjoint({spoiled})
    assert same(expected, rollouts(model, QUESTIONS, few))


def _raise(error: RuntimeError) -> None:
    raise error


@pytest.mark.filterwarnings("ignore:.*Cannot copy")
def test_a_failed_recording_leaves_no_casts_behind() -> None:
    """In one block of autocast: weights cast by the failed recording have no values on a GPU."""
    model = latent_model("llama", torch.float32)
    expected = rollouts(model, QUESTIONS, SEEDS, bf16=True)
    with failing(model, HOST, at=1), autocast(model.device, True):
        for _ in range(3):
            assert same(rollouts(model, QUESTIONS, SEEDS, bf16=True), expected, 1e-6)


def test_buffers_of_inference_mode_are_used_only_in_it() -> None:
    model = latent_model("gpt2")
    expected = rollouts(model, QUESTIONS, SEEDS)
    with fixed_shapes() as done:
        for inference in (True, True, True, False, False, False, True):
            with torch.inference_mode(inference):
                assert same(rollouts(model, QUESTIONS, SEEDS), expected)
        assert len(graphs_module._RECORDINGS[model]) == 4
    assert len(done) == 2 * 5
