"""The study of what explorations cost: every case runs, and the table is relative to masks on ``residual``."""

import pytest

from evidence.studies import noise_cost


def test_every_case_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    noise_cost.main(["--questions", "1", "--num_generations", "2", "--repeats", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(noise_cost.CASES)


def test_the_table_by_hand() -> None:
    measured = {"none": (1.0, 1.0), "residual": (1.5, 2.5), "values": (2.0, 3.0)}
    assert noise_cost.table(measured).splitlines()[2:] == [
        "| none | 1.000 | 1.000 | 0.50 |",
        "| residual | 1.500 | 2.500 | 1.00 |",
        "| values | 2.000 | 3.000 | 1.25 |",
    ]
