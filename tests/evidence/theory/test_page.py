"""Blocks, figures and the page are made only from the checks, and are up to date."""

import re

import pytest

from dropout_grpo.errors import UserError
from evidence.places import DOCS, ROOT
from evidence.theory import __main__ as command
from evidence.theory.check import Check, checks_from_json, checks_to_json
from evidence.theory.page import block, value_of, write_page
from evidence.theory.plots import FIGURES

CHECK = Check(
    id="objective.made_up",
    claim="One is one.",
    quantity="|one - one|",
    expected=0.0,
    value=1 / 3,
    interval=(0.25, 0.5),
    holds=False,
    columns=["name", "value*"],
    rows=[["a|b", 0.123456789], ["c", 2]],
)
PAGE = (DOCS / "theory.md").read_text(encoding="utf-8")


def test_blocks_of_all_checks_and_of_one():
    assert (
        block([CHECK, CHECK], "checks").splitlines()[2:]
        == ["| One is one. | \\|one - one\\| | 0 | 0.333 [0.25, 0.5] | fails |"] * 2
    )
    one = block([CHECK], "objective.made_up")
    assert one.startswith("*One is one.* **fails**: \\|one - one\\|: 0.333 [0.25, 0.5], expected 0.\n")
    assert "| c | 2 |" in one
    with pytest.raises(UserError, match=r"objective\.other"):
        block([CHECK], "objective.other")


def test_json_round_trip_has_six_digits():
    (back,) = checks_from_json(checks_to_json([CHECK]))
    assert back.value == 0.333333
    assert back.column("value*") == [0.123457, 2]
    assert value_of(back) == value_of(CHECK)


def test_write_page(tmp_path):
    page = tmp_path / "theory.md"
    page.write_text("<!-- begin: objective.made_up -->\n<!-- end: objective.made_up -->\n", encoding="utf-8")
    (tmp_path / "theory").mkdir()
    (tmp_path / "theory" / "checks.json").write_text(checks_to_json([CHECK]), encoding="utf-8")
    write_page(page)
    assert "| c | 2 |" in page.read_text(encoding="utf-8")


def test_page_shows_every_figure():
    assert re.findall(r"\]\(theory/(\w+)\.svg\)", PAGE) == list(FIGURES)
    assert sorted(file.stem for file in (DOCS / "theory").glob("*.svg")) == sorted(FIGURES)


def test_page_has_the_sections_that_its_table_links_to():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE)
    assert len(links) > 10
    assert set(links) <= headings


def test_page_names_files_and_tests_that_exist():
    links = re.findall(r"\]\(\.\./([^)]+)\)", PAGE)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", PAGE) if f"def {name}(" not in tests] == []


def test_the_command_prints_verdicts_and_fails_with_a_check(monkeypatch, capsys):
    monkeypatch.setattr(command, "run", lambda seed: iter([CHECK]))
    assert command.main([]) == 1
    shown = capsys.readouterr()
    assert shown.out == "fails: One is one.\n       |one - one|: 0.333 [0.25, 0.5], expected 0\n"
    assert "objective.made_up" in shown.err
    assert command.main(["--json"]) == 1
    assert checks_from_json(capsys.readouterr().out)[0].id == "objective.made_up"
