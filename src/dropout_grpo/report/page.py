"""Puts the report together: one HTML file without scripts, links or images, so it opens anywhere, offline."""

from pathlib import Path

from dropout_grpo.errors import UserError
from dropout_grpo.report import markup
from dropout_grpo.report.evaluation import evaluations_section
from dropout_grpo.report.flips import flips_section
from dropout_grpo.report.provenance import provenance_section, seconds_section
from dropout_grpo.report.results import headline, results_section
from dropout_grpo.report.style import CSS
from dropout_grpo.report.training import curriculum_section, grpo_section
from dropout_grpo.runs.layout import REPORT_FILE, RESULTS_FILE
from dropout_grpo.runs.read import Run, number, read_run
from dropout_grpo.runs.write import write_text


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path; an earlier report is replaced.

    Reads config.json, metrics.jsonl, results.json, metrics.json and flips.jsonl; what an absent file would have
    shown is left out. Raises UserError if the folder holds no results or if a file is malformed.
    """
    run = read_run(run_dir)
    sections = result_sections(run)
    if not sections:
        raise UserError(
            f"{run_dir} holds no results: neither metrics.jsonl nor results.json has anything to show. "
            "Give the folder of a run that has started, such as one that `dropout-grpo demo` wrote"
        )
    path = run_dir / REPORT_FILE
    write_text(path, page(run, sections + seconds_section(run) + provenance_section(run)))
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
    )


def page(run: Run, body: str) -> str:
    """A whole HTML document around `body`."""
    title = markup.text(f"dropout-grpo {run.provenance.get('command') or ''}".strip())
    seed = number(run.results, "seed", RESULTS_FILE)
    subtitle = markup.text(f"run {run.name}" + (f" · seed {seed:.0f}" if seed is not None else ""))
    # The policy makes the browser itself refuse whatever is not in this file.
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title} · {markup.text(run.name)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>{subtitle}</p></header>
{body}
</main>
<footer>Made by dropout-grpo from the files of this run's folder.</footer>
</body>
</html>
"""
