"""Copies the results of demo runs into docs/results, from which docs/RESULTS.md is made.

python -m evidence.studies.record_demo runs/demo-seed0 runs/demo-seed1 runs/demo-seed2
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from evidence.places import RESULTS_FOLDER


def main(argv: Sequence[str] | None = None) -> None:
    """Copies each run's results.json to demo-seedN.json, where N is the run's seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of the demo")
    parser.add_argument("--out", type=Path, default=RESULTS_FOLDER, help="folder for the copies")
    options = parser.parse_args(argv)
    for run in options.runs:
        seed = json.loads((run / "results.json").read_text(encoding="utf-8"))["seed"]
        shutil.copy(run / "results.json", options.out / f"demo-seed{seed}.json")


if __name__ == "__main__":
    main()
