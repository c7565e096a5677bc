"""``dropout-grpo bench``: measures and prints tables or JSON."""

import json

from dropout_grpo.evidence.bench.config import BenchConfig
from dropout_grpo.evidence.bench.run import run_bench
from dropout_grpo.evidence.bench.tables import render


def bench(config: BenchConfig, *, sweep: bool, as_json: bool) -> None:
    """Prints one JSON object or Markdown tables on standard output, and progress on standard error."""
    result = run_bench(config, sweep=sweep)
    print(json.dumps(result, indent=1) if as_json else render(result), end="\n" if as_json else "")
