"""Measures of made-up answers, by hand."""

from typing import Any

import pytest

from dropout_grpo.data.problem import Problem
from dropout_grpo.evaluation.answering import ModelAnswers
from dropout_grpo.evaluation.measures import in_a_line, measure_answers, summarize
from dropout_grpo.evaluation.statistics import mean_interval, wilson_interval


def answered(
    plain: str, *samples: str, average: str | None = None, length: int = 3, clipped: bool = False
) -> ModelAnswers:
    """The right answer is 7; a sample is as long as its text."""
    return ModelAnswers(
        problem=Problem(id=0, question="?", steps=(), answer="7"),
        plain=plain,
        plain_length=length,
        plain_clipped=clipped,
        samples=samples,
        sample_lengths=tuple(len(said) for said in samples),
        average=average,
    )


FOUR = [
    answered("### 7", "### 7", "### 7", "### 1", "### 1", average="### 7"),  # 2 of 4; a tie that 7 was first in
    answered("### 1", "### 1", "### 7", "### 1", "oops", average="### 1", length=4),  # 1 of 4; 1 wins
    answered("oops", "### 1", "### 2", "### 3", "### 4", average="oops", length=8, clipped=True),  # 0 of 4
    answered("### 7.0", "oops", "### 7", "### 7", "oops", average="### 7", length=1),  # 2 of 4; two do not vote
]


def values(curve: list[dict[str, Any]]) -> list[float]:
    assert [entry["k"] for entry in curve] == list(range(1, len(curve) + 1))
    return [entry["value"] for entry in curve]


def test_all_measures_by_hand() -> None:
    measures = measure_answers(FOUR)
    assert measures["n"] == measures["num_samples"] == 4
    assert measures["pass@1"]["value"] == 0.5
    # Pairs without a right one: 1, 3, 6, 1 of 6; triples: 0, 1, 4, 0 of 4.
    expected = [5 / 16, (5 + 3 + 0 + 5) / 24, (4 + 3 + 0 + 4) / 16, 3 / 4]
    assert values(measures["pass@k"]) == pytest.approx(expected)
    # The votes of the first k: 7 7 7 7; 1 1 1 1; 1 1 1 1; none, then 7 7 7.
    assert values(measures["maj@k"]) == [0.25, 0.5, 0.5, 0.5]
    assert measures["coverage"]["value"] == 0.75
    assert measures["bma"]["value"] == 0.5
    assert measures["completions/mean_length"] == 4
    assert measures["completions/clipped_ratio"] == 0.25
    assert measures["masked_completions/mean_length"] == (20 + 19 + 20 + 18) / 16
    assert measures.keys() == {
        "n", "num_samples", "pass@1", "completions/mean_length", "completions/clipped_ratio", "pass@k", "maj@k",
        "coverage", "bma", "masked_completions/mean_length",
    }  # fmt: skip


def test_every_share_has_its_interval_over_problems() -> None:
    measures = measure_answers(FOUR)
    for single, right in ((measures["pass@1"], 2), (measures["coverage"], 3), (measures["bma"], 2)):
        assert single["ci95"] == pytest.approx(wilson_interval(right, 4))
    assert measures["pass@k"][1]["ci95"] == pytest.approx(mean_interval([5 / 6, 3 / 6, 0, 5 / 6]))
    assert measures["pass@k"][3]["ci95"] == pytest.approx(wilson_interval(3, 4))  # at k = n it is the coverage
    assert measures["maj@k"][0]["ci95"] == pytest.approx(wilson_interval(1, 4))


def test_the_summary_by_hand() -> None:
    row = summarize(FOUR)
    # Wilson at 2 of 4 with z = 1.96: 0.5 +- 1.96 sqrt(1/16 + 0.9604/16) / (1 + 3.8416/4) = 0.5 +- 0.35
    assert row.pop("ci95") == [pytest.approx(0.15, abs=1e-3), pytest.approx(0.85, abs=1e-3)]
    assert row == {
        "n": 4,
        "pass@1": 0.5,
        "masked_pass@1": pytest.approx(5 / 16),
        "pass@2": pytest.approx(13 / 24),
        "pass@4": pytest.approx(3 / 4),
        "maj@4": 0.5,
        "coverage": 0.75,
        "bma": 0.5,
        "completions/mean_length": 4,
        "completions/clipped_ratio": 0.25,
        "masked_completions/mean_length": 77 / 16,
    }


def test_what_was_not_measured_is_left_out() -> None:
    alone = {"n", "pass@1", "ci95", "completions/mean_length", "completions/clipped_ratio"}
    assert set(summarize([answered("### 7")])) == alone
    sampled = summarize([answered("### 7", "### 7", "### 1", "### 7")])
    assert "bma" not in sampled  # a temperature, no masks
    assert {"pass@2", "pass@3", "maj@3"} <= set(sampled)  # powers of two, and n itself
    assert sampled["masked_pass@1"] == pytest.approx(2 / 3)
    single = summarize([answered("### 1", "### 7", average="### 7")])
    assert (single["pass@1"], single["masked_pass@1"], single["maj@1"], single["bma"]) == (0.0, 1.0, 1.0, 1.0)


def test_a_line_says_what_was_cut_off() -> None:
    """Fault: trainings did not, and cut answers looked like wrong ones."""
    row = {"file": "x.json", **summarize([answered("### 7"), answered("oops", clipped=True)])}
    assert in_a_line(row) == "x.json: pass@1 50.0 % [9.5, 90.5]; n 2, 50.0 % of the answers cut off at max_new_tokens"
    assert in_a_line({**row, "seconds": 1.25, "completions/clipped_ratio": 0.0}).endswith("; n 2, 1.2 s")
