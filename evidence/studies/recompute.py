"""``python -m evidence.studies.recompute``: every p-value in the tables of the results' pages, from the records.

It reads the tables as they stand on ``docs/RESULTS.md`` and on the pages in ``docs/results``, takes the values of each
seed (or the wins and losses where there is one seed) from the records there, and tests them with scipy's ``ttest_rel``
and ``binomtest``, not with the functions that made the tables. It ends with 1 if a number on a page is another one.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from evidence.places import RESULTS_FOLDER
from evidence.redo_pages import pages_of_results

_BLOCK = re.compile(r"<!-- begin: (?P<name>[\w.-]+) -->\n(?P<text>.*?)<!-- end: (?P=name) -->", re.DOTALL)
_CORRECTED = {"p": "p, Holm", "these networks: McNemar p": "these networks: p, Holm"}
"""The columns of p-values, and those of the corrected ones."""

_DEMO = {"baseline": "Coconut baseline", "dropout_grpo": "Dropout-GRPO", "temperature_only": "temperature only"}

Rows = list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How many p-values were recomputed, and those that the pages have otherwise."""

    compared: int
    differing: list[str]


def recompute(pages: Sequence[Path], folder: Path) -> Report:
    """Recomputes every p-value in the tables of some pages from the records in a folder."""
    compared, differing = 0, []
    for page in pages:
        for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
            for rows in tables(match["text"]):
                for row, column, p in _cells(rows, match["name"], folder):
                    compared += 1
                    if row[column] != f"{p:.2g}":
                        where = ", ".join(list(row.values())[:3])
                        differing.append(f"{match['name']}: {where}: {column} is {row[column]} and should be {p:.2g}")
    return Report(compared=compared, differing=differing)


def tables(text: str) -> list[Rows]:
    """The Markdown tables in a text, each row by its headings."""
    result = []
    for part in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *lines = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in part.splitlines())
        result.append([dict(zip(header, cells, strict=True)) for cells in lines])
    return result


def _cells(rows: Rows, block: str, folder: Path) -> Iterator[tuple[dict[str, str], str, float]]:
    """Each row, column and value of a p-value and of its corrected one; rows without a p-value are passed over."""
    column = next((name for name in _CORRECTED if name in rows[0]), None)
    if column is None:
        return
    shown, p_values = [row for row in rows if row[column]], _expected(block, rows, folder)
    columns = {column: p_values, _CORRECTED[column]: _holm(p_values)}
    for name, values in columns.items():
        if name in rows[0]:
            yield from ((row, name, p) for row, p in zip(shown, values, strict=True))


def _expected(block: str, rows: Rows, folder: Path) -> list[float]:
    """The p-value of every row that has one."""
    record, function, *table = block.split(".")
    if record == "demo" and function == "gains":
        return [_sign_test(demo["comparison"]) for demo in _demos(folder)]
    if function == "pairs":
        return [_sign_test(test) for tests in _read(folder / f"{record}.json")["pairs"].values() for test in tests]
    if function == "samples":
        shares = [drawn["by_seed"] for drawn in _read(folder / f"{record}.json")["samples"].values()]
        return [_t_test(shares[0], share) for share in shares[1:]]
    if record == "experiment":
        by_seed = _experiment(folder / record)
    elif record == "demo":
        demos = _demos(folder)
        by_seed = {label: [demo[key]["pass@1"] for demo in demos] for key, label in _DEMO.items()}
    else:
        by_seed = _arms(_read(folder / f"{record}.json"), *table)
    return [_t_test(by_seed[row["compared with"]], by_seed[row["arm"]]) for row in rows]


def _arms(study: Mapping[str, Any], table: str) -> dict[str, Sequence[float]]:
    """pass@1 of each seed, by the labels of a table's arms and of the baselines."""
    arms = [study["arms"][row["arm"]] for row in study["tables"][table]["rows"]]
    starts = {f"baseline {name}": baseline["by_seed"] for name, baseline in study["baselines"].items()}
    return {**starts, **{arm["label"]: arm["by_seed"] for arm in arms}}


def _demos(folder: Path) -> list[Mapping[str, Any]]:
    return [_read(file) for file in sorted(folder.glob("demo-seed*.json"))]


def _experiment(folder: Path) -> dict[str, Sequence[float]]:
    """The share of solved problems of each seed: the ones among the binary digits after the first."""
    records = sorted((_read(file) for file in folder.glob("seed-*.json")), key=lambda record: record["seed"])
    solved = {
        name: [(f"{int(record['runs'][name]['solved'], 16):b}"[1:]) for record in records]
        for name in records[0]["runs"]
    }
    return {records[0]["runs"][n]["label"]: [d.count("1") / len(d) for d in digits] for n, digits in solved.items()}


def _t_test(first: Sequence[float], second: Sequence[float]) -> float:
    return 1.0 if list(first) == list(second) else float(stats.ttest_rel(second, first).pvalue)


def _sign_test(test: Mapping[str, Any]) -> float:
    """McNemar's exact test: wins among wins and losses, against one half; 1 if there are none."""
    wins, losses = test["wins"], test["losses"]
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def _holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values by the definition: the largest of (number of p at least as large) x p over all p not above."""
    n = len(p_values)
    ordered = sorted(p_values)
    return [max((min(1.0, (n - i) * p) for i, p in enumerate(ordered) if p <= own), default=own) for own in p_values]


def _read(file: Path) -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def main() -> None:
    """Prints what differs, and how many p-values agree."""
    report = recompute(pages_of_results(), RESULTS_FOLDER)
    for line in report.differing:
        print(line, file=sys.stderr)
    print(f"{report.compared - len(report.differing)} of {report.compared} p-values are those of the records")
    sys.exit(bool(report.differing))


if __name__ == "__main__":
    main()
