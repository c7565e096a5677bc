"""Puts the report together: one HTML file that loads nothing, so it opens anywhere, offline."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.report import markup
from dropout_grpo.report.about import about
from dropout_grpo.report.comparison import comparison_sections, described
from dropout_grpo.report.evaluation import evaluations_section
from dropout_grpo.report.flips import flips_section
from dropout_grpo.report.problems import SCRIPT_HASH, problems_section
from dropout_grpo.report.provenance import provenance_section, seconds_section
from dropout_grpo.report.results import headline, results_section
from dropout_grpo.report.style import CSS
from dropout_grpo.report.thoughts import thoughts_section
from dropout_grpo.report.training import curriculum_section, grpo_section
from dropout_grpo.runs.files import REPORT_FILE, RESULTS_FILE, SAMPLES_FILE, write_text, writing
from dropout_grpo.runs.lock import is_locked
from dropout_grpo.runs.read import Run, number, read_run, read_samples

WATCH_SECONDS = 20
"""Between two reports of a run that goes on: drawing one takes about a second."""


def write_report(run_dir: Path, *, reload: int | None = None) -> Path:
    """Write `report.html` into a run folder and return its path. An earlier report is replaced.

    Reads config.json, metrics.jsonl, results.json, measures.json, flips.jsonl, thoughts.jsonl and samples.jsonl. The
    parts of an absent file are left out.

    Args:
        run_dir: the run folder.
        reload: seconds after which the page loads itself again, of a run that goes on.

    Raises:
        UserError: the folder holds no results, a file is malformed, or the report cannot be written.
    """
    run = read_run(run_dir, whole_lines=reload is not None)
    sections = result_sections(run) + problems_section({run.name: _samples(run_dir)})
    if not sections and reload is None:
        raise UserError(
            f"{run_dir} holds no results: neither metrics.jsonl nor results.json has anything to show. "
            "Give the folder of a run that has started, such as one that `dropout-grpo demo` wrote"
        )
    title = f"dropout-grpo {run.provenance.get('command') or ''}".strip()
    seed = number(run.results, "seed", RESULTS_FILE)
    subtitle = f"run {run.name}" + (f" · seed {seed:.0f}" if seed is not None else "")
    if reload is not None:
        subtitle += f" · the run goes on, and this page loads itself again every {reload} seconds"
    body = about(run) + sections + seconds_section(run) + provenance_section(run)
    return _write(run_dir / REPORT_FILE, page(title, subtitle, run.name, body, reload=reload))


def watch_report(run_dir: Path, every: int = WATCH_SECONDS, wait: Callable[[float], None] = time.sleep) -> Path:
    """Write the report again and again while a process works in the run folder, and once more at its end.

    Args:
        run_dir: the run folder.
        every: seconds between two reports.
        wait: lets seconds pass.

    Raises:
        UserError: as ``write_report``.
    """
    while is_locked(run_dir):
        write_report(run_dir, reload=every)
        wait(every)
    return write_report(run_dir)


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write a page that shows two or more runs side by side, and return its path.

    Raises:
        UserError: a folder is named twice or holds no results, or a file is malformed.
    """
    runs: dict[str, Run] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    names = [folder.resolve().name for folder in run_dirs]
    for folder, name in zip(run_dirs, names, strict=True):
        key = name if names.count(name) == 1 else str(folder)
        if key in runs:
            raise UserError(f"{folder} is named twice: give different run folders")
        runs[key], samples[key] = read_run(folder), _samples(folder)
    sections = comparison_sections(runs) + problems_section(samples)
    if not sections:
        raise UserError(f"{', '.join(map(str, run_dirs))} hold no results: give the folders of runs that have started")
    return _write(out, page("dropout-grpo comparison", described(runs), ", ".join(runs), sections))


def _samples(folder: Path) -> list[dict[str, Any]]:
    return read_samples(folder) if (folder / SAMPLES_FILE).is_file() else []


def _write(path: Path, text: str) -> Path:
    text = text.encode("utf-8", "replace").decode()  # half a character, of a JSON escape, becomes a question mark
    with writing(path):
        write_text(path, text)
    return path


def result_sections(run: Run) -> str:
    """What the run found, as HTML; empty if it holds no results."""
    return (
        headline(run)
        + results_section(run)
        + evaluations_section(run)
        + curriculum_section(run)
        + grpo_section(run)
        + flips_section(run)
        + thoughts_section(run)
    )


def page(title: str, subtitle: str, name: str, body: str, *, reload: int | None = None) -> str:
    """A whole HTML document.

    Args:
        title: heading, as plain text.
        subtitle: line below it, as plain text.
        name: name of the run, for the window's title.
        body: HTML.
        reload: seconds after which the browser loads the page again.
    """
    refresh = "" if reload is None else f'\n<meta http-equiv="refresh" content="{reload}">'
    title, subtitle, name = markup.text(title), markup.text(subtitle), markup.text(name)
    # The browser refuses everything that is not in this file, and every script but the one with this hash.
    sources = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{SCRIPT_HASH}'"
    policy = f"{sources}; base-uri 'none'; form-action 'none'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title} · {name}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>{subtitle}</p></header>
{body}
</main>
<footer>Made by dropout-grpo from the files of run folders.</footer>
</body>
</html>
"""
