"""Reward functions as in TRL: plain functions of completions that return one float, or None, a sample.

A reward function is called as ``f(prompts=..., completions=..., **columns)``: `prompts` are the questions,
`completions` the decoded answers, and every column of the problem file (``answer``, ``steps``, ...) is a list
of the same length. None means "no opinion on this sample".
"""

import importlib
import importlib.util
import inspect
import math
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from types import ModuleType
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.problems.answers import MARKER, answers_match, candidates, chosen, extract_answer
from dropout_grpo.problems.problem import Problem

RewardFunction = Callable[..., Sequence[float | None]]


def exact_answer(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """1.0 where the text after the last ``###`` is the gold answer (`answers.answers_match`), else 0.0."""
    pairs = zip(completions, answer, strict=True)
    return [float(answers_match(extract_answer(completion), gold)) for completion, gold in pairs]


def choice_answer(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """1.0 where the answer names the right one of the question's two candidates and not the other, else 0.0.

    For ProsQA, whose questions end in ``Is Tom a lempus or scrompus?``. The sentence around the candidate does not
    count, as it does for `exact_answer`.

    Raises:
        UserError: a question leaves no choice between two words, or the gold answer names neither or both.
    """
    rewards: list[float | None] = []
    for prompt, completion, gold in zip(prompts, completions, answer, strict=True):
        options = candidates(prompt)
        right = None if options is None else chosen(gold, options)
        if options is None or right is None:
            raise UserError(
                f"reward choice_answer: the question ends in {prompt[-60:]!r} and its answer is {gold!r}; it is for "
                "questions that end in 'A or B?' with one of the two in the answer, so use exact_answer"
            )
        said = extract_answer(completion)
        rewards.append(float(said is not None and chosen(said, options) == right))
    return rewards


def reward_name(function: RewardFunction) -> str:
    """The name of a reward function in metrics (``rewards/{name}/mean``) and messages."""
    return getattr(function, "__name__", None) or type(function).__name__


def reward_columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """What reward functions get besides prompts and completions: the problems' fields, one entry a sample.

    Args:
        problems: the problem of each completion, so a problem appears once for each of its rollouts.

    Raises:
        UserError: a column of the file has the name of one of the call's own arguments.
    """
    extra = problems[0].extra if problems else {}
    if clash := sorted({"prompts", "completions", "question", "steps", "answer"} & extra.keys()):
        raise UserError(f"rewards: the problem file has a column {clash[0]!r}, a name that is taken; rename it")
    columns = {name: [problem.extra[name] for problem in problems] for name in extra}
    own = {name: [getattr(problem, name) for problem in problems] for name in ("question", "steps", "answer")}
    return own | columns


def call_reward(
    function: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[float | None]:
    """Call one reward function and check what it takes and what it returns.

    Raises:
        UserError: the function asks for a column that the problems do not have, raises, or does not return one finite
            number or None for each completion.
    """
    name = reward_name(function)
    try:
        inspect.signature(function).bind(prompts=prompts, completions=completions, **columns)
    except TypeError as error:
        given = ", ".join(["prompts", "completions", *columns])
        raise UserError(
            f"reward {name}: {error}; it is called with {given} (the columns of the problem file), "
            "so name the ones it needs and take the rest as **columns"
        ) from error
    try:
        values = function(prompts=prompts, completions=completions, **columns)
    except UserError:
        raise
    except Exception as error:  # a user's function may fail in any way; the cause stays attached
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"reward {name}: {type(error).__name__}: {error}, raised in {last.filename}, line {last.lineno}"
        ) from error
    if not isinstance(values, list | tuple):
        raise UserError(
            f"reward {name}: returned {type(values).__name__}; it must return a list with one float or None "
            "for each completion"
        )
    if len(values) != len(completions):
        raise UserError(f"reward {name}: returned {len(values)} rewards for {len(completions)} completions")
    for sample, value in enumerate(values):
        if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise UserError(
                f"reward {name}: returned {value!r} for sample {sample}; "
                "it must be a finite number, or None to skip the sample"
            )
    return [None if value is None else float(value) for value in values]


def call_rewards(
    functions: Sequence[RewardFunction],
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> list[list[float | None]]:
    """What every reward function says of every completion, a row a function; see `call_reward`."""
    return [call_reward(function, prompts, completions, columns) for function in functions]


def reward_statistics(functions: Sequence[RewardFunction], rows: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """TRL's ``rewards/{name}/mean`` and ``rewards/{name}/std`` over the completions each function judged."""
    statistics = {}
    for function, row in zip(functions, rows, strict=True):
        judged = [value for value in row if value is not None]
        if not judged:
            continue
        statistics[f"rewards/{reward_name(function)}/mean"] = fmean(judged)
        statistics[f"rewards/{reward_name(function)}/std"] = stdev(judged) if len(judged) > 1 else 0.0
    return statistics


def combine_rewards(
    functions: Sequence[RewardFunction],
    weights: Sequence[float],
    prompts: Sequence[str],
    rows: Sequence[Sequence[float | None]],
) -> list[float]:
    """The weighted sum of all reward functions for each completion, by TRL's rules: a None adds nothing.

    Args:
        functions: for their names in messages.
        weights: one a function.
        prompts: for messages.
        rows: what `call_rewards` returned.

    Raises:
        UserError: functions and weights differ in number, or every function returned None for some sample, which TRL
            would quietly count as 0.
    """
    if not functions or len(functions) != len(weights):
        raise UserError(
            f"rewards: {len(functions)} reward functions and {len(weights)} reward_weights; "
            "give at least one function and a weight for each"
        )
    rewards = []
    for sample in range(len(prompts)):
        terms = [
            weight * value for weight, row in zip(weights, rows, strict=True) if (value := row[sample]) is not None
        ]
        if not terms:
            names = ", ".join(reward_name(function) for function in functions)
            raise UserError(
                f"rewards: {names}: every reward function returned None for sample {sample} "
                f"({prompts[sample][:80]!r}); at least one must judge it"
            )
        rewards.append(sum(terms))
    return rewards


def try_rewards(functions: Sequence[RewardFunction], weights: Sequence[float], problems: Sequence[Problem]) -> None:
    """Have a few problems' own answers judged: a function that cannot be called is found before anything is trained.

    Raises:
        UserError: as `call_reward`, `reward_columns` and `combine_rewards`.
    """
    few = problems[:2]
    questions = [problem.question for problem in few]
    rows = call_rewards(functions, questions, [f"{MARKER} {p.answer}" for p in few], reward_columns(few))
    combine_rewards(functions, weights, questions, rows)


def load_reward(path: str) -> RewardFunction:
    """Import a reward function from ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        UserError: the text has another form, the module cannot be imported, or it has no such function.
    """
    place, _, name = path.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(
            f"reward {path!r}: expected package.module:function or path/to/file.py:function, "
            "for example dropout_grpo.problems.rewards:exact_answer"
        )
    module = _import_file(place, path) if place.endswith(".py") else _import_module(place, path)
    function = getattr(module, name, None)
    if not callable(function):
        has = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise UserError(f"reward {path!r}: {place} has no function {name!r}; it has: {', '.join(has) or 'none'}")
    return function


def _import_module(place: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except Exception as error:  # a user's module may fail in any way; the cause stays attached
        raise UserError(
            f"reward {path!r}: importing {place} failed: {type(error).__name__}: {error}; "
            "install the package, or give the path of a .py file"
        ) from error


def _import_file(place: str, path: str) -> ModuleType:
    file = Path(place)
    if not file.is_file():
        raise UserError(f"reward {path!r}: no such file: {place}; the path is taken from the working folder")
    spec = importlib.util.spec_from_file_location(f"dropout_grpo_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # as above
        raise UserError(f"reward {path!r}: running {place} failed: {type(error).__name__}: {error}") from error
    return module
