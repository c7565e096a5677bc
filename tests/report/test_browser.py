"""The report in a real Chromium: keys, narrow screens, both colour schemes, hostile texts.

Needs Debian's ``chromium`` (or another Chrome) and ``pip install playwright``; skipped without them.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.report import write_comparison, write_report
from helpers.fake_run import RESULTS, RL, SFT, make_run
from helpers.samples import EVALUATION, EVIL, SAMPLES, line

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
WIDTHS = (320, 360, 412, 600, 768, 1024, 1440)

LEAVES_THE_SCREEN = """() => {
  const scrolls = (e) => e.closest(".scroll, svg") !== null || e.scrollWidth === 0;
  return [...document.querySelectorAll("body *")].filter((e) => !scrolls(e)
    && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.tagName + "." + e.className);
}"""
"""Elements that reach beyond the right edge, outside of boxes that scroll by themselves."""

CUT_OFF = """() => [...document.querySelectorAll("p, h1, h2, h3, dd, li, label, summary, td, th, button")].filter((e) =>
  e.closest(".scroll, .question") === null && e.scrollWidth > e.clientWidth + 1
  && getComputedStyle(e).display !== "inline" && e.querySelector(".question") === null
  && getComputedStyle(e).position !== "absolute").map((e) => e.tagName + ": " + e.textContent.slice(0, 40))"""
"""Elements whose text is wider than they are."""

CONTRAST = """() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    const color = getComputedStyle(e).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? behind(e.parentElement) : color;
  };
  const ratio = (e) => {
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const texts = [...document.querySelectorAll("body *")].filter((e) => own(e) && e.checkVisibility()
    && !["SCRIPT", "NOSCRIPT", "OPTION"].includes(e.tagName) && e.closest("svg") === null);
  return [texts.length, Math.min(...texts.map(ratio)), luminance(getComputedStyle(document.body).backgroundColor)];
}"""
"""[number of texts, lowest contrast of a text (WCAG 2.1), luminance of the page]."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must raise no error and load nothing but files."""
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda r: faults.append(r.url) if not r.url.startswith("file:") else None)
    yield opened
    opened.close()
    assert faults == []


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Two runs with four problems; the fourth problem's texts are hostile."""
    second = [line(i, i == 1, steps=2 + (i > 0)) for i in range(3)]
    hostile = line(3, True, (EVIL, False)) | {"question": EVIL}
    first = make_run(tmp_path / "first", results=EVALUATION, samples=[*SAMPLES, hostile])
    other = make_run(tmp_path / "second", results=EVALUATION, samples=second)
    return write_comparison([first, other], tmp_path / "c.html")


def demo_report(folder: Path) -> Path:
    """A report with every section: headline, curves, flips, tables, and problems with long words."""
    long = line(1, True, ("x" * 300, False)) | {"question": "supercalifragilistic" * 20, "answer": "9" * 60}
    arms = [
        {**given, "arm": arm, "file": f"test: {arm}"}
        for arm in ("baseline", "dropout_grpo")
        for given in (*SAMPLES, long)
    ]
    return write_report(make_run(folder, results=RESULTS, metrics=SFT + RL, samples=arms))


def count(page: Any) -> str:
    text: str = page.locator("#problem-count").inner_text()
    return text


def open_all(page: Any) -> None:
    for summary in page.locator("summary").all():
        summary.click()


@pytest.mark.parametrize(
    ("fragment", "found"),
    [("", 4), ("#find=ANN", 1), ("#show=flipped&steps=3", 2), ("#show=wrong&by=0", 1)],
)
def test_an_address_keeps_a_search(page: Any, comparison: Path, fragment: str, found: int) -> None:
    page.goto(f"file://{comparison}{fragment}")
    assert count(page) == f"{found} of 4 problems"


def test_the_table_is_used_with_keys_alone(page: Any, comparison: Path) -> None:
    page.goto(f"file://{comparison}")
    focused = "document.activeElement.id || document.activeElement.tagName"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "find":
            break
    assert page.evaluate(focused) == "find"
    page.keyboard.type("question 1")
    assert count(page) == "1 of 4 problems"
    assert page.url.endswith("#find=question+1")
    for _ in "question 1":
        page.keyboard.press("Backspace")
    assert count(page) == "4 of 4 problems"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "show"
    page.keyboard.press("r")  # the option that begins with it
    assert count(page) == "1 of 4 problems"  # right in the last run
    page.keyboard.press("Home")
    assert count(page) == "4 of 4 problems"
    while page.evaluate(focused) != "SUMMARY":
        page.keyboard.press("Tab")
    assert page.locator("#problem-list .vote").count() == 0
    page.keyboard.press("Enter")
    assert page.locator("#problem-list .vote").all_inner_texts() == ["0 × 2", "7 × 1"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator("#problem-list details[open]").count() == 0


def test_more_rows_keep_the_place_of_the_keyboard(page: Any, tmp_path: Path) -> None:
    many = [line(i, True) for i in range(120)]
    report = write_report(make_run(tmp_path, results=EVALUATION, samples=many))
    page.goto(f"file://{report}")
    assert count(page) == "120 of 120 problems, the first 50"
    page.locator("#problem-more").focus()
    page.keyboard.press("Enter")
    assert count(page) == "120 of 120 problems, the first 100"
    assert page.evaluate("document.activeElement.textContent").endswith("question 50 of tom")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_leaves_a_screen_of_any_width(page: Any, tmp_path: Path, comparison: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for path in (demo_report(tmp_path / "demo"), comparison):
        page.goto(f"file://{path}")
        open_all(page)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert page.evaluate(LEAVES_THE_SCREEN) == []
        assert page.evaluate(CUT_OFF) == []


@pytest.mark.parametrize("width", [360, 740, 800, 930, 1200])
def test_all_measures_are_seen_without_scrolling(page: Any, tmp_path: Path, width: int) -> None:
    """Those of the demo, which the table showed in part at 800 pixels."""
    more = {"pass@2": 0.647, "pass@4": 0.68, "coverage": 0.708}
    results = RESULTS | {arm: RESULTS[arm] | more for arm in ("baseline", "dropout_grpo")}
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"file://{write_report(make_run(tmp_path / 'demo', results=results))}")
    box = page.locator(".scroll", has=page.locator("table.stack")).first
    assert "BMA" in box.inner_html()
    assert box.evaluate("e => e.scrollWidth - e.clientWidth") <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_readable_in_both_schemes(page: Any, tmp_path: Path, comparison: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for path in (demo_report(tmp_path / "demo"), comparison):
        page.goto(f"file://{path}")
        open_all(page)
        texts, lowest, paper = page.evaluate(CONTRAST)
        assert texts > 20
        assert lowest >= 4.5
        assert paper > 0.9 if scheme == "light" else paper < 0.05


def test_hostile_texts_stay_texts(page: Any, comparison: Path) -> None:
    page.goto(f"file://{comparison}")
    open_all(page)
    assert "pwned" not in page.title()
    assert page.locator("#problem-list img").count() == 0
    assert page.locator("#problem-list .question").last.inner_text() == EVIL
