"""The parts of the report: its errors, its curves, its numbers, its colours, what it may import."""

import ast
import errno
import re
from pathlib import Path

import pytest

import dropout_grpo.report
from dropout_grpo.errors import UserError
from dropout_grpo.report import page, write_report
from dropout_grpo.report.about import config_facts
from dropout_grpo.report.charts import Curve, curves_figure
from dropout_grpo.report.formats import duration, percent, points
from dropout_grpo.report.series import Series, complement, running_mean, series, stage_starts
from helpers.fake_run import CONFIG, FLIP, RESULTS, SFT, Record, make_run


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no results"),
        ({"config": CONFIG}, "holds no results"),
        ({"metrics": [], "results": {}}, "holds no results"),
        ({"metrics": [{"step": 1}]}, r"record 1: 'part' is None"),
        ({"metrics": [*SFT, {"part": "sft", "step": 1.5}]}, r"record 4: 'step' is 1.5"),
        ({"metrics": [{"part": "sft", "step": 3, "loss": "low"}]}, r"part 'sft', step 3: 'loss' is 'low'"),
        ({"results": {"baseline": {"pass@1": "40 %"}}}, r"results.json, 'baseline': 'pass@1' is '40 %'"),
        ({"results": {"baseline": {"pass@1": True}}}, r"'pass@1' is True, but must be a number"),
        ({"results": {"baseline": {"pass@1": 0.4, "ci95": [0.3]}}}, r"'ci95' is \[0.3\], but must be a pair"),
        ({"results": RESULTS | {"collapse": [1]}}, r"'collapse' is \[1\], but must be an object"),
        (
            {"results": {"evaluations": [{"pass@1": 0.1}]}, "measures": {"evaluations": [{"pass@k": [{"k": "2"}]}]}},
            r"measures.json, evaluations\[0\], 'pass@k'\[0\]: 'k' is '2'",
        ),
        ({"results": {"evaluations": {"a": 1}}}, r"'evaluations' is .* must be a list of objects"),
        ({"results": {"baseline": {"pass@1": 10**400}}}, r"results.json, 'baseline': 'pass@1' has 401 digits"),
        ({"results": {"baseline": {"pass@1": 0.4, "ci95": [0.3, 10**400]}}}, r"'ci95' has 401 digits"),
        ({"metrics": [{"part": "sft", "step": 10**400}]}, r"record 1: 'step' is 1000"),
        ({"results": RESULTS, "flips": [FLIP | {"after": 3}]}, r"flips.jsonl, record 1: 'after' is 3"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: Record, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_report(make_run(tmp_path, **files))
    assert not (tmp_path / "report.html").exists()


def test_damaged_files_are_named_with_their_line(tmp_path: Path) -> None:
    metrics = make_run(tmp_path, metrics=SFT) / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + "\n" + '{"part": "sft", "st')  # cut off; the blank line counts
    with pytest.raises(UserError, match=r"metrics.jsonl, line 5 is not JSON .*incomplete line"):
        write_report(tmp_path)
    metrics.write_text("[1, 2]\n")
    with pytest.raises(UserError, match=r"line 1 is '\[1, 2\]', but must be a JSON object"):
        write_report(tmp_path)
    metrics.write_bytes(b'{"part": "\xff"}')
    with pytest.raises(UserError, match=r"metrics.jsonl is not UTF-8 text \(byte 10\)"):
        write_report(tmp_path)
    for content, message in (
        ("[" * 5000 + "]" * 5000, "levels of brackets|not readable as JSON"),
        ('{"a": ' * 500 + "1" + "}" * 500, "more than 100 levels of brackets"),
        ('{"a": ' + "9" * 5000 + "}", "not readable as JSON"),
    ):
        (tmp_path / "results.json").write_text(content)
        metrics.unlink(missing_ok=True)
        with pytest.raises(UserError, match=rf"results.json (has|is) .*({message})"):
            write_report(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_contrasts_with_its_background(theme: int) -> None:
    """The contrast of WCAG 2.1, success criterion 1.4.3."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    css = (page.TEMPLATES / "style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css.split("@media")[theme]))
    for ground in ("paper", "card"):
        for ink in ("ink", "muted", "good", "bad", "arm-0", "arm-1", "arm-2", "arm-3"):
            dark, light = sorted((luminance(colours[ground]), luminance(colours[ink])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, ink)


def test_series_by_hand() -> None:
    metrics: list[Record] = [
        {"part": "a", "step": 2, "x": 0.5},
        {"part": "a", "step": 1, "x": 0.25},
        {"part": "b", "step": 1, "x": 9.0},
        {"part": "a", "step": 2, "x": 0.75},  # written again after a resume
        {"part": "a", "step": 3, "x": None},
        {"part": "a", "step": 4, "x": float("nan")},
        {"part": "a", "step": 5, "y": 1.0},
    ]
    assert series(metrics, "a", "x") == Series([1, 2], [0.25, 0.75])
    assert complement(Series([1, 2], [0.25, 0.75])) == Series([1, 2], [0.75, 0.25])
    assert running_mean(Series([1, 2, 3, 4], [0.0, 3.0, 6.0, 0.0]), 3).values == [1.5, 3.0, 3.0, 3.0]
    assert running_mean(Series([1, 2, 3, 4], [0.0, 3.0, 6.0, 0.0]), 3, [1, 3]).values == [1.5, 1.5, 3.0, 3.0]
    stages = [{"part": "sft", "step": s, "stage": g} for s, g in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)]]
    assert stage_starts(stages) == [(1, 0), (3, 1), (5, 2)]


def test_an_axis_is_logarithmic_only_where_every_value_can_be_shown() -> None:
    for values, scale in ([0.1, 1e-3], "log"), ([0.0, 1e-3], "linear"):
        figure = curves_figure([Curve(label="x", series=Series([1, 2], values))], ylabel="x", log=True)
        assert figure.axes[0].get_yscale() == scale
        assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [values, values]  # dots, line


def test_an_axis_of_shares_ends_at_0_and_at_100_percent() -> None:
    for values in ([0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.01, 0.3]):
        figure = curves_figure([Curve(label="x", series=Series([1, 2], values))], ylabel="x", percent=True)
        lo, hi = figure.axes[0].get_ylim()
        assert lo <= min(values) < hi
        assert max(values) <= hi
        assert lo >= -0.03
        assert hi <= 1.03
        assert not [t for t in figure.axes[0].get_yticks() if lo <= t <= hi and not -1e-9 <= t <= 1 + 1e-9]


def test_numbers_as_they_are_said() -> None:
    assert percent(0.4567).replace("\u202f", " ") == "45.7 %"
    assert [points(0.2134), points(-0.004), points(0.0)] == ["+21.3", "−0.4", "+0.0"]
    said = [duration(seconds).replace("\u202f", " ") for seconds in (0.04, 59.9, 61, 3599.7, 7500)]
    assert said == ["0.0 s", "59.9 s", "1 min 01 s", "1 h 00 min", "2 h 05 min"]
    assert config_facts({"a": {"b": 1, "c": {}}, "d": "x"}) == [["a.b", "1"], ["a.c", "{}"], ["d", "x"]]


def test_the_report_knows_only_run_folders() -> None:
    imported: set[str] = set()
    report = Path(dropout_grpo.report.__file__).parent
    format_of_a_run = ("files", "lock", "read")
    for path in (*report.glob("*.py"), *(report.parent / "runs" / f"{name}.py" for name in format_of_a_run)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module or "")
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    own = {name for name in imported if name.startswith("dropout_grpo")}
    assert own
    known = {"dropout_grpo.errors", *(f"dropout_grpo.runs.{name}" for name in format_of_a_run)}
    known.add("dropout_grpo.evaluation.statistics")  # pure arithmetic, for the bands of curves
    known.add("dropout_grpo.data.answers")  # pure too: which answers are right
    assert all(name in known or name.startswith("dropout_grpo.report") for name in own)
    assert not {name for name in imported if name.split(".")[0] in ("torch", "transformers")}
    assert "matplotlib.pyplot" not in imported


def test_a_report_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", results=RESULTS)
    for name in ("report.html", "report.html.part"):
        (tmp_path / "mine.txt").write_text("mine")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / "mine.txt")
        assert write_report(run).read_text().startswith("<!doctype html>")
        assert (tmp_path / "mine.txt").read_text() == "mine"
        assert not (run / "report.html").is_symlink()


def test_a_report_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(page, "write_text", refuse)
    with pytest.raises(UserError, match=r"report.html"):
        write_report(make_run(tmp_path, results=RESULTS))
