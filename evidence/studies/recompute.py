"""``python -m evidence.studies.recompute``: every p-value of the results' pages, from the records.

It reads the tables as they stand on ``docs/RESULTS.md`` and on the pages in ``docs/results``, takes the values of each
seed (or the wins and losses of a single seed) from the records there, and tests them with scipy's ``ttest_rel`` and
``binomtest``, not with the functions that made the tables. It ends with 1 if a number on a page is another one.
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
                expected = _expected(match["name"], rows, folder)
                for row, (column, p) in _cells(rows, expected):
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


def _cells(rows: Rows, expected: Sequence[tuple[str, float]]) -> Iterator[tuple[dict[str, str], tuple[str, float]]]:
    """Each p-value and its corrected one, with the row that shows it; rows without a p-value are passed over."""
    shown = [row for row in rows if row.get("p, Holm")]
    for row, (column, p), corrected in zip(shown, expected, _holm([p for _, p in expected]), strict=True):
        yield row, (column, p)
        yield row, ("p, Holm", corrected)


def _expected(block: str, rows: Rows, folder: Path) -> list[tuple[str, float]]:
    """The column of the p-value and its value, for every row that has one."""
    record, function, *table = block.split(".")
    if "p, Holm" not in rows[0]:
        return []
    if "McNemar p" in rows[0]:
        return [("McNemar p", _sign_test(int(row["wins"]), int(row["losses"]))) for row in rows]
    if function == "samples":
        shares = [drawn["by_seed"] for drawn in _read(folder / f"{record}.json")["samples"].values()]
        return [("p", _t_test(shares[0], share)) for share in shares[1:]]
    if record == "experiment":
        by_seed = _experiment(folder / record)
    else:
        by_seed = _demos(folder) if record == "demo" else _arms(_read(folder / f"{record}.json"), *table)
    return [("p", _t_test(by_seed[row["compared with"]], by_seed[row["arm"]])) for row in rows]


def _arms(study: Mapping[str, Any], table: str) -> dict[str, Sequence[float]]:
    """pass@1 of each seed, by the labels of a table's arms and of the baselines."""
    arms = [study["arms"][row["arm"]] for row in study["tables"][table]["rows"]]
    starts = {f"baseline {name}": baseline["by_seed"] for name, baseline in study["baselines"].items()}
    return {**starts, **{arm["label"]: arm["by_seed"] for arm in arms}}


def _demos(folder: Path) -> dict[str, Sequence[float]]:
    demos = [_read(file) for file in sorted(folder.glob("demo-seed*.json"))]
    return {label: [demo[key]["pass@1"] for demo in demos] for key, label in _DEMO.items()}


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


def _sign_test(wins: int, losses: int) -> float:
    """McNemar's exact test: wins among wins and losses, against one half; 1 if there are none."""
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
