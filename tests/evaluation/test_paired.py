"""Two models on the same problems, by hand."""

import pytest

from dropout_grpo.evaluation.intervals import paired_interval
from dropout_grpo.evaluation.paired import compare


def test_compare_by_hand() -> None:
    first = [True, True, False, False, False, False, True, False]
    second = [True, False, True, True, True, True, True, False]
    found = compare(first, second)
    assert (found["wins"], found["losses"]) == (4, 1)
    assert found["difference"] == 6 / 8 - 3 / 8
    assert found["mcnemar_p"] == 2 * (1 + 5) / 32  # of 5 fair coins, at most one tail, on either side
    assert found["ci95"] == list(paired_interval(2, 4, 1, 1))
    assert found["ci95"][0] < 0.375 < found["ci95"][1]


def test_problems_must_pair_up() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare([True, False], [True])
