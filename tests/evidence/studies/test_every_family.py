"""The table of families: what is compared, and that a wrong engine shows in it."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from evidence.places import DOCS
from evidence.studies import families, families_table


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "nemotron"])
def test_a_family_is_compared_with_its_own_forward_pass(kind: str) -> None:
    with pytest.warns(UserWarning, match="shared prompt") if kind == "nemotron" else nullcontext():
        found = families.examine(kind)
    assert found["status"] == "works"
    assert found["shares_prompt"] == (kind != "nemotron")
    assert all(found[gap] < families.TOLERANCE for gap in ("alone", "padded", "masked", "replay"))
    assert found["masks_act"]
    assert found["lacks"] == (["mlp_hidden"] if kind == "mixtral" else [])


def test_an_engine_that_forgets_the_prompt_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropout_grpo.latent.recurrence.agrees", lambda found, expected: True)
    found = families.examine("nemotron")
    assert found["shares_prompt"]
    assert min(found["alone"], found["padded"], found["masked"]) > 0.1


def test_refusals_and_families_that_are_not_built_say_why() -> None:
    assert families.examine("mamba")["status"] == "refused"
    assert "decoder layers" in families.examine("mamba")["why"]
    assert families.examine("blt")["status"] == "not built"
    assert "parameters" in families.examine("blt")["why"]


def test_the_command_writes_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families.main(["--families", "gpt2", "--out", str(tmp_path / "families.json")])
    found = json.loads((tmp_path / "families.json").read_text(encoding="utf-8"))
    assert found["families"]["gpt2"]["status"] == "works"
    assert found["tolerance"] == families.TOLERANCE
    assert "versions" in found


def test_the_page_is_made_from_its_result(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for file in ("models.md", "results/families.json"):
        (tmp_path / file).write_bytes((DOCS / file).read_bytes())
    families_table.write_page(tmp_path / "models.md")
    assert (tmp_path / "models.md").read_text(encoding="utf-8") == (DOCS / "models.md").read_text(encoding="utf-8")


def test_a_family_that_is_not_equal_shows_in_the_table() -> None:
    found = {"status": "works", "dtype": "float64", "shares_prompt": True, "lacks": [], "masks_act": True}
    equal = dict.fromkeys(("alone", "padded", "masked", "replay"), 1e-9)
    rows = families_table.working({"good": {**found, **equal}, "bad": {**found, **equal, "masked": 0.5}}).splitlines()
    assert rows[2].endswith("| yes |")
    assert rows[3].endswith("| NO |")
