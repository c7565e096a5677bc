"""Puts the report together: one HTML file that loads nothing, so it opens anywhere, offline."""

import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dropout_grpo.errors import UserError
from dropout_grpo.report import formats
from dropout_grpo.report.about import about, provenance, seconds_section
from dropout_grpo.report.blocks import Chart
from dropout_grpo.report.cards import flips, thoughts
from dropout_grpo.report.comparison import comparison_sections, described
from dropout_grpo.report.evaluation import evaluations_section
from dropout_grpo.report.problems import problems
from dropout_grpo.report.results import headline, results_section
from dropout_grpo.report.svg import inline_svg
from dropout_grpo.report.training import curriculum_section, grpo_section
from dropout_grpo.runs.files import REPORT_FILE, RESULTS_FILE, SAMPLES_FILE, write_text, writing
from dropout_grpo.runs.lock import is_locked
from dropout_grpo.runs.read import Run, number, read_run, read_samples

WATCH_SECONDS = 20
"""Between two reports of a run that goes on: drawing one takes about a second."""

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run_dir: Path, out: Path | None = None, *, reload: int | None = None) -> Path:
    """Write the page of a run and return its path. An earlier page is replaced.

    Reads config.json, metrics.jsonl, results.json, measures.json, flips.jsonl, thoughts.jsonl and samples.jsonl. The
    parts of an absent file are left out.

    Args:
        run_dir: the run folder.
        out: the page; `report.html` in the run folder if None.
        reload: seconds after which the page loads itself again, of a run that goes on.

    Raises:
        UserError: the folder holds no results, a file is malformed, or the report cannot be written.
    """
    run = read_run(run_dir, whole_lines=reload is not None)
    sections = (results_section(run), evaluations_section(run), curriculum_section(run), grpo_section(run))
    results = {
        "headline": headline(run),
        "sections": [section for section in sections if section],
        "flips": flips(run),
        "thoughts": thoughts(run),
        "problems": problems({run.name: _samples(run_dir)}),
    }
    if not any(results.values()) and reload is None:
        raise UserError(
            f"{run_dir} holds no results: neither metrics.jsonl nor results.json has anything to show. "
            "Give the folder of a run that has started, such as one that `dropout-grpo demo` wrote"
        )
    return _write(
        out or run_dir / REPORT_FILE,
        "run.html",
        **results,
        title=f"dropout-grpo {run.provenance.get('command') or ''}".strip(),
        names=[run.name],
        seed=number(run.results, "seed", RESULTS_FILE),
        reload=reload,
        about=about(run),
        seconds=seconds_section(run),
        provenance=provenance(run),
    )


def watch_report(
    run_dir: Path, out: Path | None = None, every: int = WATCH_SECONDS, wait: Callable[[float], None] = time.sleep
) -> Path:
    """Write the report again and again while a process works in the run folder, and once more at its end.

    Args:
        run_dir: the run folder.
        out: the page, as for ``write_report``.
        every: seconds between two reports.
        wait: lets seconds pass.

    Raises:
        UserError: as ``write_report``.
    """
    while is_locked(run_dir):
        write_report(run_dir, out, reload=every)
        wait(every)
    return write_report(run_dir, out)


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
    sections = [section for section in comparison_sections(runs) if section]
    table = problems(samples)
    if not sections and table is None:
        raise UserError(f"{', '.join(map(str, run_dirs))} hold no results: give the folders of runs that have started")
    content = {"subtitle": described(runs), "sections": sections, "problems": table}
    return _write(out, "comparison.html", title="dropout-grpo comparison", names=list(runs), **content)


def _samples(folder: Path) -> list[dict[str, Any]]:
    return read_samples(folder) if (folder / SAMPLES_FILE).is_file() else []


def _write(path: Path, template: str, **content: Any) -> Path:
    text = render(template, **content).encode("utf-8", "replace").decode()  # half a character becomes a question mark
    with writing(path):
        write_text(path, text)
    return path


def render(template: str, **content: Any) -> str:
    """A page as HTML.

    Everything is escaped but the package's own style sheet and script, the JSON of the problems, and the charts.
    """
    numbers = count(1)

    def svg(chart: Chart) -> Markup:
        return Markup(inline_svg(chart.figure, label=chart.described, name=f"chart-{next(numbers)}"))

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    own = (formats.count, formats.duration, formats.p_value, formats.percent, formats.points)
    environment.filters |= {"svg": svg, **{function.__name__: function for function in own}}
    css, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "problems.js"))
    digest = b64encode(sha256(script.encode()).digest()).decode()
    content |= {"css": Markup(css), "script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment.get_template(template).render(content)
