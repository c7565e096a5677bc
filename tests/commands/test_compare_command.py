"""``dropout-grpo compare``: the figures by hand, the problems it lists, and what it refuses to compare."""

import json
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands.compare import as_text, compare
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.statistics import paired_interval
from helpers.eval_run import evaluate, save_checkpoint, save_files


def line(number: int, right: bool, file: str = "a.json", **fields: Any) -> dict[str, Any]:
    said = f"### {number}" if right else " oops"
    problem = {"file": file, "id": number, "question": f"How many\nis {number} ?", "answer": str(number)}
    return {**problem, "plain": said, "plain_correct": right, **fields}


def run(folder: Path, *samples: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return str(folder)


def two_runs(tmp_path: Path) -> tuple[str, str]:
    """On a.json both, only B, only B, only A, neither; on b.json both."""
    first = [True, False, False, True, False]
    second = [True, True, True, False, False]
    a = run(tmp_path / "a", *(line(i, right) for i, right in enumerate(first)), line(0, True, "b.json"))
    b = run(tmp_path / "b", *(line(i, right) for i, right in enumerate(second)), line(0, True, "elsewhere/b.json"))
    return a, b


def test_the_figures_by_hand(tmp_path: Path) -> None:
    a, b = two_runs(tmp_path)
    found = compare(a, b)
    assert (found["a"], found["b"]) == (a, b)
    one, other = found["comparisons"]
    assert one == {
        "file": "a.json",
        "n": 5,
        "pass@1": {"a": 0.4, "b": 0.6},
        "wins": 2,
        "losses": 1,
        "mcnemar_p": 1.0,
        "difference": 0.2,
        "ci95": list(paired_interval(1, 2, 1, 1)),
        "won": [
            {"id": 1, "question": "How many\nis 1 ?", "answer": "1", "a": "oops", "b": "### 1"},
            {"id": 2, "question": "How many\nis 2 ?", "answer": "2", "a": "oops", "b": "### 2"},
        ],
        "lost": [{"id": 3, "question": "How many\nis 3 ?", "answer": "3", "a": "### 3", "b": "oops"}],
    }
    assert (other["file"], other["n"], other["won"], other["lost"]) == ("b.json", 1, [], [])


def test_the_text_lists_wins_and_losses(tmp_path: Path) -> None:
    text = as_text(compare(*two_runs(tmp_path)))
    lo, hi = (100 * end for end in paired_interval(1, 2, 1, 1))
    for said in (
        "a.json  (n = 5)",
        "A 40.0 %, B 60.0 %",
        f"B - A       +20.0 points, 95 % interval [{lo:+.1f}, {hi:+.1f}] (Newcombe, paired)",
        "only B is right on 2, only A on 1; exact McNemar test p = 1",
        "won: B right, A wrong\n    1  How many is 1 ?\n        right answer 1  A: oops  B: ### 1\n    2  ",
        "lost: A right, B wrong\n    3  How many is 3 ?\n        right answer 3  A: ### 3  B: oops",
        "b.json  (n = 1)",
    ):
        assert said in text
    assert text.count("won:") == 1  # nothing is listed where there is nothing


def test_a_long_list_is_cut_in_the_text_and_whole_in_json(tmp_path: Path) -> None:
    a = run(tmp_path / "a", *(line(i, False, plain="") for i in range(13)))
    b = run(tmp_path / "b", *(line(i, True) for i in range(13)))
    text = as_text(compare(a, b))
    assert "    and 3 more: --json lists all" in text
    assert text.count("right answer") == 10
    assert "A: (nothing)  B: ### 0" in text
    assert len(compare(a, b)["comparisons"][0]["won"]) == 13
    assert compare(a, b)["comparisons"][0]["mcnemar_p"] == 2 / 2**13


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([line(0, True)], "has 2 problems and .* has 1"),
        (
            [line(0, True), line(5, True)],
            r"the question of number 2 is 'How many\\nis 1 \?' in one and 'How many\\nis 5",
        ),
        ([line(0, True), line(1, True, answer="3")], "the answer of number 2 is '1' in one and '3' in the other"),
        ([line(1, True), line(0, True)], r"the question of number 1 .* Measure both on the same --files, in the same"),
    ],
)
def test_other_problems_are_refused(tmp_path: Path, other: list[dict[str, Any]], message: str) -> None:
    a, b = run(tmp_path / "a", line(0, True), line(1, False)), run(tmp_path / "b", *other)
    with pytest.raises(UserError, match=message):
        compare(a, b)


def test_other_folders_and_damaged_files_are_refused(tmp_path: Path) -> None:
    a = run(tmp_path / "a", line(0, True))
    with pytest.raises(
        UserError, match=r"nowhere holds no samples\.jsonl: give the folder of a `dropout-grpo eval` run"
    ):
        compare(a, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"samples\.jsonl holds no samples\.jsonl: give the folder"):
        compare(a, str(tmp_path / "a" / "samples.jsonl"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for text, message in (
        (json.dumps(line(0, True)) + '\n{"file": "a.js', r"samples\.jsonl, line 2 is not JSON"),
        ("[1]\n", r"line 1 is '\[1\]', but must be a JSON object"),
        (json.dumps(line(0, True, plain_correct="yes")), "line 1: 'plain_correct' is not as"),
    ):
        (broken / "samples.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            compare(a, str(broken))
    with pytest.raises(UserError, match="hold no problems"):
        compare(run(tmp_path / "c"), run(tmp_path / "d"))


def test_two_checkpoints_through_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = save_files(tmp_path)
    runs = [tmp_path / "run-a", tmp_path / "run-b"]
    for seed, folder in zip((0, 59), runs, strict=True):
        assert evaluate(save_checkpoint(tmp_path / f"checkpoint-{seed}", seed), files, folder) == 0
    capfd.readouterr()
    assert main(["compare", *map(str, runs), "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert err == ""
    assert [c["file"] for c in found["comparisons"]] == [str(file) for file in files]
    assert [(c["wins"], c["losses"]) for c in found["comparisons"]] == [(3, 0), (1, 0)]
    assert [p["id"] for p in found["comparisons"][0]["won"]] == [0, 2, 4]
    assert main(["compare", *map(str, runs)]) == 0
    assert "only B is right on 3, only A on 0; exact McNemar test p = 0.25" in capfd.readouterr().out
    assert main(["compare", str(runs[0]), str(tmp_path)]) == 2
    assert "holds no samples.jsonl" in capfd.readouterr().err
