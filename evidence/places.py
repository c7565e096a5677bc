"""Where the documents and recorded results are, in a checkout of the repository."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS_FOLDER = DOCS / "results"
PERFORMANCE_FOLDER = DOCS / "performance"
