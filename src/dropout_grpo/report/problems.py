"""The data of the table of all evaluated problems, which a script of the page searches and filters.

The table shows every mask's answer. ``templates/problems.js`` builds the rows that are shown.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dropout_grpo.report.names import label
from dropout_grpo.runs.read import JsonObject

MOST_BYTES = 2_000_000
"""Maximum size of the data of all problems; the rest of a page is below 1 MB, so a report stays below 3 MB."""


def problems(runs: Mapping[str, Sequence[JsonObject]]) -> dict[str, Any] | None:
    """The table of all problems; None without samples.

    Args:
        runs: the lines of samples.jsonl by the name of the run; the name is shown if there are several.

    Returns:
        ``json`` for the page's script; ``columns``; ``shown`` and ``total`` problems; ``menus``: the filters, each with
        its name, title, options (text by value) and the value at the start.
    """
    data, total = _table(runs)
    rows, columns, files = data["rows"], data["columns"], data["files"]
    if not rows:
        return None
    show = {"": "all", "right": "right", "wrong": "wrong"}
    if len(columns) > 1:
        show["flipped"] = "right by some, wrong by others"
    steps = sorted({row[2] for row in rows if row[2] is not None})
    menus = [
        ("show", "Show", show, ""),
        ("by", "Judged by", {str(i): name for i, name in enumerate(columns)}, str(len(columns) - 1)),
        ("steps", "Steps", {"": "any number", **{str(n): str(n) for n in steps}}, ""),
        ("file", "File", {"": "all", **{str(i): name or "test" for i, name in enumerate(files)}}, ""),
    ]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&":  # no tag can begin or end inside the data
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return {"json": text, "columns": columns, "shown": len(rows), "total": total, "menus": menus}


def _table(runs: Mapping[str, Sequence[JsonObject]]) -> tuple[dict[str, Any], int]:
    """The data of the page, with at most ``MOST_BYTES``, and the number of all problems."""
    columns: dict[str, int] = {}
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for run, lines in runs.items():
        for line in lines:
            arm = label(str(line["arm"])) if "arm" in line else ""
            name = ": ".join(filter(None, [run if len(runs) > 1 or not arm else "", arm]))
            column = columns.setdefault(name, len(columns))
            file = "" if arm else str(line["file"])
            row = rows.setdefault((file, line["id"], line["question"]), {"line": line, "file": file, "sides": {}})
            row["sides"][column] = _side(line)
    files = list(dict.fromkeys(row["file"] for row in rows.values()))
    data: dict[str, Any] = {"columns": list(columns), "files": files, "rows": []}
    used = 0
    for row in rows.values():
        line, sides = row["line"], [row["sides"].get(i) for i in range(len(columns))]
        steps = line.get("steps")
        if not isinstance(steps, int):  # samples of an older version
            steps = None
        packed = [line["question"], line["answer"], steps, files.index(row["file"]), sides]
        used += len(json.dumps(packed))
        if used > MOST_BYTES:
            break
        data["rows"].append(packed)
    return data, len(rows)


def _side(line: JsonObject) -> list[Any]:
    """[plain answer, whether it is right, [[mask's answer, how many masks, whether it is right], ...]]."""
    samples, right = line.get("samples"), line.get("samples_correct")
    votes: Counter[tuple[str, bool]] = Counter()
    if isinstance(samples, list) and isinstance(right, list):
        votes.update((_answer(str(text)), bool(is_right)) for text, is_right in zip(samples, right, strict=False))
    return [
        _answer(line["plain"]),
        int(line["plain_correct"]),
        [[text, count, int(is_right)] for (text, is_right), count in votes.most_common()],
    ]


def _answer(completion: str) -> str:
    """The answer in a completion, or the whole completion if it has none."""
    return (completion.rpartition("###")[2].strip() or completion.strip() or "(nothing)")[:200]
