"""``python -m evidence.redo_pages``: fills all documents again from the recorded results."""

from evidence.bench.page import write_page as write_performance
from evidence.pages.from_trl import write_page as write_from_trl
from evidence.places import DOCS
from evidence.studies.families_table import write_page as write_models
from evidence.studies.results_page import write_page as write_results
from evidence.theory.page import write_page as write_theory

PAGES = {
    "from-trl.md": write_from_trl,
    "models.md": write_models,
    "theory.md": write_theory,
    "performance.md": write_performance,
    "RESULTS.md": write_results,
}

if __name__ == "__main__":
    for name, write_page in PAGES.items():
        write_page(DOCS / name)
