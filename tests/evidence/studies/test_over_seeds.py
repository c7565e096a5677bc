"""Statistics over seeds: hand-worked values, scipy's own test, and the pages that show them."""

import json
from pathlib import Path

import pytest
from scipy import stats

from dropout_grpo.evaluation.statistics import compare, mcnemar, paired_interval
from evidence.places import RESULTS_FOLDER
from evidence.redo_pages import pages_of_results
from evidence.studies import recompute
from evidence.studies.over_seeds import Comparison, comparisons_table, detectable, distinct, holm, paired, t_interval
from evidence.studies.record import compare_shares
from evidence.studies.tables import pairs


def test_paired_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = sqrt(12), p = 1 - t / sqrt(t^2 + 2) with 2 degrees."""
    result = paired([0.0, 1.0, 1.0], [1.0, 3.0, 4.0])
    assert (result.difference, result.ahead) == (2.0, 3)
    assert result.p == pytest.approx(1 - (12 / 14) ** 0.5)
    assert result.ci95 == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_paired_is_scipys_paired_t_test() -> None:
    first, second = [0.494, 0.519, 0.495, 0.533, 0.507], [0.531, 0.502, 0.561, 0.55, 0.54]
    scipys = stats.ttest_rel(second, first)
    result = paired(first, second)
    assert result.p == pytest.approx(scipys.pvalue)
    assert result.ci95 == pytest.approx(tuple(scipys.confidence_interval()))
    assert result.ahead == 4


def test_a_single_seed_has_no_interval_and_equal_seeds_no_difference() -> None:
    assert t_interval([1.0]) is None
    assert (paired([0.5], [0.6]).p, paired([0.5], [0.6]).ci95) == (None, None)
    same = paired([0.5, 0.25], [0.5, 0.25])
    assert (same.difference, same.p, same.ahead) == (0.0, 1.0, 0)
    assert paired([0.0, 0.25], [0.5, 0.75]).p == 0.0


def test_holm_by_hand() -> None:
    """0.01 x 4; 0.02 x 3; 0.03 x 2 = 0.06 too, as it may not fall below the one before; 0.9."""
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([0.7]) == [0.7]


def test_the_detectable_difference_is_found_in_four_cases_of_five() -> None:
    """By enumeration of McNemar's exact test: 1,319 problems, of which 10 % differ."""
    n, differ = 1319, 132
    low, high = paired_interval(200, differ // 2, differ // 2, n - 200 - differ)
    found = detectable((low, high))
    wins = stats.binom(differ, 0.5 + found * n / differ / 2)
    power = sum(wins.pmf(w) for w in range(differ + 1) if mcnemar(w, differ - w) <= 0.05)
    assert 0.75 < power < 0.85
    assert found == pytest.approx(2.8016 * (differ / n / n) ** 0.5, rel=0.03)


def test_shares_of_seeds_by_hand() -> None:
    """Differences 0, -1/2, 1, 0, 1/2: their mean is 0.2; two problems are won and one is lost, 2 x 4 / 8 = 1."""
    result = compare_shares([1.0, 1.0, 0.0, 0.0, 0.5], [1.0, 0.5, 1.0, 0.0, 1.0])
    assert (result["wins"], result["losses"], result["mcnemar_p"]) == (2, 1, 1.0)
    assert result["difference"] == pytest.approx(0.2)
    low, high = result["ci95"]
    assert -1 < low < 0.2 < high < 1
    many = compare_shares([0.5] * 10_000, [0.5, 1.0] * 5_000)  # mean 1/4, standard deviation 1/4
    assert many["ci95"] == pytest.approx([0.25 - 1.96 * 0.0025, 0.25 + 1.96 * 0.0025], abs=1e-5)


def test_shares_of_single_networks_are_compared_as_their_answers() -> None:
    first, second = [True, False, False, False, True, False] * 9, [True, True, False, True, False, False] * 9
    expected, result = compare(first, second), compare_shares([*map(float, first)], [*map(float, second)])
    assert {**result, "ci95": None} == {**expected, "ci95": None}
    assert result["ci95"] == pytest.approx(expected["ci95"], abs=0.02)


def test_a_pair_counts_once() -> None:
    forth = Comparison(arm="a", other="b", of_arm=[0.6, 0.5], of_other=[0.5, 0.5])
    back = Comparison(arm="b", other="a", of_arm=[0.5, 0.5], of_other=[0.6, 0.5])
    assert distinct([forth, back]) == [forth]


def test_rows_of_comparisons() -> None:
    made = comparisons_table(
        [
            Comparison(
                arm="a", other="b", of_arm=[0.51, 0.53, 0.54], of_other=[0.5, 0.51, 0.51], networks=[-0.001, 0.03]
            ),
            Comparison(arm="b", other="c", of_arm=[0.5, 0.51, 0.51], of_other=[0.5, 0.51, 0.51]),
        ]
    ).splitlines()
    assert made[2] == "| a | b | +2.00 | -0.48 to +4.48 | 0.074 | 0.15 | 3 of 3 | -0.10 to +3.00 |"
    assert made[3].startswith("| b | c | +0.00 | +0.00 to +0.00 | 1 | 1 | 0 of 3 |")


def test_pairs_of_one_seed_are_corrected_for_all_rows() -> None:
    one = {"file": "a/test.json", "difference": 0.036, "ci95": [0.009, 0.063], "wins": 32, "losses": 14}
    files = {"x y": [{**one, "mcnemar_p": 0.011}], "x z": [{**one, "mcnemar_p": 0.5}]}
    lines = pairs({"pairs": files, "names": {"x": "X", "y": "Y", "z": "Z"}}).splitlines()
    tested = "| these networks: McNemar p | these networks: p, Holm |"
    assert lines[0].endswith(f"{tested} smallest difference found in 80 % of cases, points |")
    assert lines[2] == "| X | Y | test.json | 3.6 | 0.9 to 6.3 | 32 | 14 | 0.011 | 0.022 | 3.9 |"  # 2.7 x 2.80 / 1.96


def test_the_pages_show_what_the_records_give() -> None:
    report = recompute.recompute(pages_of_results(), RESULTS_FOLDER)
    assert report.differing == []
    assert report.compared > 300


def test_a_wrong_number_on_a_page_is_found(tmp_path: Path) -> None:
    """Also where the page's own counts would give it: wins and losses are those of the record."""
    test = {"file": "test.json", "difference": 0.1, "ci95": [0.0, 0.2], "wins": 9, "losses": 1, "mcnemar_p": 22 / 1024}
    record = {"pairs": {"x y": [test]}, "names": {"x": "X", "y": "Y"}}
    (tmp_path / "one.json").write_text(json.dumps(record), encoding="utf-8")
    page = tmp_path / "page.md"
    for shown, differing in ((test, 0), ({**test, "losses": 2, "mcnemar_p": 0.065}, 2)):
        text = pairs({**record, "pairs": {"x y": [shown]}})
        page.write_text(f"<!-- begin: one.pairs -->\n\n{text}\n\n<!-- end: one.pairs -->\n", encoding="utf-8")
        report = recompute.recompute([page], tmp_path)
        assert (report.compared, len(report.differing)) == (2, differing)
