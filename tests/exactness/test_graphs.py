"""Recorded and replayed work equals running it, on a CPU with a stand-in for CUDA graphs that replays the operations.

A shape is recorded when it occurs for the second time. With CUDA itself: test_gpu_graphs.py; what a recording must
not do: test_pretended.py.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.exploration import Exploration, NoExploration
from dropout_grpo.latent import LatentModel, graphs as graphs_module
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import AverageOverMasks, DecodingStrategy, Generation, Greedy, Sampling
from dropout_grpo.latent.fixed_shape import BLOCK, PROMPT_BUCKET
from dropout_grpo.latent.rollout import roll_out, think_in_groups
from dropout_grpo.latent.shared_prompt import cache_tensors
from dropout_grpo.training.memory import MicroBatches
from helpers.engine import EXPLORATIONS, HELD, OTHERS, QUESTIONS, difference, latent_model, prompts
from helpers.fake_cuda import Recorder, fake_cuda, patched_cuda
from helpers.tiny_lora import tiny_lora

SEEDS = torch.arange(12).view(3, 4) - 5
LENGTH = 6


def rollouts(
    model: LatentModel,
    rows: list[list[int]],
    seeds: Tensor,
    exploration: Exploration = HELD,
    *,
    temperature: float = 1.5,
    top_p: float = 1.0,
    bf16: bool = False,
) -> Generation:
    options = {"temperature": temperature, "top_p": top_p, "max_completion_length": LENGTH}
    with torch.no_grad(), autocast(model.device, bf16):
        return roll_out(model, prompts(rows), seeds, exploration, **options)


def same(a: Generation, b: Generation, tolerance: float = 1e-10) -> bool:
    return (
        torch.equal(a.token_ids, b.token_ids)
        and torch.equal(a.mask, b.mask)
        and difference(a.logprobs, b.logprobs) < tolerance
        and difference(a.entropy, b.entropy) < tolerance
    )


@pytest.mark.parametrize(
    ("kind", "name", "temperature", "thought"),
    [("gpt2", name, 1.5, "hidden_state") for name in EXPLORATIONS]
    + [("qwen3", "every_site", 0.0, "pause"), ("llama", "held", 1.5, "projection")],
)
def test_replayed_is_run(kind: str, name: str, temperature: float, thought: str) -> None:
    """Other batches on the same buffers get their own results, and the first one its old results again."""
    model, exploration = latent_model(kind, thought=thought), EXPLORATIONS[name]
    model.tokens = replace(model.tokens, eos=4)  # some answers end in the first block, some later or never
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
    assert expected.token_ids.shape[1] <= BLOCK
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
    """The same size is tried once more without graphs, then halved. Then there is room to record again."""
    model = latent_model("gpt2")
    batches, sizes = MicroBatches("rollout_batch_size", 12), []  # type: tuple[MicroBatches, list[int]]

    def work(size: int) -> None:
        sizes.append(size)
        for groups in torch.arange(3).split(size):
            rollouts(model, [QUESTIONS[i] for i in groups], SEEDS[groups])
        recorded.append(len(graphs))
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    recorded: list[int] = []
    with fake_cuda() as graphs:
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS)
        batches.fit(3, work, rows=4)
        assert sizes == [3, 3, 1]
        assert recorded == [3, 3, 6], "those of three groups; none where they were given back; those of one"
        rollouts(model, QUESTIONS, SEEDS)
        assert [graph.replays for graph in graphs[:3]] == [2, 2, 2], "they were not kept"
        assert len(graphs) == 9, "fault: step by step for the rest of the run"


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
    with fake_cuda() as graphs:
        for inference in (True, True, True, False, False, False, True):
            with torch.inference_mode(inference):
                assert same(rollouts(model, QUESTIONS, SEEDS), expected)
        assert len(graphs_module._RECORDINGS[model]) == 4
    assert [graph.replays for graph in graphs] == [3] * 3 + [2] * 3


def test_every_nucleus_is_met_anew() -> None:
    model = latent_model("gpt2")
    expected = {top_p: rollouts(model, QUESTIONS, SEEDS, top_p=top_p) for top_p in (1.0, 0.5)}
    assert not torch.equal(expected[1.0].token_ids, expected[0.5].token_ids)
    with fake_cuda():
        for _ in range(3):
            for top_p, answers in expected.items():
                assert same(rollouts(model, QUESTIONS, SEEDS, top_p=top_p), answers)


def test_what_is_returned_is_not_overwritten_and_goes_on() -> None:
    """A thought state feeds several answers, and a replay's score: each batch's is its own."""
    model = latent_model("llama")
    answers = torch.tensor([[15, 7, 3]] * 12)

    @torch.no_grad()
    def thought(rows: list[list[int]]) -> Any:
        return think_in_groups(model, prompts(rows), SEEDS, HELD)

    @torch.no_grad()
    def seen(state: Any, noise: Any) -> list[Tensor]:
        some = torch.arange(4, 12)
        scores = model.score(state, answers, noise=noise)
        of_some = model.score(state.select(some), answers[4:], noise=noise.select(some))
        return [*(t for pair in cache_tensors(state.cache) for t in pair), of_some, scores]

    expected = seen(*thought(QUESTIONS))
    with fake_cuda() as graphs:
        thought(QUESTIONS)
        first, other = thought(QUESTIONS), thought(OTHERS)
        assert [graph.replays for graph in graphs] == [2]
        assert max(difference(a, b) for a, b in zip(seen(*first), expected, strict=True)) < 1e-10
        assert difference(seen(*other)[-1], expected[-1]) > 1e-2


@torch.no_grad()
def uses_graphs(model: LatentModel, *, steps: int = 2, strategy: DecodingStrategy | None = None) -> bool:
    batch = prompts()
    state = model.read(batch.input_ids, batch.attention_mask)
    return graphs_module.recordings_for(model, state, steps, strategy) is not None


def test_which_work_is_recorded(tmp_path: Path) -> None:
    class Other(Sampling):
        """Draws in its own way."""

    model, batch = latent_model("gpt2"), prompts()
    assert not uses_graphs(model), "on a CPU steps are taken one by one"
    with fake_cuda():
        assert all(uses_graphs(latent_model(kind)) for kind in ("gpt2", "qwen2", "gpt_neox", "opt"))
        assert not any(uses_graphs(latent_model(kind)) for kind in ("gemma2", "qwen2_window"))
        assert not uses_graphs(latent_model("llama", copy_prompts=True))
        assert not uses_graphs(tiny_lora(tmp_path)), "a graph would not see that the adapter is off"
        for strategy in (Greedy(), Sampling(SEEDS.flatten(), 1.0), AverageOverMasks(4)):
            assert uses_graphs(model, strategy=strategy)
        assert not uses_graphs(model, strategy=AverageOverMasks(2, torch.zeros(3, 2))), "it has begun"
        assert not uses_graphs(model, strategy=Other(SEEDS.flatten(), 1.0))
        assert uses_graphs(model, steps=graphs_module.MOST_STEPS)
        assert not uses_graphs(model, steps=graphs_module.MOST_STEPS + 1)
        assert not uses_graphs(model, steps=0)
        dynamic = latent_model("llama")
        dynamic.model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
        assert not uses_graphs(dynamic)
        state = model.read(batch.input_ids, batch.attention_mask)  # with gradient
        assert graphs_module.recordings_for(model, state, 2, None) is None


@pytest.mark.parametrize("change", ["weights", "precision", "eos", "rows", "length"])
def test_another_shape_is_met_anew(change: str) -> None:
    model = latent_model("gpt2", torch.float32)
    with fake_cuda() as graphs:
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS)
        rows, seeds = QUESTIONS, SEEDS
        if change == "weights":  # at another place: a graph would go on reading the old one
            weight = model.model.get_decoder().ln_f.weight
            weight.data = weight.data.clone()
        elif change == "eos":
            model.tokens = replace(model.tokens, eos=5)
        elif change == "rows":
            seeds = SEEDS[:, :3]
        elif change == "length":
            rows = [[7] * PROMPT_BUCKET + [28], *QUESTIONS[1:]]
        rollouts(model, rows, seeds, bf16=change == "precision")
        thoughts, *answers = (graph.replays for graph in graphs)
        assert (thoughts, answers) == (2 if change == "eos" else 1, [1, 1])


def test_few_shapes_are_kept_and_none_of_a_model_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "MOST_SHAPES", 3)
    with fake_cuda():
        model = latent_model("gpt2")
        for k in (1, 2, 3, 4):
            rollouts(model, QUESTIONS, SEEDS[:, :k])
        assert [len(recordings._shapes) for recordings in graphs_module._RECORDINGS.values()] == [3]
        del model
        gc.collect()
        assert len(graphs_module._RECORDINGS) == 0
