"""``python -m evidence.theory``: checks the paper's claims numerically and prints each verdict."""

import argparse
import sys
from collections.abc import Sequence

from evidence.theory.check import checks_to_json
from evidence.theory.checks import run
from evidence.theory.page import value_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks; 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m evidence.theory", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampled checks")
    parser.add_argument("--json", action="store_true", help="print one JSON array; verdicts go to standard error")
    options = parser.parse_args(argv)
    checks = []
    for check in run(options.seed):
        checks.append(check)
        lines = f"{check.verdict}: {check.claim}\n       {check.quantity}: {value_of(check)}"
        print(lines, file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(checks_to_json(checks), end="")
    failed = [check.id for check in checks if not check.holds]
    if failed:
        print(f"these checks fail: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
