"""``dropout-grpo report``: the page of a run folder, or one page that compares several."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import REPORT_FILE

HELP = "write report.html from a run folder, or a page that compares several runs"


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run_dirs", type=str, nargs="+", help="the run folder; or two and more to compare")
    page = f"the page to write; RUN/{REPORT_FILE} if not given, and comparison.html for several runs"
    parser.add_argument("--out", type=str | None, default=None, help=page)
    again = "write the page again while the run goes on; the browser loads it again by itself"
    parser.add_argument("--watch", action="store_true", help=again)


def run(options: Namespace) -> None:
    from dropout_grpo.report import watch_report, write_comparison, write_report
    from dropout_grpo.training.progress import console

    folders = [Path(folder) for folder in options.run_dirs]
    out = None if options.out is None else Path(options.out)
    if options.watch:
        if len(folders) > 1:
            raise UserError("--watch writes the page of one run: give one folder.")
        console.print(f"{out or folders[0] / REPORT_FILE}: open it in a browser; Ctrl-C ends the watch", markup=False)
        print(watch_report(folders[0], out))
    elif len(folders) == 1:
        print(write_report(folders[0], out))
    else:
        print(write_comparison(folders, out or Path("comparison.html")))
