"""``python -m dropout_grpo.evidence.redo_pages``: fills all documents again from the recorded results."""

from dropout_grpo.evidence.bench.page import write_page as write_performance
from dropout_grpo.evidence.pages.from_trl import write_page as write_from_trl
from dropout_grpo.evidence.places import DOCS
from dropout_grpo.evidence.studies.families_table import write_page as write_models
from dropout_grpo.evidence.studies.results_page import write_page as write_results
from dropout_grpo.evidence.theory.page import write_page as write_theory

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
