"""``python -m evidence.bench``: times the engine and three other ways to do the same jobs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields

from jsonargparse import ArgumentParser

from dropout_grpo.errors import UserError
from evidence.bench.config import BenchConfig
from evidence.bench.measure import run_bench
from evidence.bench.tables import render


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one JSON object or Markdown tables on standard output, and progress on standard error."""
    parser = ArgumentParser(prog="python -m evidence.bench", description=__doc__)
    parser.add_class_arguments(BenchConfig, as_group=False)
    parser.add_argument("--sweep", action="store_true", help="vary K, then the number of thoughts, and fit lines")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.instantiate_classes(parser.parse_args(argv))
    config = BenchConfig(**{option.name: options[option.name] for option in fields(BenchConfig)})
    result = run_bench(config, sweep=options.sweep)
    print(json.dumps(result, indent=1) if options.json else render(result), end="\n" if options.json else "")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
