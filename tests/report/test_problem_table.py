"""The table of all problems and the page that compares runs: data, policy and size (the view: test_browser.py)."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.errors import UserError
from dropout_grpo.report import problems, write_comparison, write_report
from helpers.fake_run import RESULTS, RL, SFT, by_k, make_run
from helpers.samples import EVALUATION, EVIL, SAMPLES, line


def data_of(path: Path) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="problem-data">(.*?)</script>', path.read_text("utf-8"))
    return json.loads(text)


def test_every_problem_is_in_the_page_with_its_masks_answers(tmp_path: Path) -> None:
    report = write_report(make_run(tmp_path / "run", results=EVALUATION, samples=SAMPLES))
    assert data_of(report) == {
        "columns": ["run"],
        "files": ["a.json"],
        "rows": [
            ["question 0 of tom", "0", 2, 0, [["0", 1, [["0", 2, 1], ["7", 1, 0]]]]],
            ["question 1 of ann", "1", 3, 0, [["no", 0, [["1", 1, 1], ["nothing to read", 1, 0]]]]],
            ["question 2 of tom", "2", 3, 0, [["2", 1, []]]],
        ],
    }


def test_the_arms_of_a_demo_are_columns_of_one_problem(tmp_path: Path) -> None:
    samples = [line(0, arm != "baseline", arm=arm, file=f"test: {arm}") for arm in ("baseline", "dropout_grpo")]
    report = write_report(make_run(tmp_path, results=RESULTS, samples=samples))
    assert data_of(report)["columns"] == ["Baseline", "Dropout-GRPO"]
    assert data_of(report)["rows"] == [["question 0 of tom", "0", 2, 0, [["no", 0, []], ["0", 1, []]]]]


def test_the_policy_allows_this_one_script_alone(tmp_path: Path) -> None:
    samples = [line(0, True, (EVIL, False)) | {"question": EVIL, "file": EVIL, "plain": EVIL}]
    source = write_report(make_run(tmp_path, results=EVALUATION, samples=samples)).read_text("utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", source, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="problem-data"', ""]
    digest = b64encode(sha256(scripts[1][1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")
    assert EVIL not in source
    assert data_of(tmp_path / "report.html")["rows"][0][0] == EVIL
    for forbidden in ("innerHTML", "eval(", "document.write", "fetch(", "http"):
        assert forbidden not in scripts[1][1]


def test_a_report_stays_below_3_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = write_report(make_run(tmp_path, results=EVALUATION, samples=SAMPLES[:1]))
    assert report.stat().st_size - len(json.dumps(data_of(report))) < 1_000_000
    monkeypatch.setattr(problems, "MOST_BYTES", 10_000)
    many = [line(i, True, (f"### {i}", True)) for i in range(1000)]
    report = write_report(make_run(tmp_path, results=EVALUATION, samples=many))
    kept = len(data_of(report)["rows"])
    assert 50 < kept < 200
    assert f"The first {kept} of 1,000 problems" in report.read_text("utf-8")


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = {"evaluations": [{"file": "a.json", "pass@k": by_k(0.4, 0.5)}]}
    data = {"task": "prosqa", "valid": None, "max_valid": 40, "prosqa": {"n_valid": 25}}
    first = make_run(
        tmp_path / "first", results=EVALUATION, measures=measures, samples=SAMPLES, config={"config": {"data": data}}
    )
    flipped = [line(i, not line_["plain_correct"]) for i, line_ in enumerate(SAMPLES)]
    second = make_run(tmp_path / "second", results=EVALUATION, measures=measures, samples=flipped, metrics=SFT)
    third = make_run(tmp_path / "third", results=RESULTS, metrics=RL + SFT)
    out = tmp_path / "both.html"
    assert main(["report", str(first), str(second), str(third), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    source = out.read_text("utf-8")
    assert data_of(out)["columns"] == ["first", "second"]
    assert data_of(out)["rows"][0][4] == [["0", 1, [["0", 2, 1], ["7", 1, 0]]], ["no", 0, []]]
    for text in ("pass@k on a.json. first: 40.0", "Curriculum, validation pass@1", "third: Dropout-GRPO: 61.0"):
        assert text in source, text
    with pytest.raises(UserError, match="named twice"):
        write_comparison([first, first], out)
    with pytest.raises(UserError, match="hold no results"):
        write_comparison([make_run(tmp_path / "x"), make_run(tmp_path / "y")], out)
