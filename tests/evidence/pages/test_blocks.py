"""Only marked blocks are replaced, and all documents are up to date."""

from pathlib import Path

import pytest

from dropout_grpo.errors import UserError
from evidence.pages.blocks import fill, unknown_block
from evidence.places import DOCS
from evidence.redo_pages import PAGES

PAGE = "before\n<!-- begin: a-b.c_1 -->\nold\n<!-- end: a-b.c_1 -->\nafter"


def test_a_block_is_replaced_and_nothing_else() -> None:
    once = fill(PAGE, lambda name: f"made for {name}")
    assert once == "before\n<!-- begin: a-b.c_1 -->\n\nmade for a-b.c_1\n\n<!-- end: a-b.c_1 -->\nafter"
    assert fill(once, lambda name: f"made for {name}") == once


def test_blocks_end_at_their_own_mark() -> None:
    two = PAGE + "\n" + PAGE.replace("a-b.c_1", "other")
    assert fill(two, str.upper).split("\n\n")[1::2] == ["A-B.C_1", "OTHER"]


def test_an_unknown_block_names_the_known_ones() -> None:
    def make(name: str) -> str:
        raise unknown_block(name, ["one", "two"])

    with pytest.raises(UserError, match=r"block 'a-b.c_1', but the blocks are one, two"):
        fill(PAGE, make)


@pytest.mark.parametrize("name", PAGES)
def test_the_documents_are_up_to_date(name: str, tmp_path: Path) -> None:
    """Filling a copy of a document from a copy of its data gives the same document and the same set of figures."""
    for file in DOCS.rglob("*"):
        if file.suffix in (".md", ".json"):
            copy = tmp_path / file.relative_to(DOCS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    PAGES[name](tmp_path / name)
    assert (tmp_path / name).read_text("utf-8") == (DOCS / name).read_text("utf-8"), "run make docs"
    for made in tmp_path.rglob("*.svg"):
        assert (DOCS / made.relative_to(tmp_path)).is_file(), "run make docs"
