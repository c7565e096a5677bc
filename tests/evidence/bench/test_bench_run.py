"""The benchmark as a whole, and its page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.errors import UserError
from evidence.bench import measure, peak
from evidence.bench.__main__ import main
from evidence.bench.config import BenchConfig
from evidence.bench.page import block, write_page
from evidence.bench.tables import ratios, times

QUICK = BenchConfig(
    num_generations=(3, 2),
    prompt_tokens=6,
    latent_steps=2,
    answer_tokens=3,
    cot_tokens=2,
    questions=2,
    problems=3,
    published_rows=1,
    repeats=1,
    memory=False,
    device="cpu",
    bf16=False,
)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "_SECONDS", 0.0)
        return measure.run_bench(QUICK)


def test_cases_of_a_run(result: dict[str, Any]) -> None:
    """Jobs on groups at each K, smallest first; the others once."""
    cases = [(case["job"], case["num_generations"], case["rows"]) for case in result["results"]]
    assert cases == [
        ("rollouts", 2, 4),
        ("update", 2, 4),
        ("rollouts", 3, 6),
        ("update", 3, 6),
        ("curriculum", 3, 3),
        ("evaluation", 3, 3),
    ]
    assert result["kind"] == "cases"
    assert {"machine", "versions", "commit", "options", "setting", "parameters"} < result.keys()


def test_figures_follow_from_the_seconds(result: dict[str, Any]) -> None:
    case = result["results"][2]  # rollouts, K = 3: 2 questions, 6 rollouts of 3 answer tokens
    engine, plain = case["arms"]["engine"], case["arms"]["plain"]
    assert list(case["arms"]) == ["engine", "engine_without_masks", "plain", "published", "cot"]
    assert engine["seconds"] == [engine["median"]] == [engine["min"]]
    assert engine["ratio"] == 1.0
    assert plain["ratio"] == pytest.approx(plain["median"] / engine["median"])
    assert engine["rows_per_second"] == pytest.approx(6 / engine["median"])
    assert engine["problems_per_second"] == pytest.approx(2 / engine["median"])
    assert engine["answer_tokens_per_second"] == pytest.approx(18 / engine["median"])
    assert engine["flops_per_second"] == pytest.approx(engine["flops"] / engine["median"])
    assert case["arms"]["published"]["rows_measured"] == 1
    assert case["peak"]["share"] == pytest.approx(engine["flops_per_second"] / case["peak"]["flops_per_second"])
    curriculum = result["results"][4]["arms"]["engine"]
    assert curriculum["problems_per_second"] == curriculum["rows_per_second"] == pytest.approx(3 / curriculum["median"])


def test_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_THOUGHTS", (1, 2))
    config = replace(QUICK, num_generations=(2,), jobs=("update", "evaluation"))
    found = measure.run_bench(config, sweep=True)
    assert found["kind"] == "sweep"
    one, over_thoughts = found["results"]  # evaluation has no groups
    assert (over_thoughts["axis"], over_thoughts["values"]) == ("latent_steps", [1, 2])
    assert (one["axis"], one["job"], one["values"]) == ("num_generations", "update", [2, 4])
    assert list(one["arms"]) == ["engine", "plain"]
    engine = one["arms"]["engine"]
    (at_2, at_4), fit = engine["medians"], engine["fit"]
    assert fit["slope"] == pytest.approx((at_4 - at_2) / 2)
    assert fit["intercept"] == pytest.approx(2 * at_2 - at_4)
    with pytest.raises(UserError, match="none on groups"):
        measure.run_bench(replace(config, jobs=("evaluation",)), sweep=True)

    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "small-sweep.json").write_text(json.dumps(found))
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- begin: small-sweep.lines -->\nold\n<!-- end: small-sweep.lines -->\nafter\n")
    tables = tmp_path / "performance" / "tables.md"
    tables.write_text("![a](small-sweep.svg)\n<!-- begin: small-sweep.machine -->\n<!-- end: small-sweep.machine -->\n")
    write_page(page)
    text = page.read_text()
    assert text.startswith("before\n<!-- begin: small-sweep.lines -->\n\n| job | over |")
    assert text.endswith("\n\n<!-- end: small-sweep.lines -->\nafter\n")
    assert "| update | K | engine | 2 | 4 |" in text
    assert "old" not in text
    assert "Size tiny" in tables.read_text()
    assert "<svg" in (tmp_path / "performance" / "small-sweep.svg").read_text()


ARM = {"median": 0.5, "spread": 0.25, "ratio": 1.0, "problems_per_second": 4, "rows_per_second": 32}
ARM |= {"answer_tokens_per_second": 256}
MADE_UP = {
    "kind": "cases",
    "results": [
        {
            "job": "rollouts",
            "num_generations": 8,
            "arms": {"engine": ARM, "plain": {**ARM, "median": 1.25, "ratio": 2.5}, "cot": {**ARM, "ratio": 3.125}},
        },
        {"job": "curriculum", "num_generations": 8, "arms": {"engine": ARM}},
    ],
}


def test_tables_by_hand() -> None:
    assert ratios(MADE_UP).splitlines()[2:] == [
        "| rollouts | 8 | 0.5 | 2.50 |  | 3.12 | 4 | 32 |",
        "| curriculum |  | 0.5 |  |  |  | 4 | 32 |",
    ]
    assert times(MADE_UP).splitlines()[2:4] == [
        "| rollouts | 8 | engine | 0.5 | 25 % | 1 | 4 | 32 | 256 |",
        "| rollouts | 8 | (a) every rollout reads its prompt | 1.25 | 25 % | 2.5 | 4 | 32 | 256 |",
    ]


def test_blocks_without_a_file_say_so_and_unknown_tables_are_refused() -> None:
    assert block({}, "tiny-cpu.peak") == "*Not measured yet.*"
    for results in ({}, {"tiny-cpu": MADE_UP}):
        with pytest.raises(UserError, match=r"block 'tiny-cpu.speed'"):
            block(results, "tiny-cpu.speed")
    with pytest.raises(UserError, match=r"block 'tiny-cpu.lines'"):
        block({"tiny-cpu": MADE_UP}, "tiny-cpu.lines")  # a table of sweeps, and this result is not a sweep


@pytest.mark.slow
def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--questions 1 --problems 2 --prompt_tokens 5 --latent_steps 1 --answer_tokens 3 --cot_tokens 1 --repeats 1"
    cases = "--num_generations [2] --jobs [evaluation] --beside [] --device cpu"
    main([*sizes.split(), *cases.split(), "--json"])
    out = capsys.readouterr()
    (case,) = json.loads(out.out)["results"]
    assert list(case["arms"]) == ["engine"]
    assert case["arms"]["engine"]["memory"]["peak"] > 2**27
    assert out.err.strip() == "bench: tiny evaluation"
    with pytest.raises((UserError, SystemExit)):
        main(["--repeats", "0"])
