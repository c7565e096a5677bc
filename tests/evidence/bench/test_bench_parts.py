"""Timing, lines, peak, masks, memory and options of the benchmark, by hand."""

import json
import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dropout_grpo.errors import UserError
from evidence.bench import peak
from evidence.bench.config import BenchConfig, resolve
from evidence.bench.measure import cpu_model, fit_line, machine
from evidence.bench.timing import Arm, alternate


class Clock:
    """A clock that advances only inside the arms."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def arm(clock: Clock, told: list[str], name: str, seconds: Iterator[float], scale: float = 1.0) -> Arm:
    def run() -> None:
        told.append(name)
        clock.now += next(seconds)

    def prepare() -> None:
        told.append(f"prepare {name}")
        clock.now += 100.0  # must not be counted

    return Arm(run=run, prepare=prepare, scale=scale)


def test_arms_take_turns_and_the_first_run_is_not_counted() -> None:
    clock, told = Clock(), []  # type: tuple[Clock, list[str]]
    two = {
        "a": arm(clock, told, "a", iter([50.0, 1.0, 3.0, 2.0])),
        "b": arm(clock, told, "b", iter([50.0, 1.0, 1.0, 4.0]), scale=10.0),
    }
    found = alternate(two, 3, clock=clock, synchronize=lambda: told.append("wait"))
    assert found["a"].all == (1.0, 3.0, 2.0)
    assert found["b"].all == (10.0, 10.0, 40.0)
    assert (found["a"].median, found["a"].spread) == (2.0, 1.0)
    assert (found["b"].median, found["b"].spread) == (10.0, 3.0)
    turn = ["prepare a", "wait", "a", "wait", "prepare b", "wait", "b", "wait"]
    assert told == turn * 4


def test_line_by_hand() -> None:
    """Through (0, 1), (1, 2), (2, 6): slope 5/2, mean (1, 3); residuals 1/2, -1, 1/2 against deviations -2, -1, 3."""
    assert fit_line((0, 1, 2), [1.0, 2.0, 6.0]) == pytest.approx({"slope": 2.5, "intercept": 0.5, "r2": 1 - 1.5 / 14})
    assert fit_line((1, 2, 4), [3.0, 3.0, 3.0])["r2"] == 1.0


def test_products_by_hand() -> None:
    """Shapes of products with weights, forward and backward; attention counts among all FLOPs only."""
    weight = torch.ones(4, 5, requires_grad=True)
    heads = torch.ones(2, 3, 3)

    def run() -> None:
        ((torch.ones(3, 4) @ weight).sum() + (heads @ heads).sum()).backward()

    found = peak.products_of(run)
    assert found.shapes == {(3, 4, 5): 1, (4, 3, 5): 1}, "the product, and its weight's gradient"
    assert found.flops == 2 * (3 * 4 * 5) * 2 + 2 * (3 * 3 * 3) * 2
    assert found.rate({(3, 4, 5): 1.0, (4, 3, 5): 2.0}.__getitem__) == 4 * (3 * 4 * 5) / 3.0


def test_defaults_are_resolved_by_size() -> None:
    tiny, gpt2 = (resolve(BenchConfig(size=size, device="cpu", bf16=False), 32) for size in ("tiny", "gpt2"))
    assert (tiny.questions, tiny.rows("update"), tiny.rows("curriculum")) == (32, 1024, 64)
    assert (gpt2.questions, gpt2.rows("rollouts"), gpt2.rows("evaluation")) == (2, 64, 16)
    assert resolve(BenchConfig(questions=3, device="cpu", micro_batch_size=4), 8).micro_batch_size == 8
    lone = resolve(BenchConfig(jobs=("evaluation",), problems=1, device="cpu"), 32)
    assert not lone.bf16, "as the library decides for one row"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"repeats": 0}, "repeats=0"),
        ({"questions": 0}, "questions=0"),
        ({"jobs": ()}, "jobs is empty"),
        ({"prompt_tokens": 2}, "prompt_tokens=2"),
        ({"answer_tokens": 2}, "answer_tokens=2"),
        ({"num_generations": (8, 1)}, "num_generations=1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        BenchConfig(**options)


def test_sizes_that_do_not_fit_are_refused() -> None:
    """The demo's 256 positions: 200 + 50 + 8 are too many, and so are 240 + 10 + 1 + 8."""
    with pytest.raises(UserError, match="need 258: lower"):
        resolve(BenchConfig(prompt_tokens=200, cot_tokens=50), 8)
    with pytest.raises(UserError, match="need 259: lower"):
        resolve(BenchConfig(prompt_tokens=240, cot_tokens=1, latent_steps=10), 8)


def test_the_machine_has_no_name() -> None:
    found = machine()
    assert platform.node() not in json.dumps(found)
    assert found["memory"] > 2**28
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n") == "Some CPU @ 2 GHz"
    assert cpu_model("Features: fp") == platform.machine()
