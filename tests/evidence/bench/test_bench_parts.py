"""Timing, lines, peak, masks, memory and options of the benchmark, by hand."""

import json
import os
import platform
import resource
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.errors import UserError
from evidence.bench import arms, engine, measure, memory, peak
from evidence.bench.config import BenchConfig, Setting, resolve
from evidence.bench.measure import cpu_model, fit_line, machine
from evidence.bench.timing import Arm, Seconds, alternate
from helpers.bench_setting import SMALL, workload


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


def test_more_runs_before_those_that_count() -> None:
    clock = Clock()
    found = alternate({"a": arm(clock, [], "a", iter([50.0, 40.0, 1.0, 2.0]))}, 2, clock=clock, untimed=2)
    assert found["a"].all == (1.0, 2.0)


def test_waiting_for_the_device_is_counted() -> None:
    clock = Clock()

    def wait() -> None:
        clock.now += 1.0

    found = alternate({"a": Arm(run=lambda: None)}, 2, clock=clock, synchronize=wait)
    assert found["a"] == Seconds(all=(1.0, 1.0))


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


def test_the_products_of_a_rollout() -> None:
    """2 questions of 7 tokens are read once, then 6 rows think twice and sample 4 tokens; 3 layers of width 128."""
    work = workload()
    found = peak.products_of(lambda: engine.rollouts(work))
    vocab = work.networks.vocab
    assert found.shapes[14, 128, 3 * 128] == 3
    assert found.shapes[6, 128, 3 * 128] == 3 * (2 + 4)
    assert found.shapes[6, 128, vocab] == 4


def test_products_are_timed() -> None:
    seconds = peak.best_seconds((64, 64, 64), torch.device("cpu"), torch.float32)
    assert 1e7 < 2 * 64**3 / seconds < 1e14


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux keeps these counts")
def test_peak_of_this_process_is_above_what_it_holds_now() -> None:
    """And no more than the kernel's other count, into which that of a parent goes."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.95 * now <= memory.peak_resident() <= 1.05 * most


def test_a_fresh_process_measures_one_arm() -> None:
    """A fresh process does not contain the memory of this one."""
    ballast = torch.ones(2**27)  # 512 MiB
    found = memory.peak_memory("engine", workload(), "evaluation", None)
    assert 50 * 2**20 < found["before"] < found["peak"] < ballast.nbytes + 2**28
    assert memory.peak_resident() > ballast.nbytes + 2**28


def test_a_fresh_process_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="measuring the memory of engine in evaluation failed"):
        memory.peak_memory("engine", workload(), "evaluation", None)


def test_arms_of_a_job() -> None:
    three = ("plain", "published", "cot")
    assert arms.names("rollouts", three) == ["engine", "engine_without_masks", *three]
    assert arms.names("update", ("cot",)) == ["engine", "cot"]
    assert arms.names("evaluation", three) == ["engine", "published", "cot"], "no groups, nothing to share"
    with_graphs = [arms.names(job, (), graphs=True) for job in ("rollouts", "update", "evaluation")]
    assert with_graphs == [
        ["engine", "engine_without_masks", "engine_step_by_step"],
        ["engine"],  # with gradient there are no graphs
        ["engine", "engine_step_by_step"],
    ]


def test_attention_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    work, clock = workload(), Clock()
    cost = {"sdpa": 3.0, "eager": 2.0}
    monkeypatch.setattr(measure.time, "perf_counter", clock)

    def run(work: Any, rows: int) -> None:
        clock.now += cost[work.reference.config._attn_implementation]

    monkeypatch.setattr(arms.cot, "update", run)
    assert measure.faster_attention("cot", work, "update") == "eager"
    cost["eager"] = 4.0
    assert measure.faster_attention("cot", work, "update") == "sdpa"
    assert measure.faster_attention("plain", work, "update") is None


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="finds no CUDA device"):
        BenchConfig(device="cuda")


def test_the_machine_has_no_name() -> None:
    found = machine()
    assert platform.node() not in json.dumps(found)
    assert found["memory"] > 2**28
    assert cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n") == "Some CPU @ 2 GHz"
    assert cpu_model("Features: fp") == platform.machine()


def test_a_setting_survives_json() -> None:
    assert Setting(**json.loads(json.dumps(asdict(SMALL)))) == SMALL
