"""The table of all evaluated problems: searched and filtered in the browser, with every mask's answer.

The problems are data in the page, and a script of the page builds the rows that are shown. The page's policy allows
this one script by its hash. Texts enter the document as text nodes only.
"""

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from dropout_grpo.report import markup
from dropout_grpo.report.names import label
from dropout_grpo.runs.read import Record

MOST_BYTES = 2_000_000
"""Maximum size of the data of all problems; the rest of a page is below 1 MB, so a report stays below 3 MB."""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("problem-data").textContent);
const byId = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};
const controls = ["find", "show", "by", "steps", "file"].map(byId);
const page = 50;
let shown = page;
const state = new URLSearchParams(location.hash.slice(1));
for (const control of controls) if (state.has(control.id)) control.value = state.get(control.id);
function matches(row) {
  const [find, show, by, steps, file] = controls.map((control) => control.value);
  const mine = row[4][Number(by)];
  const first = row[4].find((side) => side);
  if (file !== "" && row[3] !== Number(file)) return false;
  if (steps !== "" && row[2] !== Number(steps)) return false;
  if (show === "right" && !(mine && mine[1])) return false;
  if (show === "wrong" && !(mine && !mine[1])) return false;
  if (show === "flipped" && !row[4].some((side) => side && side[1] !== first[1])) return false;
  const text = find.trim().toLowerCase();
  return !text || row[0].toLowerCase().includes(text) || row[1].toLowerCase() === text;
}
function card(row) {
  const details = make("details", "problem");
  const summary = make("summary");
  row[4].forEach((side, i) => {
    if (!side) return;
    const mark = make("span", side[1] ? "mark right" : "mark", side[1] ? "\\u2713" : "\\u2717");
    mark.title = data.columns[i] + (side[1] ? ": right" : ": wrong");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", mark.title);
    summary.append(mark);
  });
  summary.append(make("span", "question", row[0]));
  details.append(summary);
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    const facts = [data.files[row[3]], row[2] === null ? "" : row[2] + " steps"].filter(Boolean);
    const answer = make("p", "", "Right answer: ");
    answer.append(make("strong", "", row[1]), facts.length ? " (" + facts.join(", ") + ")" : "");
    const list = make("dl", "votes wide");
    row[4].forEach((side, i) => {
      if (!side) return;
      const said = make("dd");
      said.append(make("span", side[1] ? "plain right" : "plain", side[0]));
      for (const [text, count, right] of side[2])
        said.append(make("span", right ? "vote right" : "vote", text + " \\u00d7 " + count));
      list.append(make("dt", "", data.columns[i]), said);
    });
    details.append(answer, list);
  });
  return details;
}
function draw() {
  const found = data.rows.filter(matches);
  byId("problem-list").replaceChildren(...found.slice(0, shown).map(card));
  byId("problem-count").textContent =
    found.length + " of " + data.rows.length + " problems" + (found.length > shown ? ", the first " + shown : "");
  byId("problem-more").hidden = found.length <= shown;
}
for (const control of controls) control.addEventListener("input", () => {
  shown = page;
  const kept = controls.filter((control) => control.value !== control.dataset.start);
  const hash = new URLSearchParams(kept.map((control) => [control.id, control.value])).toString();
  history.replaceState(null, "", "#" + hash);
  draw();
});
byId("problem-more").addEventListener("click", () => {
  const next = shown;
  shown += page;
  draw();
  byId("problem-list").children[next]?.querySelector("summary").focus();
});
draw();
"""

SCRIPT_HASH = f"sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}"
"""The hash of the script, which the page's policy allows."""


def problems_section(runs: Mapping[str, Sequence[Record]]) -> str:
    """The table, empty without samples.

    Args:
        runs: the lines of samples.jsonl by the name of the run; the name is shown if there are several.
    """
    data, total = _table(runs)
    if not data["rows"]:
        return ""
    cut = len(data["rows"])
    steps = sorted({row[2] for row in data["rows"] if row[2] is not None})
    columns, files = data["columns"], data["files"]
    shown = {"": "all", "right": "right", "wrong": "wrong"}
    if len(columns) > 1:
        shown["flipped"] = "right by some, wrong by others"
    hint = "question, or the exact answer"
    controls = "".join(
        [
            f'<label>Search <input type="search" id="find" data-start="" placeholder="{hint}"></label>',
            _select("show", "Show", shown),
            _select("by", "Judged by", {str(i): name for i, name in enumerate(columns)}, start=len(columns) - 1),
            _select("steps", "Steps", {"": "any number", **{str(n): str(n) for n in steps}}),
            _select("file", "File", {"": "all", **{str(i): name or "test" for i, name in enumerate(files)}}),
        ]
    )
    lead = (
        "Every evaluated problem. Open one to see the plain network's answer in bold, then the answers of its masks. "
        "A mark stands for each of: " + ", ".join(columns) + "."
    )
    note = f" The first {cut:,} of {total:,} problems, which keeps this file small." if cut < total else ""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&":  # no tag can begin or end inside the data
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return markup.section(
        "All problems",
        f"<p>{markup.text(lead + note)}</p>",
        f'<div class="filter" role="search">{controls}</div><p id="problem-count" role="status"></p>'
        '<div id="problem-list"></div><button type="button" id="problem-more" hidden>Show 50 more</button>'
        "<noscript><p>The table needs JavaScript; samples.jsonl of the run has the same content.</p></noscript>"
        f'<script type="application/json" id="problem-data">{text}</script><script>{SCRIPT}</script>',
    )


def _table(runs: Mapping[str, Sequence[Record]]) -> tuple[dict[str, Any], int]:
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


def _side(line: Record) -> list[Any]:
    """[plain answer, whether it is right, [[mask's answer, how many masks, whether it is right], ...]]."""
    samples, right = line.get("samples"), line.get("samples_correct")
    votes: Counter[tuple[str, bool]] = Counter()
    if isinstance(samples, list) and isinstance(right, list):
        votes.update((_said(str(text)), bool(is_right)) for text, is_right in zip(samples, right, strict=False))
    return [
        _said(line["plain"]),
        int(line["plain_correct"]),
        [[text, count, int(is_right)] for (text, is_right), count in votes.most_common()],
    ]


def _said(completion: str) -> str:
    """The answer in a completion, or the whole completion if it has none."""
    return (completion.rpartition("###")[2].strip() or completion.strip() or "(nothing)")[:200]


def _select(name: str, title: str, options: Mapping[str, str], start: int = 0) -> str:
    """A menu; hidden if it offers no choice between two things."""
    values = list(options)
    choices = ""
    for i, value in enumerate(values):
        selected = " selected" if i == start else ""
        choices += f'<option value="{markup.text(value)}"{selected}>{markup.text(options[value])}</option>'
    hidden = " hidden" if len([value for value in values if value]) < 2 else ""
    first = markup.text(values[start])
    return f'<label{hidden}>{title} <select id="{name}" data-start="{first}">{choices}</select></label>'
