"""Generated malformed inputs: an error of one line or a correct run, never a traceback, a hang or a change of files.

``make test`` tries 500 of them, ``make test-slow`` 10,000: problem files, recipes, options, returns of rewards and the
JSON of checkpoints. Each input goes through what a command does before it computes anything.
"""

import io
import json
import shutil
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from dropout_grpo.cli import main as main_module
from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared import context
from dropout_grpo.commands.shared.options import recipe_of
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.data.files import load_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.rewards import try_rewards
from dropout_grpo.errors import UserError
from dropout_grpo.latent import LatentModel
from dropout_grpo.runs.files import flat_options, jsonable
from helpers.tiny_latent import tiny_latent

SECONDS = 20.0
"""No input may take longer, on a busy machine too."""

SHARES = {"problems": 200, "recipes": 120, "options": 80, "rewards": 60, "checkpoints": 40}
"""Inputs of each kind among 500."""

assert sum(SHARES.values()) == 500

NASTY = st.sampled_from(
    [
        *("", " ", "\n", "\0", "\x1b[31m", "\u202e", "\ufeff", "\ud800", "\udcff", "é" * 300, "x" * 5000, "<<", ">>"),
        *("<<1+1=2>>", "####", "### 3", "#### 1,000", "||", "a||b", "q||<<1+1=2>> #### 2", "null", "true", "~", "*a"),
        *(
            "&a",
            "!!python/name:os.system",
            "{",
            "[",
            "]",
            "}",
            "{}",
            "[]",
            "'",
            '"',
            "\\",
            "%",
            "${x}",
            "%(x)s",
            "=",
            "-",
        ),
        *("1e400", "-1e400", ".nan", ".inf", "0x10", "1_000", "9" * 400, "-0", "1/0", "1.5.2", "../..", "/"),
        *("/dev/null", "/dev/zero", "a:b", "os:system", "file.py:f", "hf:", "hf:x@y", "--", "--help", "@file"),
    ]
)
TEXT = st.one_of(NASTY, st.text(max_size=40))
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400]),
    st.floats(),
    st.sampled_from([1e308, -0.0, 5e-324]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
OPTIONS = sorted(flat_options(jsonable(Recipe())))
SECTIONS = sorted({name.rpartition(".")[0] for name in OPTIONS} - {""})

RECORDS = st.one_of(
    VALUES,
    st.fixed_dictionaries({}, optional={"question": VALUES, "steps": VALUES, "answer": VALUES, "extra": VALUES}),
    st.fixed_dictionaries({"question": TEXT, "steps": st.lists(TEXT, max_size=3), "answer": SCALARS}),
)


def as_json(value: Any) -> str:
    """JSON of any value, with NaN, infinity and lone surrogates as json writes them."""
    return json.dumps(value)


def damaged(text: str, cut: int, insert: str, place: int) -> bytes:
    """A text that is cut, or has another text inserted, as bytes that may not be UTF-8."""
    text = text[: len(text) - cut] if cut else text
    place = min(place, len(text))
    return (text[:place] + insert + text[place:]).encode(errors="surrogatepass")


FILES = st.one_of(
    st.builds(as_json, st.lists(RECORDS, max_size=4)),
    st.builds(as_json, VALUES),
    st.lists(RECORDS, max_size=4).map(lambda records: "\n".join(map(as_json, records))),
    st.lists(TEXT, max_size=4).map("\n".join),
)
BYTES = st.one_of(
    st.binary(max_size=60),
    st.builds(damaged, FILES, st.just(0), st.just(""), st.just(0)),
    st.builds(damaged, FILES, st.integers(0, 9), TEXT, st.integers(0, 60)),
)


def yaml_of(options: dict[str, Any], styles: list[int]) -> str:
    """A recipe as nested flow mappings, block mappings or dotted keys."""
    lines = []
    for (name, value), style in zip(options.items(), styles, strict=False):
        text = as_json(value)
        parts = name.split(".")
        if style == 0:
            lines.append(f"{name}: {text}")
        elif style == 1:
            lines.append(
                "".join(f"{part}: {{" for part in parts[:-1]) + f"{parts[-1]}: {text}" + "}" * (len(parts) - 1)
            )
        else:
            lines += [f"{'  ' * depth}{part}:" for depth, part in enumerate(parts[:-1])]
            lines.append(f"{'  ' * (len(parts) - 1)}{parts[-1]}: {text}")
    return "\n".join(lines)


NAMES = st.one_of(st.sampled_from(OPTIONS), st.sampled_from(SECTIONS), TEXT)
RECIPES = st.one_of(
    BYTES,
    st.builds(
        lambda options, styles: yaml_of(options, styles).encode(errors="surrogatepass"),
        st.dictionaries(NAMES, VALUES, min_size=1, max_size=3),
        st.lists(st.integers(0, 2), min_size=3, max_size=3),
    ),
)
WORDS = st.lists(
    st.one_of(
        st.tuples(NAMES.map(lambda name: f"--{name}"), VALUES.map(lambda v: v if isinstance(v, str) else as_json(v))),
        st.tuples(TEXT),
    ),
    max_size=3,
).map(lambda pairs: [word for pair in pairs for word in pair])
COMMANDS = st.sampled_from(["sft", "grpo", "eval", "demo", "data", "ask", "inspect", "merge", "compare", "report"])
CHECKPOINT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "latent_config.json",
    "adapter_config.json",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "checkpoint"
    tiny_latent("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands end where they would begin to compute or write; the options of a recipe have been checked by then."""
    for name in ("sft.sft", "grpo.grpo", "eval.evaluate", "demo.demo", "data.write_data", "data.write_variations"):
        monkeypatch.setattr(f"dropout_grpo.commands.{name}", lambda *args, **options: {})
    monkeypatch.setattr(
        "dropout_grpo.commands.ask.ask", lambda checkpoint, questions, *args, **options: [{}] * len(questions)
    )
    for name in ("compare.compare", "inspect.inspect", "merge.merge"):
        monkeypatch.setattr(f"dropout_grpo.commands.{name}", lambda *args, **options: {})
    for name in ("ask", "compare", "inspect"):
        monkeypatch.setattr(f"dropout_grpo.commands.{name}.as_text", lambda *args, **options: "")
    monkeypatch.setattr("dropout_grpo.report.write_report", lambda *args, **options: "")
    monkeypatch.setattr(main_module, "build_parser", cache(main_module.build_parser))  # most of the time
    monkeypatch.setattr(context, "with_stand_ins", recipe_of)
    monkeypatch.chdir(tmp_path)


def in_time(work: Callable[[], None]) -> None:
    start = time.monotonic()
    work()
    assert time.monotonic() - start < SECONDS


def run(words: list[str]) -> None:
    """The command line: exit status 0, or 2 with a message of one line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status: Any = main(words)
        except SystemExit as end:  # --help and --print_config
            status = end.code
    assert status in (0, 2)
    if status == 2:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("dropout-grpo: error: ")]
        assert len(lines) == 1
        assert len(lines[0]) < 1100
        assert "Traceback" not in err.getvalue()


def refusal(work: Callable[[], Any]) -> str:
    """The message of a UserError, empty if there is none; other exceptions fail the test."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def read_problems(folder: Path, content: bytes, ending: str, require_steps: bool) -> None:
    file = folder / f"problems.{ending}"
    file.write_bytes(content)
    if message := refusal(lambda: load_problems(file, require_steps=require_steps)):
        assert file.name in message
        return
    problems = load_problems(file, require_steps=require_steps)
    assert problems
    for problem in problems:  # what was accepted can be used and written
        (problem.question + problem.answer + "".join(problem.steps)).encode()
        assert problem.question.strip()


def read_recipe(folder: Path, content: bytes) -> None:
    (folder / "recipe.yaml").write_bytes(content)
    run(["sft", "--recipe", str(folder / "recipe.yaml")])


def use_reward(returned: Any) -> None:
    def reward(prompts: Any, completions: Any, **columns: Any) -> Any:
        return returned

    problems = [Problem(id=0, question="q", steps=(), answer="1")]
    message = refusal(lambda: try_rewards([reward], [1.0], problems))
    assert not message or "reward" in message


def load_checkpoint(folder: Path, checkpoint: Path, name: str, key: str, value: Any, whole: bool) -> None:
    copy = folder / "checkpoint"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            shutil.copy(file, copy / file.name)
    if whole:
        (copy / name).write_text(as_json(value))
    else:
        content = json.loads((copy / name).read_text()) if (copy / name).exists() else {"peft_type": "LORA"}
        key = sorted(content)[sum(map(ord, key)) % len(content)]
        (copy / name).write_text(as_json(content | {key: value}))
    refusal(lambda: LatentModel.from_pretrained(copy))


def cases(share: str, times: int) -> Any:
    """Settings of a test: the number of its inputs, the same ones in every run."""
    return settings(
        max_examples=SHARES[share] * times,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


SIZES = [pytest.param(1, id="500"), pytest.param(20, id="10000", marks=pytest.mark.slow)]


@pytest.mark.parametrize("times", SIZES)
def test_problem_files(times: int, tmp_path: Path) -> None:
    @cases("problems", times)
    @given(content=BYTES, ending=st.sampled_from(["json", "jsonl", "txt"]), require_steps=st.booleans())
    def check(content: bytes, ending: str, require_steps: bool) -> None:
        in_time(lambda: read_problems(tmp_path, content, ending, require_steps))

    check()


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.usefixtures("nothing_runs")
def test_recipes(times: int, tmp_path: Path) -> None:
    @cases("recipes", times)
    @given(content=RECIPES)
    def check(content: bytes) -> None:
        in_time(lambda: read_recipe(tmp_path, content))

    check()


@pytest.mark.parametrize("times", SIZES)
@pytest.mark.usefixtures("nothing_runs")
def test_options(times: int) -> None:
    @cases("options", times)
    @given(command=COMMANDS, words=WORDS)
    def check(command: str, words: list[str]) -> None:
        in_time(lambda: run([command, *words]))

    check()


@pytest.mark.parametrize("times", SIZES)
def test_returns_of_rewards(times: int) -> None:
    @cases("rewards", times)
    @given(returned=st.one_of(VALUES, st.lists(SCALARS, min_size=1, max_size=2)))
    def check(returned: Any) -> None:
        in_time(lambda: use_reward(returned))

    check()


@pytest.mark.parametrize("times", SIZES)
def test_json_of_checkpoints(times: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asked for permission to run code"))

    @cases("checkpoints", times)
    @given(name=st.sampled_from(CHECKPOINT_FILES), key=TEXT, value=VALUES, whole=st.booleans())
    def check(name: str, key: str, value: Any, whole: bool) -> None:
        in_time(lambda: load_checkpoint(tmp_path, checkpoint, name, key, value, whole))

    check()
