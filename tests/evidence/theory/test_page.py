"""Tables, figures and the page are made only from the checks, and are up to date."""

import json

import pytest
from rich.console import Console

from dropout_grpo.errors import UserError
from evidence.places import DOCS
from evidence.theory import __main__ as command
from evidence.theory.check import Check, checks_from_json, checks_to_json, holds_if
from evidence.theory.checks import SECTIONS
from evidence.theory.page import block, write_page
from evidence.theory.plots import FIGURES, save_plots
from evidence.theory.table import found, numbers_of, overview, render

CHECK = Check(
    id="objective.made_up",
    claim="One is one.",
    quantity="|one - one|",
    exact=0.0,
    estimate=1 / 3,
    interval=(0.25, 0.5),
    verdict="measured",
    detail={"columns": ["name", "value*"], "rows": [["a|b", 0.123456789], ["c", 2]]},
)


def test_overview_has_a_line_a_check():
    lines = overview([CHECK, CHECK]).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| One is one. | \\|one - one\\| | 0 | 0.333 [0.25, 0.5] | measured |"
    assert numbers_of(CHECK).startswith("*One is one.* **measured**: \\|one - one\\|: 0.333 [0.25, 0.5], expected 0.")


def test_rich_table_shows_brackets_and_verdicts():
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render([CHECK]))
    shown = console.export_text()
    assert "0.333 [0.25, 0.5]" in shown
    assert "measured" in shown


def test_json_round_trip_keeps_six_digits():
    (back,) = checks_from_json(checks_to_json([CHECK]))
    assert back.estimate == 0.333333
    assert back.interval == (0.25, 0.5)
    assert back.column("value*") == [0.123457, 2]
    assert found(back) == found(CHECK)
    assert isinstance(json.loads(checks_to_json([CHECK])), list)


def test_holds_if():
    assert (holds_if(True), holds_if(False)) == ("holds", "fails")


def test_a_block_is_a_check_or_all_of_them():
    assert "One is one." in block([CHECK], "checks")
    assert "| c | 2 |" in block([CHECK], "objective.made_up")
    with pytest.raises(UserError, match=r"objective\.other"):
        block([CHECK], "objective.other")


def test_figures_are_drawn_from_the_stored_numbers(tmp_path):
    checks = checks_from_json((DOCS / "theory" / "checks.json").read_text(encoding="utf-8"))
    files = save_plots(checks, tmp_path)
    assert [file.stem for file in files] == list(FIGURES)
    assert all("<svg" in file.read_text(encoding="utf-8") for file in files)
    again = save_plots(checks, tmp_path / "again")
    assert files[0].read_bytes() == again[0].read_bytes()


def test_figures_without_their_checks_are_left_out(tmp_path):
    assert save_plots([CHECK], tmp_path) == []


def test_write_page(tmp_path):
    page = tmp_path / "theory.md"
    page.write_text("<!-- begin: objective.made_up -->\n<!-- end: objective.made_up -->\n", encoding="utf-8")
    (tmp_path / "theory").mkdir()
    (tmp_path / "theory" / "checks.json").write_text(checks_to_json([CHECK]), encoding="utf-8")
    write_page(page)
    assert "| c | 2 |" in page.read_text(encoding="utf-8")


def test_page_shows_every_figure():
    page = (DOCS / "theory.md").read_text(encoding="utf-8")
    for name in FIGURES:
        assert f"](theory/{name}.svg)" in page
        assert (DOCS / "theory" / f"{name}.svg").is_file()


def test_page_has_the_sections_of_the_checks_in_order():
    lines = (DOCS / "theory.md").read_text(encoding="utf-8").splitlines()
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == list(SECTIONS.values())


def test_page_names_files_that_exist():
    page = (DOCS / "theory.md").read_text(encoding="utf-8")
    links = [part.split(")")[0] for part in page.split("](../")[1:]]
    assert len(links) > 10
    assert [link for link in links if not (DOCS.parent / link).exists()] == []


def test_the_table_of_theory_is_wide_on_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claim = "the gradient of the surrogate is that of the expected reward"
    check = Check(
        id="a",
        claim=claim,
        quantity="difference of the two gradients",
        exact=0.0,
        estimate=0.0,
        verdict="holds",
        detail={"columns": [], "rows": []},
    )
    monkeypatch.setattr(command, "run", lambda seed: [check])
    monkeypatch.delenv("COLUMNS", raising=False)
    assert command.main([]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) > 100
