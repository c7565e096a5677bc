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
from torch.utils._python_dispatch import TorchDispatchMode

from dropout_grpo.errors import UserError
from evidence.bench import arms, masks, memory, peak
from evidence.bench.config import BenchConfig, Setting, resolve
from evidence.bench.fit import fit_line
from evidence.bench.flops import Phase, Shape
from evidence.bench.machine import cpu_model, machine
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
    line = fit_line([0, 1, 2], [1.0, 2.0, 6.0])
    assert line.slope == pytest.approx(2.5)
    assert line.intercept == pytest.approx(0.5)
    assert line.r2 == pytest.approx(1 - 1.5 / 14)
    assert fit_line([1, 2, 4], [3.0, 3.0, 3.0]).r2 == 1.0


def test_seconds_at_peak_by_hand() -> None:
    """Products of width 2 run at 4 FLOP/s, those of the MLP's width 8 at 8, the head at 16."""
    shape = Shape(layers=2, width=2, mlp=8, vocab=10)
    phase = Phase(name="any", tokens=6, pairs=12, logits=3, rows=5)
    asked = []

    def rate(m: int, k: int, n: int) -> float:
        asked.append((m, k, n))
        return 16.0 if n == 10 else 8.0 if 8 in (k, n) else 4.0

    flops = [2 * 6 * 2 * size for size in (2 * 6, 2 * 2, 2 * 8, 8 * 2)]  # 6 tokens, 2 layers
    layers = (flops[0] + flops[1]) / 4 + (flops[2] + flops[3]) / 8
    attention = 12 * 2 * 4 * 2 * layers / sum(flops)
    head = 3 * 2 * 2 * 10 / 16
    assert peak.seconds_at_peak(shape, [phase, phase], rate) == pytest.approx(2 * (layers + attention + head))
    assert asked[:5] == [(5, 2, 6), (5, 2, 2), (5, 2, 8), (5, 8, 2), (5, 2, 10)]


def test_a_shape_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def seconds(m: int, k: int, n: int, *where: Any) -> float:
        seen.append((m, k, n))
        return 0.5

    monkeypatch.setattr(peak, "_best_seconds", seconds)
    rate = peak.measured_rate("cpu", torch.float32)
    assert rate(3, 4, 5) == rate(3, 4, 5) == 2 * 3 * 4 * 5 / 0.5
    assert rate(3, 4, 6) == 288.0
    assert seen == [(3, 4, 5), (3, 4, 6)]


def test_products_are_measured() -> None:
    rate = peak.measured_rate("cpu", torch.float32)(64, 64, 64)
    assert 1e7 < rate < 1e14


class Products(TorchDispatchMode):
    """Elementwise products and their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul.Tensor and made.is_floating_point() and made.ndim == 3:
            self.shapes.append(tuple(made.shape))
        return made


def test_masks_are_made_and_multiplied_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 rollouts; attention and MLP of 3 layers, 2 thoughts and 4 answer tokens: 36 products of width 128."""
    work, timed = workload(), []
    monkeypatch.setattr(masks, "_median_seconds", lambda work, run, repeats: timed.append(run) or float(len(timed)))
    assert masks.mask_seconds(work, 1) == {"make": 1.0, "multiply": 2.0}
    make, multiply = timed
    made = make()
    assert len(made) == 6
    assert all(mask.shape == (6, 1, 128) for mask in made.values())
    with Products() as products:
        multiply()
    assert products.shapes == [(6, 1, 128)] * 36


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
    assert arms.names("update", ("cot",)) == ["engine", "engine_with_optimizer", "cot"]
    assert arms.names("evaluation", three) == ["engine", "published", "cot"], "no groups, nothing to share"
    assert arms.names("evaluation", (), busy=True) == ["engine", "engine_beside_busy"]
    assert arms.names("update", (), busy=True) == ["engine", "engine_with_optimizer"], "only evaluation is measured"
    with_graphs = [arms.names(job, (), graphs=True) for job in ("rollouts", "update", "evaluation")]
    assert with_graphs == [
        ["engine", "engine_without_masks", "engine_step_by_step"],
        ["engine", "engine_with_optimizer"],  # with gradient there are none
        ["engine", "engine_step_by_step"],
    ]


def test_attention_is_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    work, clock = workload(), Clock()
    cost = {"sdpa": 3.0, "eager": 2.0}
    monkeypatch.setattr(arms.time, "perf_counter", clock)

    def run(work: Any, rows: int) -> None:
        clock.now += cost[work.reference.config._attn_implementation]

    monkeypatch.setattr(arms.cot, "update", run)
    assert arms.choose_attention("cot", work, "update") == "eager"
    cost["eager"] = 4.0
    assert arms.choose_attention("cot", work, "update") == "sdpa"
    assert arms.choose_attention("plain", work, "update") is None


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
