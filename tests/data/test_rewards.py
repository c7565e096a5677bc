"""Reward functions: TRL's calling convention, its rule for None, and a message for every mistake."""

import asyncio
import math
import sys
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch

from dropout_grpo.data.problem import Problem
from dropout_grpo.data.rewards import (
    RewardFunction,
    as_reward_functions,
    call_reward,
    call_rewards,
    choice_answer,
    combine_rewards,
    exact_answer,
    format_penalty,
    load_reward,
    math_verify_reward,
    reward_columns,
    try_rewards,
)
from dropout_grpo.errors import UserError

PROMPTS = ["q0", "q1", "q2"]
COMPLETIONS = ["### 13", "### 13", "thirteen"]
COLUMNS = {"answer": ["13", "14", "13"], "level": [1, 2, 3]}


def _combined(functions, weights):
    rows = call_rewards(functions, PROMPTS, COMPLETIONS, COLUMNS)
    return combine_rewards(weights, rows)


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


def returning(values: Any) -> RewardFunction:
    def judge(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return values

    return judge


def test_choice_answer_asks_for_the_right_candidate_alone() -> None:
    question, gold = "Tom is a lempus. Is Tom a lempus or scrompus?", "Tom is a lempus."
    completions = ["### Tom is a lempus .", "### lempus", "### Tom is a scrompus.", "### lempus or scrompus", "lempus"]
    n = len(completions)
    assert choice_answer([question] * n, completions, [gold] * n, level=[0] * n) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert exact_answer([question] * n, completions, [gold] * n) == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("question", "gold"), [("How many?", "3"), ("Is Tom a lempus or scrompus?", "Tom is a gerpus.")]
)
def test_choice_answer_refuses_other_questions(question: str, gold: str) -> None:
    with pytest.raises(UserError, match="use exact_answer"):
        choice_answer([question], ["### 3"], [gold])


def test_rewards_are_weighted_sums_in_which_none_adds_nothing() -> None:
    functions = [returning([1.0, None, 3]), returning([True, 0.5, None])]
    # 1 * 2 + 1 * 10, 0.5 * 10, 3 * 2
    assert _combined(functions, [2.0, 10.0]) == [12.0, 5.0, 6.0]
    assert _combined([exact_answer], [1.0]) == [1.0, 0.0, 0.0]
    assert _combined([exact_answer], [0.0]) == [0.0, 0.0, 0.0]


def test_a_sample_that_nobody_judges_has_no_reward() -> None:
    functions = [returning([1.0, None, 3.0]), returning([None, None, 1.0])]
    assert _combined(functions, [1.0, 1.0]) == [1.0, None, 4.0]


def test_format_penalty_by_hand() -> None:
    completions = ["### 3", "3", "###", "### ", "so ### it is\n### 4", ""]
    assert format_penalty(["q"] * 6, completions) == [0.0, -0.5, -0.5, -0.5, 0.0, -0.5]
    # With exact_answer: right, wrong, without an answer.
    rows = call_rewards([exact_answer, format_penalty], ["q"] * 3, ["### 3", "### 4", "3"], {"answer": ["3"] * 3})
    assert combine_rewards([1.0, 1.0], rows) == [1.0, 0.0, -0.5]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([1.0, 0.0], "judge: returned 2 rewards for 3 completions"),
        (None, "judge: returned NoneType; it must return a list"),
        (1.0, "judge: returned float; it must return a list"),
        ({"a": 1}, "judge: returned dict"),
        ([1.0, "1", 0.0], "judge: returned '1' for sample 1"),
        ([1.0, 0.0, math.nan], "judge: returned nan for sample 2"),
        ([math.inf, 0.0, 0.0], "judge: returned inf for sample 0"),
        ([1j, 0.0, 0.0], "judge: returned 1j for sample 0"),
        ([0.0, 1e308, 0.0], "judge: returned 1e+308 for sample 1; it must be a finite number between -1e+12 and 1e+12"),
        ([0.0, 10**400, 0.0], "judge: returned 1000000000"),
        ([0.0, 0.0, -(10**5000)], "judge: returned a int that cannot be shown for sample 2"),
        ([Fraction(10**400, 3), 0.0, 0.0], "judge: returned Fraction(1000"),
        ([0.0, Unspeakable(), 0.0], "judge: returned a Unspeakable that cannot be shown for sample 1"),
    ],
)
def test_what_a_reward_may_not_return(values: Any, part: str) -> None:
    with pytest.raises(UserError) as caught:
        call_reward(returning(values), PROMPTS, COMPLETIONS, COLUMNS)
    assert part in str(caught.value)


@pytest.mark.parametrize("values", [np.array([1.0, 0.0, 0.5]), np.array([1, 0, 2]), torch.tensor([1.0, 0.0, 0.5])])
def test_arrays_and_tensors_are_lists(values: Any) -> None:
    assert call_reward(returning(values), PROMPTS, COMPLETIONS, COLUMNS) == values.tolist()


def test_a_weighted_sum_that_is_too_large_is_refused() -> None:
    with pytest.raises(UserError, match=r"weighted sum for sample 0 is 1e\+15; lower reward_weights"):
        _combined([returning([1e12, 0.0, 0.0])], [1000.0])


def test_a_reward_may_change_what_it_is_given() -> None:
    """The next function, and the problems themselves, are as they were."""
    problem = Problem(id=0, question="q", steps=(), answer="1", extra={"edges": [[1, 2]], "level": 3})

    def empties(prompts: list[str], completions: list[str], edges: list[Any], **columns: Any) -> Any:
        n = len(completions)
        edges[0].clear()
        for column in (prompts, completions, edges, *columns.values()):
            column.clear()
        return [1.0] * n

    prompts, completions, columns = ["q", "q"], ["### 1", "### 2"], reward_columns([problem, problem])
    rows = call_rewards([empties, exact_answer], prompts, completions, columns)
    assert rows == [[1.0, 1.0], [1.0, 0.0]]
    assert (prompts, completions, columns["level"]) == (["q", "q"], ["### 1", "### 2"], [3, 3])
    assert problem.extra["edges"] == [[1, 2]]


def test_a_reward_that_exits_does_not_end_the_run(tmp_path: Path) -> None:
    def leaves(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        sys.exit(0)

    with pytest.raises(UserError, match=r"reward leaves: SystemExit: 0, raised in .*test_rewards.py"):
        call_reward(leaves, PROMPTS, COMPLETIONS, COLUMNS)
    file = tmp_path / "leaves.py"
    file.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserError, match=r"running .*leaves.py failed: SystemExit: 0"):
        load_reward(f"{file}:f")


def test_a_function_written_in_c_is_called_without_a_check_of_its_parameters() -> None:
    with pytest.raises(UserError, match=r"reward max: TypeError"):
        call_reward(max, PROMPTS, COMPLETIONS, COLUMNS)


def test_a_column_that_is_not_there() -> None:
    def needs_solution(prompts: list[str], completions: list[str], solution: list[str], **columns: Any) -> Any:
        return [1.0] * len(solution)

    with pytest.raises(UserError, match=r"needs_solution: .*'solution'.*prompts, completions, answer, level: name the"):
        call_reward(needs_solution, PROMPTS, COMPLETIONS, COLUMNS)


def test_an_error_inside_a_reward_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "my_reward.py"
    file.write_text("def broken(prompts, completions, **columns):\n    return len(3)\n")
    with pytest.raises(
        UserError, match=r"reward broken: TypeError: .* has no len\(\), raised in .*my_reward.py, line 2$"
    ):
        call_reward(load_reward(f"{file}:broken"), PROMPTS, COMPLETIONS, COLUMNS)

    def refuses(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        raise UserError("only for sums")

    with pytest.raises(UserError, match=r"^only for sums$"):  # as it is
        call_reward(refuses, PROMPTS, COMPLETIONS, COLUMNS)


def test_rewards_are_tried_on_the_problems_own_answers() -> None:
    problems = [Problem(id=i, question=f"q{i}", steps=(), answer=str(i)) for i in range(5)]
    seen = []

    def watch(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> Any:
        seen.extend(zip(prompts, completions, answer, strict=True))
        return [1.0] * len(completions)

    try_rewards([watch, exact_answer], [1.0, 1.0], problems)
    assert seen == [("q0", "### 0", "0"), ("q1", "### 1", "1")]
    with pytest.raises(UserError, match="returned 3 rewards for 2 completions"):
        try_rewards([returning([1.0, 1.0, 1.0])], [1.0], problems)
    try_rewards([returning([None, None])], [1.0], problems)  # nothing to say of these two


@pytest.mark.parametrize(("functions", "weights"), [([], []), ([exact_answer], []), ([exact_answer], [1.0, 2.0])])
def test_a_weight_for_each_function(functions: list[RewardFunction], weights: list[float]) -> None:
    with pytest.raises(UserError, match=f"{len(functions)} reward functions and {len(weights)} reward_weights"):
        _combined(functions, weights)


def test_columns_come_from_the_problems_one_entry_a_rollout() -> None:
    first = Problem(id=0, question="a", steps=("s",), answer="1", extra={"root": 7})
    second = Problem(id=1, question="b", steps=(), answer="2", extra={"root": None})
    assert reward_columns([first, first, second]) == {
        "question": ["a", "a", "b"],
        "steps": [("s",), ("s",), ()],
        "answer": ["1", "1", "2"],
        "root": [7, 7, None],
    }
    assert reward_columns([]) == {"question": [], "steps": [], "answer": []}
    taken = Problem(id=0, question="a", steps=(), answer="1", extra={"prompts": 1})
    with pytest.raises(UserError, match="column 'prompts'"):
        reward_columns([taken])


def test_a_file_with_a_dataclass_and_postponed_annotations(tmp_path: Path) -> None:
    """Dataclasses look their module up in sys.modules while it is loaded."""
    file = tmp_path / "my.reward.py"
    file.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, field\n"
        "@dataclass\n"
        "class Weights:\n"
        "    right: float = 2.0\n"
        "    names: list[str] = field(default_factory=list)\n"
        "def weighted(prompts, completions, **columns):\n"
        "    return [Weights().right] * len(completions)\n"
    )
    assert call_reward(load_reward(f"{file}:weighted"), PROMPTS, COMPLETIONS, COLUMNS) == [2.0, 2.0, 2.0]


def test_math_verify_judges_formulas() -> None:
    pytest.importorskip("math_verify")
    golds = ["$x^2 + 2x + 1$", "1/2", r"\boxed{\frac{1}{2}}", "18", "18", "18"]
    completions = ["### $(x+1)^2$", r"### \frac{1}{2}", "### 0.5", r"so ### \boxed{18}", "18", "### 19"]
    assert math_verify_reward([""] * 6, completions, golds) == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert math_verify_reward(["", ""], ["### a", "### a"], ["", "$$"], level=[1, 2]) == [None, None]


def test_math_verify_is_asked_for_by_name_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"pip install 'dropout-grpo\[math\]'"):
        math_verify_reward(["q"], ["### 1"], ["1"])


def test_two_files_of_one_name_do_not_get_mixed_up(tmp_path: Path) -> None:
    loaded = []
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "same.py"
        file.write_text(f"def f(prompts, completions, **columns):\n    return [{value}] * len(completions)\n")
        loaded.append(load_reward(f"{file}:f"))
    assert [call_reward(f, PROMPTS, COMPLETIONS, {})[0] for f in loaded] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("exact_answer", "expected package.module:function"),
        ("dropout_grpo.data.rewards:", "expected package.module:function"),
        (":exact_answer", "expected package.module:function"),
        ("dropout_grpo.data.rewards:exact answer", "expected package.module:function"),
        ("dropout_grpo.data.rewards:exakt", "no function 'exakt'; it has: "),
        ("dropout_grpo.data.answers:MARKER", "no function 'MARKER'; it has: "),
        ("no_such_package.rewards:f", "importing no_such_package.rewards failed: ModuleNotFoundError"),
        ("no/such/file.py:f", "no such file: no/such/file.py"),
        ("x" * 300 + ".py:f", "cannot be read: File name too long"),
    ],
)
def test_a_reward_that_cannot_be_found(path: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_reward(path)
    assert repr(path) in str(caught.value)
    assert part in str(caught.value)


class Longer:
    """A reward class without a ``__name__``; its tokens are those of the context."""

    def __init__(self, bonus: float) -> None:
        self.bonus = bonus

    def __call__(self, completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        return [len(ids) + self.bonus for ids in completion_ids]


def test_async_functions_run_concurrently_and_objects_are_called() -> None:
    together = asyncio.Barrier(2)

    async def meets(completions: list[str], **columns: Any) -> list[float]:
        async with asyncio.timeout(5):
            await together.wait()  # passed only if both calls run at once
        return [float(len(completion)) for completion in completions]

    class Meets:
        async def __call__(self, completions: list[str], **columns: Any) -> list[float]:
            return await meets(completions)

    ids = {"completion_ids": [[1], [1, 2], [1, 2, 3]]}
    rows = call_rewards([meets, Longer(0.5), Meets()], PROMPTS, COMPLETIONS, COLUMNS, ids)
    lengths = [float(len(completion)) for completion in COMPLETIONS]
    assert rows == [lengths, [1.5, 2.5, 3.5], lengths]


def test_async_functions_have_one_event_loop_for_the_whole_training() -> None:
    one_at_a_time = asyncio.Semaphore(1)  # like a client's session, it belongs to the loop that waited on it first

    async def judge(completions: list[str], **columns: Any) -> list[float]:
        async with one_at_a_time:
            await asyncio.sleep(0)
            return [1.0] * len(completions)

    for _ in range(2):
        rows = call_rewards([judge, judge], PROMPTS, COMPLETIONS, COLUMNS)
        assert rows == [[1.0] * len(COMPLETIONS)] * 2


def test_when_one_async_function_fails_the_others_are_cancelled() -> None:
    cancelled = Event()

    async def waits(completions: list[str], **columns: Any) -> list[float]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    async def fails(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        raise RuntimeError("no network")

    with pytest.raises(UserError, match="no network"):
        call_rewards([waits, fails], PROMPTS, COMPLETIONS, COLUMNS)
    assert cancelled.wait(5)


def test_an_async_function_that_fails_is_named_with_its_line() -> None:
    async def slow(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        raise RuntimeError("no network")

    with pytest.raises(
        UserError, match=r"reward slow: RuntimeError: no network, raised in .*test_rewards.py, line \d+"
    ):
        call_rewards([slow], PROMPTS, COMPLETIONS, COLUMNS)


def test_reward_models_and_other_things_are_refused() -> None:
    with pytest.raises(UserError, match="'org/model' is a model or its name, and reward models are not supported"):
        as_reward_functions("org/model")
    with pytest.raises(UserError, match="Linear is a model"):
        as_reward_functions([exact_answer, torch.nn.Linear(1, 1)])
    with pytest.raises(UserError, match="reward_funcs: int is not a function"):
        as_reward_functions(3)
    with pytest.raises(UserError, match="reward_funcs is empty"):
        as_reward_functions([])


def test_the_import_path_of_version_0_1_is_accepted_with_a_message() -> None:
    with pytest.warns(FutureWarning, match=r"it is dropout_grpo\.data\.rewards:exact_answer now"):
        assert load_reward("dropout_grpo.problems.rewards:exact_answer") is exact_answer
