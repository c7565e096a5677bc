"""``python -m evidence.redo_pages``: fills all documents again from the recorded results."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from evidence.bench.page import write_page as write_performance
from evidence.pages.blocks import fill_file
from evidence.pages.from_trl import write_page as write_from_trl
from evidence.pages.models import write_page as write_models
from evidence.places import DOCS, RESULTS_FOLDER
from evidence.studies.plots import draw
from evidence.studies.tables import block
from evidence.theory.page import write_page as write_theory


def pages_of_results() -> list[Path]:
    """The page of all results, and the page of each study."""
    return [DOCS / "RESULTS.md", *sorted(RESULTS_FOLDER.glob("*.md"))]


def write_results(page: Path) -> None:
    """Fills a page of results from the records in ``results``, the folder that it is in or that is next to it."""
    folder = page.parent if page.parent.name == RESULTS_FOLDER.name else page.parent / RESULTS_FOLDER.name
    if folder != page.parent:
        draw(folder)
    fill_file(page, partial(block, folder))


PAGES: dict[str, Callable[[Path], None]] = {
    "from-trl.md": write_from_trl,
    "models.md": write_models,
    "theory.md": write_theory,
    "performance.md": write_performance,
    **{str(page.relative_to(DOCS)): write_results for page in pages_of_results()},
}

if __name__ == "__main__":
    for name, write_page in PAGES.items():
        write_page(DOCS / name)
