"""Work with a fixed shape, which graphs replay, gives the same tokens and numbers as running step by step.

A shape is worked on in the fixed way from the second time on. Here its blocks are run where a GPU replays graphs of
them (test_gpu_graphs.py), on the same buffers.
"""

import gc
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dropout_grpo.evaluation.answering import EvaluationConfig, answer_problems
from dropout_grpo.exploration import Exploration, NoExploration
from dropout_grpo.latent import LatentModel, fixed_shape, graphs
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import AverageOverMasks, DecodingStrategy, Generation, Greedy, Sampling
from dropout_grpo.latent.fixed_shape import (
    PROMPT_BUCKET,
    AnsweringWork,
    BatchTensors,
    ThinkingWork,
    batch_tensors,
)
from dropout_grpo.latent.rollout import roll_out, think_in_groups
from dropout_grpo.latent.shared_prompt import cache_tensors
from helpers.engine import QUESTIONS, difference, latent_model, prompts
from helpers.fixed_shape import EXPLORATIONS, HELD, OTHERS, fixed_shapes
from helpers.tiny import EXTRA_KINDS, KINDS, WINDOWED_KINDS
from helpers.tiny_latent import tiny_latent, tiny_problems
from helpers.tiny_lora import tiny_lora

LENGTH = 10  # two blocks and a half
SEEDS = {1: torch.tensor([[3], [-4], [5]]), 4: torch.arange(12).view(3, 4) - 5}
SHARING = [kind for kind in KINDS + EXTRA_KINDS if kind not in WINDOWED_KINDS]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def rollouts(
    model: LatentModel, rows: list[list[int]], seeds: Tensor, exploration: Exploration, temperature: float = 1.5
) -> Generation:
    with torch.no_grad():
        return roll_out(model, prompts(rows), seeds, exploration, temperature=temperature, max_completion_length=LENGTH)


@lru_cache
def ending(kind: str, k: int, exploration: Exploration, temperature: float) -> int:
    """The token that as the end of text lets rows end at the most different places, and not all in the first block."""
    model = latent_model(kind)
    model.tokens = replace(model.tokens, eos=-1)
    rows = rollouts(model, QUESTIONS, SEEDS[k], exploration, temperature).token_ids.tolist()
    ends = {t: {row.index(t) if t in row else LENGTH for row in rows} for row in rows for t in row}
    return max((t for t in ends if max(ends[t]) >= fixed_shape.BLOCK), key=lambda t: len(ends[t]))


def assert_same(actual: Generation, expected: Generation, tolerance: float = 1e-10) -> None:
    assert torch.equal(actual.token_ids, expected.token_ids)
    assert torch.equal(actual.mask, expected.mask)
    assert difference(actual.logprobs, expected.logprobs) < tolerance
    assert difference(actual.entropy, expected.entropy) < tolerance


@pytest.mark.parametrize(
    ("kind", "name", "temperature", "k", "dtype"),
    [("gpt2", name, 1.5, 4, torch.float64) for name in EXPLORATIONS]
    + [("llama", "every_site", temperature, k, torch.float64) for temperature in (0.0, 1.5) for k in (1, 4)]
    + [("gpt2", "none", 0.0, 4, torch.float64), ("llama", "held", 1.5, 4, torch.float32)],
)
def test_work_of_a_fixed_shape_is_the_steps(
    kind: str, name: str, temperature: float, k: int, dtype: torch.dtype
) -> None:
    """Another batch on the same buffers gets its own results, and the first one its old results again."""
    model, exploration = latent_model(kind, dtype), EXPLORATIONS[name]
    model.tokens = replace(model.tokens, eos=ending(kind, k, exploration, temperature))
    batches = [(QUESTIONS, SEEDS[k]), (OTHERS, SEEDS[k] + 100)]
    expected = [rollouts(model, *batch, exploration, temperature) for batch in batches]
    blocks = [-(-e.token_ids.shape[1] // fixed_shape.BLOCK) for e in expected]
    with fixed_shapes() as done:
        for batch in (0, 0, 1, 0):
            assert_same(rollouts(model, *batches[batch], exploration, temperature), expected[batch], TOLERANCE[dtype])
    assert done == [(w, n) for b in (0, 1, 0) for w, n in ((ThinkingWork, 1), (AnsweringWork, blocks[b]))]


def test_rows_that_end_early_are_among_them() -> None:
    """What the comparison above is about: rows end in different blocks, and batches before their full length."""
    ends = set()
    for temperature in (0.0, 1.5):
        model = latent_model("gpt2")
        model.tokens = replace(model.tokens, eos=ending("gpt2", 4, HELD, temperature))
        mask = rollouts(model, QUESTIONS, SEEDS[4], HELD, temperature).mask
        ends |= {(temperature, -(-n // fixed_shape.BLOCK)) for n in mask.sum(-1).tolist()}
    assert {(0.0, 1), (1.5, 1), (1.5, 3)} <= ends


NEW = [field.name for field in fields(BatchTensors) if field.name != "own"]


def test_all_rows_ended_ends_the_work() -> None:
    model = latent_model("gpt2")
    said = rollouts(model, QUESTIONS, SEEDS[1], NoExploration(), 0.0).token_ids
    model.tokens = replace(model.tokens, eos=int(said[0, 1]))
    alone = ([QUESTIONS[0]], SEEDS[1][:1], NoExploration(), 0.0)
    with fixed_shapes() as done:
        for _ in range(3):
            assert rollouts(model, *alone).token_ids.shape == (1, list(said[0]).index(said[0, 1]) + 1)
    assert done == [(ThinkingWork, 1), (AnsweringWork, 1)] * 2


@pytest.mark.parametrize("stale", NEW)
def test_a_buffer_that_is_not_loaded_is_noticed(stale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, everything = latent_model("llama"), EXPLORATIONS["every_site"]
    expected = rollouts(model, OTHERS, SEEDS[4] + 100, everything)

    def load(self: BatchTensors, other: BatchTensors) -> None:
        right(self, replace(other, **{stale: getattr(self, stale)}))

    right = BatchTensors.load
    with fixed_shapes():
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS[4], everything)
        monkeypatch.setattr(BatchTensors, "load", load)
        with pytest.raises(AssertionError):
            assert_same(rollouts(model, OTHERS, SEEDS[4] + 100, everything), expected)


def test_what_is_returned_is_not_overwritten_and_goes_on() -> None:
    """A thought state feeds several answers, and a replay's score: each batch's is its own."""
    model = latent_model("llama")
    answers = torch.tensor([[15, 7, 3]] * 12)

    @torch.no_grad()
    def thought(rows: list[list[int]]) -> Any:
        return think_in_groups(model, prompts(rows), SEEDS[4], HELD)

    def seen(state: Any, noise: Any) -> list[Tensor]:
        with torch.no_grad():
            rest = state.select(torch.arange(4, 12)), noise.select(torch.arange(4, 12))
            tensors = [t for pair in cache_tensors(state.cache) for t in pair]
            return [
                *tensors,
                model.score(state, answers, noise=noise),
                model.score(rest[0], answers[4:], noise=rest[1]),
            ]

    expected = seen(*thought(QUESTIONS))
    with fixed_shapes() as done:
        thought(QUESTIONS)
        first = thought(QUESTIONS)
        other = thought(OTHERS)
        assert len(done) == 2
        actual = seen(*first)
        assert max(difference(a, b) for a, b in zip(actual, expected, strict=True)) < 1e-10
        assert difference(seen(*other)[-1], expected[-1]) > 1e-2


def test_evaluation_is_the_same() -> None:
    """Plain answers, samples under masks and the model average, of thoughts that they share."""
    model, problems = tiny_latent(dtype=torch.float64, seed=17), tiny_problems(7)
    config = EvaluationConfig(num_samples=3, temperature=1.0, max_new_tokens=6, batch_size=9)
    expected = answer_problems(model, problems, config, exploration=HELD)
    assert len({a.average for a in expected}) > 1
    with fixed_shapes() as done:
        for _ in range(2):
            assert answer_problems(model, problems, config, exploration=HELD) == expected
        assert answer_problems(model, problems, config, exploration=HELD, seed=1) != expected
    assert [work for work, _ in done].count(AnsweringWork) > 10


@pytest.mark.parametrize("thought", ["pause", "projection"])
def test_other_thoughts(thought: str) -> None:
    model = latent_model("gpt2", thought=thought)
    expected = rollouts(model, OTHERS, SEEDS[4], HELD)
    with fixed_shapes() as done:
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS[4], HELD)
        assert_same(rollouts(model, OTHERS, SEEDS[4], HELD), expected)
    assert len(done) == 4


# What a recording may do.


class OnDevice(TorchDispatchMode):
    """Raises on operations that a CUDA graph cannot record: reading a value back, and copying numbers from the host."""

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        assert name not in self.READS, name
        assert all(t.device.type == "meta" for t in tensors), f"{name} takes a tensor from the host"
        return func(*args, **(kwargs or {}))


def meta(batch: BatchTensors) -> BatchTensors:
    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to("meta")
        if isinstance(value, dict):
            return {name: moved(item) for name, item in value.items()}
        return tuple(map(moved, value)) if isinstance(value, tuple) else value

    return BatchTensors(**{field.name: moved(getattr(batch, field.name)) for field in fields(BatchTensors)})


@torch.no_grad()
def run_without_values(model: LatentModel, strategy: DecodingStrategy) -> None:
    """Two thoughts and six tokens on tensors without values, which cannot be read."""
    state, noise = think_in_groups(model, prompts(), SEEDS[4], EXPLORATIONS["every_site"], 0)
    thinking = batch_tensors(state, noise, [("latent", 0), ("latent", 1)], 2)
    state = model.think(state, 2, noise)
    answering = batch_tensors(state, noise, [("answer", 0)], 6, strategy)
    model.to("meta")
    state = replace(state, hidden=state.hidden.to("meta"))
    for work in (ThinkingWork(meta(thinking), 2, 0), AnsweringWork(model, meta(answering), state, strategy, 6)):
        with OnDevice():
            assert len(list(work.run(model))) == work.blocks


def test_every_nucleus_is_met_anew() -> None:
    model = latent_model("gpt2")

    def rolled_out(top_p: float) -> Generation:
        with torch.no_grad():
            options = {"temperature": 1.5, "max_completion_length": LENGTH, "top_p": top_p}
            return roll_out(model, prompts(QUESTIONS), SEEDS[4], HELD, **options)

    expected = {top_p: rolled_out(top_p) for top_p in (1.0, 0.5)}
    assert not torch.equal(expected[1.0].token_ids, expected[0.5].token_ids)
    with fixed_shapes():
        for _ in range(3):
            for top_p, answers in expected.items():
                assert_same(rolled_out(top_p), answers, TOLERANCE[torch.float64])


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("strategy", [Greedy(), Sampling(SEEDS[4].flatten(), 0.7, 0.9), AverageOverMasks(4)])
def test_no_block_waits_for_the_device(kind: str, strategy: DecodingStrategy) -> None:
    """So whatever is recorded does not hang on what the first batch was."""
    run_without_values(latent_model(kind, torch.float32), strategy)


def test_a_model_with_an_adapter_has_no_graphs(tmp_path: Path) -> None:
    """A graph would not see that the adapter is off."""
    with fixed_shapes():
        assert not met(tiny_lora(tmp_path / "one"))


# When it is done.


@torch.no_grad()
def met(model: LatentModel, *, steps: int = 2, strategy: DecodingStrategy | None = None) -> bool:
    state = model.read(*vars_of(prompts()))
    return graphs.recordings_for(model, state, steps, strategy) is not None


def vars_of(batch: Any) -> Iterator[Tensor]:
    return iter((batch.input_ids, batch.attention_mask))


def test_the_rule() -> None:
    class Other(Sampling):
        """Draws in its own way."""

    begun = AverageOverMasks(2, torch.zeros(3, 2))
    gpt2 = latent_model("gpt2")
    assert not met(gpt2), "on a CPU steps are taken one by one"
    with fixed_shapes():
        assert all(met(latent_model(kind)) for kind in SHARING)
        assert not any(met(latent_model(kind)) for kind in ("gemma2", "qwen2_window"))
        assert not met(latent_model("llama", copy_prompts=True))
        for strategy in (Greedy(), Sampling(SEEDS[1], 1.0), AverageOverMasks(2)):
            assert met(gpt2, strategy=strategy)
        assert not met(gpt2, strategy=begun)
        assert not met(gpt2, strategy=Other(SEEDS[1], 1.0))
        assert met(gpt2, steps=graphs.MOST_STEPS)
        assert not met(gpt2, steps=graphs.MOST_STEPS + 1)
        assert not met(gpt2, steps=0)
        dynamic = latent_model("llama")
        dynamic.model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
        assert not met(dynamic)
        with torch.enable_grad():
            state = gpt2.read(*vars_of(prompts()))
            assert graphs.recordings_for(gpt2, state, 2, None) is None


@pytest.mark.parametrize("change", ["weights", "precision", "eos", "rows", "length"])
def test_another_shape_is_met_anew(change: str) -> None:
    model = latent_model("gpt2", torch.float32)
    with fixed_shapes() as done:
        for _ in range(2):
            rollouts(model, QUESTIONS, SEEDS[4], HELD)
        assert len(done) == 2
        rows, seeds, exploration, bf16 = QUESTIONS, SEEDS[4], HELD, change == "precision"
        if change == "weights":  # at another place: a graph would go on reading the old one
            weight = model.model.get_decoder().ln_f.weight
            weight.data = weight.data.clone()
        elif change == "eos":
            model.tokens = replace(model.tokens, eos=5)
        elif change == "rows":
            seeds = SEEDS[4][:, :3]
        elif change == "length":
            rows = [[7] * PROMPT_BUCKET + [28], *QUESTIONS[1:]]
        with autocast(model.device, bf16):
            rollouts(model, rows, seeds, exploration)
        assert [work for work, _ in done[2:]] == ([ThinkingWork] if change == "eos" else [])


def test_few_shapes_are_kept_and_none_of_a_model_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_SHAPES", 3)
    with fixed_shapes():
        model = latent_model("gpt2")
        for k in (1, 2, 3, 4):
            rollouts(model, QUESTIONS, SEEDS[4][:, :k], HELD)
        assert [len(recordings._shapes) for recordings in graphs._RECORDINGS.values()] == [3]
        del model
        gc.collect()
        assert len(graphs._RECORDINGS) == 0
