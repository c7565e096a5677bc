"""``python -m evidence.theory``: checks the paper's claims numerically and prints a table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evidence.theory.check import checks_to_json
from evidence.theory.checks import run
from evidence.theory.plots import save_plots
from evidence.theory.table import render

_TABLE_WIDTH = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks; 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m evidence.theory", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the Monte-Carlo checks and of their small model")
    parser.add_argument("--plots", type=Path, default=None, help="folder to write the figures to, as SVG")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    checks = run(options.seed)
    if options.plots is not None:
        save_plots(checks, options.plots)
    if options.json:
        print(checks_to_json(checks), end="")
    else:
        wide = Console()  # a pipe has no width; rich assumes 80 columns, which break every word
        (wide if wide.is_terminal else Console(width=_TABLE_WIDTH)).print(render(checks))
    failed = [check.id for check in checks if check.verdict == "fails"]
    if failed:
        print(f"these checks fail: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
