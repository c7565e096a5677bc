"""The report of a run: its numbers, that it is self-contained, and that text from files is escaped."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.report import watch_report, write_comparison, write_report
from dropout_grpo.report.page import TEMPLATES
from dropout_grpo.runs.lock import lock_folder
from helpers.fake_run import CONFIG, FLIP, RESULTS, RL, SFT, by_k, make_run, rl

CSS = (TEMPLATES / "style.css").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser sees: tags with attributes, the text, and the rows of each table by its caption."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._within = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._within = tag
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        self.text += re.sub(r"[ \n]+", " ", data)
        if self._within in ("td", "th"):
            self._rows[-1][-1] += data.replace("\u202f", " ")
        elif self._within == "caption":
            self.tables[data] = self._rows

    def headings(self) -> list[str]:
        """The <h2> headings, which are named nowhere else on the page."""
        known = ["Results", "Evaluation", "The curriculum", "Reinforcement learning", "Problems that flipped"]
        return [name for name in [*known, "Time", "How to get it again"] if re.search(name, self.text)]

    def labels(self) -> list[str]:
        return [attributes["aria-label"] for tag, attributes in self.tags if tag == "svg"]


def read_page(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def outside_references(source: str) -> list[str]:
    """Everything that could make a browser fetch or run something."""
    found = [tag for tag, _ in Page(source).tags if tag in ("script", "link", "img", "iframe", "object", "base")]
    for _, attributes in Page(source).tags:
        for name, value in attributes.items():
            fetches = name in ("src", "srcset", "href", "xlink:href", "action", "data")
            if name.startswith("on") or (fetches and not value.startswith("#")):
                found.append(f"{name}={value}")
    return found + re.findall(r"url\((?!#)[^)]*\)|@import[^;]*|https?://[^\s<]*", source)


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return make_run(tmp_path / "demo", config=CONFIG, results=RESULTS, metrics=SFT + RL, flips=[FLIP])


def test_the_numbers_of_a_demo(demo: Path) -> None:
    page = read_page(demo)
    assert page.tables["Share of 2,000 test problems"] == [
        ["", "pass@1", "95 % interval", "pass@8", "maj@8", "BMA"],
        ["Baseline", "40.3 %", "[38.2, 42.5] %", "60.0 %", "42.0 %", "41.0 %"],
        ["Dropout-GRPO", "61.6 %", "[59.5, 63.7] %", "75.0 %", "63.0 %", "62.0 %"],
        ["Temperature alone", "61.2 %", "[59.0, 63.3] %", "–", "–", "–"],
    ]
    (collapse,) = (rows for caption, rows in page.tables.items() if caption.startswith("The collapse"))
    assert collapse[1] == ["No exploration", "100.0 %", "0"]
    assert page.tables["Time of each part since the last start"][1:] == [
        ["Data", "1.0 s"],
        ["Curriculum", "3 min 20 s"],
        ["Total", "3 min 21 s"],
    ]
    assert page.tables["Configuration, every default resolved"][1:] == [
        ["seed", "0"],
        ["rl.beta", "0.0"],
        ["rl.sites", '["residual"]'],
        ["rl.resume", "null"],
    ]
    assert page.tables["Versions and commit"][1:] == [["torch", "2.13.0"], ["commit", "0123abc"]]
    for said in (
        "+21.3 points",
        "alone, without masks: +20.9 points",
        "523 problems",
        "loses 97",
        "p\u00a0<\u00a00.001",
    ):
        assert said in page.text
    assert "seed 7" in page.text


def test_the_curves_of_a_demo_are_said_in_words(demo: Path) -> None:
    labels = [label.replace("\u202f", " ") for label in read_page(demo).labels()]
    assert labels == [
        "pass@1 with 95 % intervals: Baseline 40.3 % [38.2, 42.5] %; Dropout-GRPO 61.6 % [59.5, 63.7] %; "
        "Temperature alone 61.2 % [59.0, 63.3] %",
        "Validation pass@1 by step. pass@1: 41.0 % at step 20, 41.0 % at step 20",
        "Training loss by step. loss: 1.5 at step 10, 0.25 at step 20",
        "Validation pass@1 by step. Dropout-GRPO: 40.2 % at step 0, 61.0 % at step 1; "
        "Temperature alone: 40.0 % at step 0, 40.0 % at step 0",
        # 1 - 0.5, 1 - 0.625; 1 - 0.75, 1 - 0.8
        "Mixed groups by step. Dropout-GRPO: 50.0 % at step 0, 37.5 % at step 1; "
        "Temperature alone: 25.0 % at step 0, 20.0 % at step 1",
        "Entropy by step. Dropout-GRPO: 0.3 at step 0, 0.3 at step 1; Temperature alone: 0.3 at step 0, 0.3 at step 1",
        "Replay difference by step. Dropout-GRPO: 1e-06 at step 0, 1e-06 at step 1; "
        "Temperature alone: 1e-06 at step 0, 1e-06 at step 1",
    ]


def test_flips_show_the_votes_and_are_few(tmp_path: Path) -> None:
    lost = FLIP | {"direction": "lost"}
    page = read_page(make_run(tmp_path, results=RESULTS, flips=[FLIP] * 9 + [lost] * 3))
    assert page.text.count("wrong → right") == 6
    assert page.text.count("right → wrong") == 2
    assert "9 recorded problems went from wrong to right and 3 from right to wrong" in page.text
    assert "before1111 × 54 × 2(unparsable) × 1after44 × 8" in page.text  # plain answer, then votes by count
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    marked = re.findall(r'class="(?:vote|plain) right">([^<]*)<', source)
    assert marked == ["4 × 2", "4", "4 × 8"] * 8  # in each card: a vote before, the plain answer and its vote


def test_right_answers_of_flips_are_marked_in_any_spelling(tmp_path: Path) -> None:
    """Fault: votes are in canonical form, and were compared with the answer as it is written."""
    sides = {
        "before": {"plain": "### 1,080", "votes": {"1080": 3, "7": 1}},
        "after": {"plain": "### 7", "votes": {"7": 4}},
    }
    make_run(tmp_path, results=RESULTS, flips=[FLIP | {"answer": "1080.0", "direction": "lost"} | sides])
    write_report(tmp_path)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'class="(?:vote|plain) right">([^<]*)<', source) == ["1,080", "1080 × 3"]


def test_rewards_that_are_not_shares_have_a_chart_of_their_own(tmp_path: Path) -> None:
    """Fault: they were drawn on the axis of pass@1, which ends at 0 and 100 %."""
    lines = [line | {"reward": 5.0 * line["step"] - 2} for line in RL]
    page = read_page(make_run(tmp_path, results=RESULTS, metrics=lines))
    assert "Thin lines: mean reward" not in page.text
    assert "Reward by step. Dropout-GRPO: -2 at step 0, 3 at step 1" in page.text + " ".join(
        str(attributes) for _, attributes in page.tags
    )


def test_the_page_needs_nothing_but_itself(demo: Path) -> None:
    source = write_report(demo).read_text(encoding="utf-8")
    assert outside_references(source) == []
    assert "default-src 'none'" in source
    # The check can fail.
    for broken in ('<img src="a.png">', '<p style="background:url(a.png)">', "<b onclick=x>", "<script>"):
        assert outside_references(source + broken)


def test_every_id_is_unique_and_every_reference_resolves(demo: Path) -> None:
    source = write_report(demo).read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in Page(source).tags if "id" in attributes]
    references = re.findall(r'(?:href="|url\()#([^")]+)', source)
    assert len(ids) == len(set(ids)) > 0
    assert set(references) <= set(ids)
    assert references


def test_figures_follow_the_theme(demo: Path) -> None:
    source = write_report(demo).read_text(encoding="utf-8")
    for svg in re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL):
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)  # no colour is fixed
    used = set(re.findall(r"var\((--[\w-]+)\)", source))
    assert {"--ink", "--arm-0", "--arm-1"} <= used
    for theme in CSS.split("@media", 1):
        assert used <= set(re.findall(r"(--[\w-]+):", theme))


def test_text_from_files_is_only_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"' onload='x' $5$ &amp;"
    side = {"plain": evil, "votes": {evil: 3}}
    state = {"tokens": [[evil, 0.5]], "cosine": 0.9}
    side_read = {"name": evil, "said": evil, "thoughts": {"plain": [state, state], "masked": [[state, state]]}}
    thought = {"kind": evil, "question": evil, "answer": evil, "models": [side_read]}
    flip = {"question": evil, "answer": evil, "direction": "gained", "before": side, "after": side}
    run = make_run(
        tmp_path / "<i>run",
        config={"command": evil, "config": {evil: evil}, "versions": {evil: evil}, "commit": evil},
        results={"baseline": {"pass@1": 0.1}, "dropout_grpo": {"pass@1": 0.2}, evil: {"pass@1": 0.3}}
        | {"seconds": {evil: 1}, "evaluations": [{"file": evil, f"pass@{evil}": 0.1}]},
        measures={"evaluations": [{"file": evil, "pass@k": by_k(0.1, 0.2)}]},
        metrics=[rl(evil, 0, 0.5), rl("grpo", 0, 0.5)],
        flips=[flip],
        thoughts=[thought],
    )
    page = read_page(run)
    assert not [tag for tag, attributes in page.tags if tag in ("script", "i") or "onload" in attributes]
    # The page shows the string as it is: title, heading, a row of the results and of their figure, file and
    # column of the evaluation, file of its figure and of 2 rows of its table by k, the part's steps, 4 legends, the
    # flip's question, answer, 2 plain answers, 2 votes, time, name and value of a version, commit, name and value of a
    # setting, the thoughts' kind, question, answer, model, what it says and 4 tokens.
    assert page.text.count(evil) == 35
    assert "run <i>run" in page.text


def test_parts_that_are_absent_are_left_out(tmp_path: Path, demo: Path) -> None:
    assert len(read_page(demo).headings()) == 6
    sft = read_page(make_run(tmp_path / "a", metrics=SFT))
    assert sft.headings() == ["The curriculum"]
    grpo = read_page(make_run(tmp_path / "b", config=CONFIG, metrics=[rl("grpo", 3, 1.0), rl("grpo", 4, 1.0)]))
    assert grpo.headings() == ["Reinforcement learning", "How to get it again"]
    assert grpo.labels()[0] == "Reward by step. GRPO: 0.5 at step 3, 0.5 at step 4"  # nothing was validated
    baseline = read_page(make_run(tmp_path / "c", results={"baseline": {"pass@1": 0.5}}))
    assert baseline.headings() == ["Results"]
    assert baseline.labels() == []


def test_the_numbers_of_an_evaluation(tmp_path: Path) -> None:
    first = {"file": "a.json", "n": 1500, "pass@1": 0.62, "ci95": [0.595, 0.644], "maj@8": 0.64, "coverage": 0.81}
    first |= {"bma": None, "seconds": 71.2, "problems_per_second": 21.06}
    first |= {"completions/mean_length": 4.25, "completions/clipped_ratio": 0.012}
    second = {"file": "b.json", "n": 20, "pass@1": 0.05}
    page = read_page(make_run(tmp_path, results={"evaluations": [first, second]}))
    assert page.headings() == ["Evaluation"]
    assert page.tables["Share of each file's problems"] == [
        ["", "a.json", "b.json"],
        ["problems", "1,500", "20"],
        ["pass@1", "62.0 %", "5.0 %"],
        ["95 % interval", "[59.5, 64.4] %", ""],
        ["maj@8", "64.0 %", "–"],
        ["coverage", "81.0 %", "–"],
        ["BMA", "–", "–"],
    ]
    assert page.tables["Length of the plain answers, and time"] == [
        ["file", "tokens per answer", "cut off", "time", "problems per second"],
        ["a.json", "4.2", "1.2 %", "1 min 11 s", "21.1"],
    ]
    assert page.labels() == []


def test_what_k_answers_give(tmp_path: Path) -> None:
    rows = [{"file": "a.json", "pass@1": 0.5}, {"file": "b.json", "pass@1": 0.1}]
    curves = {"pass@k": by_k(0.4, 0.5, 0.6), "maj@k": by_k(0.4, 0.4, 0.45)}
    several = {"file": "a.json", "pass@1": {"value": 0.5, "ci95": [0.4, 0.6]}, **curves}
    single = {"file": "b.json", "pass@1": {"value": 0.1, "ci95": [0.0, 0.2]}, "pass@k": by_k(0.1), "maj@k": by_k(0.1)}
    run = make_run(tmp_path, results={"evaluations": rows}, measures={"evaluations": [several, single]})
    page = read_page(run)
    assert page.tables["pass@k and maj@k with 95 % intervals"] == [
        ["file", "k", "pass@k", "95 % interval", "maj@k", "95 % interval"],
        ["a.json", "1", "40.0 %", "[38.0, 42.0] %", "40.0 %", "[38.0, 42.0] %"],
        ["a.json", "2", "50.0 %", "[48.0, 52.0] %", "40.0 %", "[38.0, 42.0] %"],
        ["a.json", "3", "60.0 %", "[58.0, 62.0] %", "45.0 %", "[43.0, 47.0] %"],
    ]
    (label,) = page.labels()  # one answer to each problem makes no curve
    assert label.replace("\u202f", " ") == (
        "pass@k and maj@k on a.json. pass@k: 40.0 % at k = 1, 60.0 % at k = 3; maj@k: 40.0 % at k = 1, 45.0 % at k = 3"
    )
    source = (run / "report.html").read_text(encoding="utf-8")
    assert outside_references(source) == []


def test_what_a_run_is_stands_at_the_top(tmp_path: Path) -> None:
    config = {
        "checkpoint": "runs/sft/checkpoints/coconut",
        "base": None,
        "bf16": True,
        "data": {"grpo": [{"source": "a.json", "weight": 2.0}, {"source": "b.json"}], "valid": None, "task": "words"},
        "model": {"name_or_path": None, "model_type": "gpt2"},
        "lora": {"r": 16},
        "reward_funcs": ["my.py:short"],
        "exploration": {"kind": "shared_dropout", "p": 0.2, "sites": ["residual"], "phases": ["prompt", "latent"]},
        "grpo": {"max_steps": 50},
    }
    started = {"command": "grpo", "config": config, "started": "2026-11-29 04:33:49 UTC"}
    metrics = [rl("grpo", 3, 0.5), rl("grpo", 4, 0.5)]
    source = write_report(make_run(tmp_path, config=started, metrics=metrics)).read_text(encoding="utf-8")
    facts = dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", source))
    assert facts == {
        "model": "runs/sft/checkpoints/coconut",
        "adapter": "LoRA of rank 16",
        "data": "grpo: a.json + b.json; valid: built-in task words",
        "rewards": "my.py:short",
        "exploration": "shared_dropout, p = 0.2, on residual, in prompt and latent",
        "steps": "GRPO 4 of 50",
        "precision": "bf16 matrix products",
        "started": "2026-11-29 04:33:49 UTC",
    }
    assert source.index("<dl class") < source.index("Reinforcement learning")


def test_every_metric_that_a_diagnosis_needs_has_a_chart(tmp_path: Path) -> None:
    more = {"grad_norm": 0.5, "completions/mean_length": 3.0, "rewards/a/mean": 0.25, "rewards/b/mean": 1.0}
    metrics = [rl("grpo", step, 0.5, kl=0.01 * step, **more) for step in (1, 2)]
    labels = " ".join(read_page(make_run(tmp_path, metrics=metrics)).labels())
    for said in (
        "KL to the reference by step. GRPO: 0.01 at step 1, 0.02 at step 2",
        "Gradient norm by step. GRPO: 0.5",
        "Length of the answers by step. GRPO: 3",
        "Reward: a by step. GRPO: 0.25",
        "Reward: b by step. GRPO: 1",
    ):
        assert said in labels
    without_kl = [record | {"kl": 0.0} for record in metrics]
    assert "KL" not in " ".join(read_page(make_run(tmp_path, metrics=without_kl)).labels())


@pytest.mark.parametrize(("bf16", "limit"), [(True, "bf16: below 0.1"), (False, "float32: below 0.0001"), (None, "")])
def test_the_replay_difference_is_shown_with_its_healthy_range(tmp_path: Path, bf16: bool | None, limit: str) -> None:
    run = make_run(tmp_path, config={"config": {"bf16": bf16}}, metrics=[rl("grpo", 1, 0.5), rl("grpo", 2, 0.5)])
    assert ("healthy in" in read_page(run).text) == bool(limit)
    assert limit in read_page(run).text


def test_bands_are_named_only_where_they_are(tmp_path: Path) -> None:
    of_task = {"config": {"data": {"task": "words", "valid": None, "max_valid": 500, "words": {"n_valid": 1000}}}}
    of_file = {"config": {"data": {"task": "words", "valid": "valid.json", "max_valid": 500}}}
    for config, bands in (of_task, 2), (of_file, 0):
        run = make_run(tmp_path / str(bands), config=config, metrics=SFT + RL)
        assert read_page(run).text.count("Bands are 95 % intervals") == bands
        page = write_comparison([run, make_run(tmp_path / "other", metrics=SFT)], tmp_path / f"{bands}.html")
        assert page.read_text(encoding="utf-8").count("Bands are 95 % intervals") == bands


def test_thoughts_are_shown_with_what_masks_do_to_them(tmp_path: Path) -> None:
    def state(cosine: float, *tokens: tuple[str, float]) -> dict[str, object]:
        return {"tokens": [list(pair) for pair in tokens], "cosine": cosine}

    plain = [state(1.0, (" 7", 0.61), ("8", 0.2)), state(1.0, ("9", 0.5))]
    masked = [
        [state(1.0, ("7", 0.6)), state(0.8, ("9", 0.4))],
        [state(1.0, ("7", 0.6)), state(0.6, ("4", 0.4))],
        [state(1.0, ("8", 0.6)), state(0.7, ("9", 0.4))],
    ]
    side = {"name": "baseline", "said": "### 9\n", "thoughts": {"plain": plain, "masked": masked}}
    alone = {"name": "dropout_grpo", "said": "### 4", "thoughts": {"plain": plain, "masked": []}}
    line = {"kind": "gained", "question": "Ann?", "answer": "4", "models": [side, alone]}
    page = read_page(make_run(tmp_path, results=RESULTS, thoughts=[line]))
    assert page.tables["Baseline: plain answer 9"] == [
        ["", "likeliest tokens", "cosine", "likeliest under masks"],
        ["thought 1", "7\u00a00.61 · 8\u00a00.20", "1.000", "7\u00a0×\u00a02 · 8\u00a0×\u00a01"],
        ["after them", "9\u00a00.50", "0.700", "9\u00a0×\u00a02 · 4\u00a0×\u00a01"],
    ]
    assert page.tables["Dropout-GRPO: plain answer 4"][1] == ["thought 1", "7\u00a00.61 · 8\u00a00.20", "–", "–"]


@pytest.mark.parametrize("more", [[], ["--watch"]])
def test_out_names_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    run, out = make_run(tmp_path / "run", results=RESULTS), tmp_path / "mine.html"
    assert main(["report", str(run), "--out", str(out), *more]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not (run / "report.html").exists()


def test_a_watched_run_is_drawn_until_it_ends(tmp_path: Path) -> None:
    """While another process works in the folder, with half a line that it is writing; the last page stays."""
    run = make_run(tmp_path, config=CONFIG)
    lock, waited, refresh = [lock_folder(run)], [], '<meta http-equiv="refresh" content="7">'

    def wait(seconds: float) -> None:
        waited.append(seconds)
        source = (run / "report.html").read_text(encoding="utf-8")
        assert refresh in source
        assert outside_references(source) == []
        assert ("Training loss" in source) == (len(waited) > 1)
        with (run / "metrics.jsonl").open("a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in SFT) + '{"part": "s')
        if len(waited) == 2:
            (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in SFT))
            lock.clear()

    source = watch_report(run, None, 7, wait).read_text(encoding="utf-8")
    assert waited == [7, 7]
    assert refresh not in source
    assert "Training loss" in source
