"""Reward functions as in TRL: plain functions of completions that return one float or None for each.

A reward function is called as ``f(prompts=..., completions=..., **columns)``. `prompts` are the questions,
`completions` the decoded answers, and every column of the problem file (``answer``, ``steps``, ...) is a list of the
same length. Columns that are read under other names, such as TRL's ``solution``, are passed as well, as they came. If a
prompt is a conversation, it is passed as its messages, and the completion as ``[{"role": "assistant", "content":
...}]``, as in TRL. None means that the function does not judge this completion. The lists are copies: a function may
change them. It may be ``async``, or an object of a class with ``__call__``.

A function that names them, or takes ``**columns``, also gets TRL's ``completion_ids`` (tokens of each answer, with the
final token), ``trainer_state`` (transformers') and ``log_metric(name, value)``, whose values are averaged over a step.
"""

import asyncio
import inspect
import math
import numbers
import os
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from statistics import fmean, stdev
from threading import Thread
from typing import Any

from dropout_grpo.data.answers import MARKER, answers_match, candidates, extract_answer, named_option
from dropout_grpo.data.problem import Message, Problem, Prompt
from dropout_grpo.errors import UserError
from dropout_grpo.import_path import load_object

RewardFunction = Callable[..., Sequence[float | None] | Coroutine[Any, Any, Sequence[float | None]]]

CONTEXT = ("completion_ids", "trainer_state", "log_metric")
"""What a reward function may take beside prompts, completions and columns."""

LARGEST_REWARD = 1e12
"""Rewards above it would overflow float32 when they are squared in a group's standard deviation."""


def exact_answer(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """1.0 if the text after the last ``###`` is the gold answer (`answers.answers_match`), else 0.0."""
    pairs = zip(completions, answer, strict=True)
    return [float(answers_match(extract_answer(_text(completion)), gold)) for completion, gold in pairs]


def choice_answer(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """1.0 if the answer names the right one of the question's two candidates and not the other, else 0.0.

    For ProsQA, whose questions end in ``Is Tom a lempus or scrompus?``. Unlike `exact_answer` it ignores the rest of
    the sentence.

    Raises:
        UserError: a question does not end in two candidates, or the gold answer names neither or both.
    """
    rewards: list[float | None] = []
    for prompt, completion, gold in zip(prompts, completions, answer, strict=True):
        prompt = _text(prompt)
        options = candidates(prompt)
        right = None if options is None else named_option(gold, options)
        if options is None or right is None:
            raise UserError(
                f"reward choice_answer: the question ends in {prompt[-60:]!r} and its answer is {gold!r}; it is for "
                "questions that end in 'A or B?' with one of the two in the answer, so use exact_answer"
            )
        said = extract_answer(_text(completion))
        rewards.append(float(said is not None and named_option(said, options) == right))
    return rewards


def math_verify_reward(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """1.0 if Math-Verify finds the text after the last ``###`` equal to the gold answer, else 0.0; None if it cannot
    read the gold answer.

    For answers beyond numbers, such as ``$x^2 + 1$`` or ``\\boxed{\\frac{1}{2}}``. Needs the package ``math-verify``.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise UserError(
            "reward math_verify_reward: this needs the math-verify package: pip install 'dropout-grpo[math]'"
        ) from error

    def read(text: str) -> list[Any]:
        parsed: list[Any] = parse(text if "$" in text or "\\boxed" in text else f"${text}$")
        return parsed

    golds = {gold: read(gold) for gold in set(answer)}
    rewards: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        said = extract_answer(_text(completion))
        if not golds[gold]:
            rewards.append(None)
        else:
            rewards.append(float(said is not None and bool(verify(golds[gold], read(said)))))
    return rewards


def format_penalty(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """-0.5 if the completion has no answer after ``###``, else 0.0 (public draft of the paper, rewards).

    To be added to `exact_answer`.
    """
    return [-0.5 if extract_answer(_text(completion)) is None else 0.0 for completion in completions]


def _text(turns: Prompt) -> str:
    """A prompt or completion as text: the last turn's if it is a conversation."""
    return turns if isinstance(turns, str) else str(turns[-1]["content"])


def completion_of(problem: Problem, text: str) -> str | list[Message]:
    """A completion as reward functions get it: the text, or the assistant's turn if the prompt is a conversation."""
    return text if problem.messages is None else [{"role": "assistant", "content": text}]


def reward_name(function: RewardFunction) -> str:
    """The name of a reward function in metrics (``rewards/{name}/mean``) and messages."""
    return getattr(function, "__name__", None) or type(function).__name__


def reward_names(functions: Sequence[RewardFunction]) -> list[str]:
    """The names of the functions in metrics: the second and third of one name end in ``_2`` and ``_3``."""
    seen: Counter[str] = Counter()
    names = []
    for name in map(reward_name, functions):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def as_reward_functions(rewards: Any) -> list[RewardFunction]:
    """One or several reward functions as a list.

    Raises:
        UserError: there is none, or one of them is a reward model, or something else that is not a function.
    """
    functions = list(rewards) if isinstance(rewards, list | tuple) else [rewards]
    if not functions:
        raise UserError("reward_funcs is empty: give at least one function, such as exact_answer.")
    for function in functions:
        if isinstance(function, str) or hasattr(function, "forward"):
            what = repr(function) if isinstance(function, str) else type(function).__name__
            raise UserError(
                f"reward_funcs: {what} is a model or its name, and reward models are not supported: give a function "
                "f(prompts, completions, **columns) that runs the model and returns one float for each completion."
            )
        if not callable(function):
            raise UserError(
                f"reward_funcs: {type(function).__name__} is not a function: give f(prompts, completions, **columns) "
                "that returns one float for each completion, or a list of such functions."
            )
    return functions


def reward_columns(problems: Sequence[Problem]) -> dict[str, list[Any]]:
    """The columns that reward functions get: fields and extra columns of the problems, one entry per completion.

    There is no column ``answer`` if no answer is known.

    Args:
        problems: the problem of each completion, so a problem appears once for each of its rollouts.

    Raises:
        UserError: a column of the file has the name of another argument of the call.
    """
    extra = problems[0].extra if problems else {}
    if clash := sorted({"prompts", "completions", "question", "steps", "answer", *CONTEXT} & extra.keys()):
        raise UserError(f"rewards: the problem file has a column {clash[0]!r}, a name that is taken; rename it")
    columns = {name: [problem.extra[name] for problem in problems] for name in extra}
    unknown = bool(problems) and not any(problem.answer for problem in problems)
    fields = ("question", "steps") if unknown else ("question", "steps", "answer")
    own = {name: [getattr(problem, name) for problem in problems] for name in fields}
    return own | columns


def call_reward(
    function: RewardFunction,
    prompts: Sequence[Prompt],
    completions: Sequence[Prompt],
    columns: Mapping[str, Sequence[Any]],
    context: Mapping[str, Any] | None = None,
) -> list[float | None]:
    """The rewards of one function; see `call_rewards`."""
    return call_rewards([function], prompts, completions, columns, context)[0]


def call_rewards(
    functions: Sequence[RewardFunction],
    prompts: Sequence[Prompt],
    completions: Sequence[Prompt],
    columns: Mapping[str, Sequence[Any]],
    context: Mapping[str, Any] | None = None,
) -> list[list[float | None]]:
    """Call reward functions and check what they return. NumPy arrays and tensors count as lists.

    Async functions run concurrently, after the others.

    Args:
        functions: the reward functions.
        prompts: the question of each completion.
        completions: the answers.
        columns: lists with an entry for each completion, by name.
        context: further arguments by name; a function gets those that it can take.

    Returns:
        One row for each function, with a reward or None for each completion.

    Raises:
        UserError: a function needs a column that the problems do not have, raises an exception or exits, or does not
            return one number or None for each completion.
    """

    def given(function: RewardFunction) -> dict[str, Any]:
        further = _accepted(function, context or {})
        _check_parameters(function, {**columns, **further})
        return _copies({"prompts": prompts, "completions": completions, **columns, **further})

    values: dict[int, Any] = {}
    waiting: list[tuple[int, RewardFunction]] = []
    for i, function in enumerate(functions):
        if _is_async(function):
            waiting.append((i, function))
        else:
            with _failures_of(function):
                values[i] = function(**given(function))
    if waiting:
        values |= _concurrently({i: _awaited(function, given(function)) for i, function in waiting})
    return [_rewards_of(function, values[i], len(completions)) for i, function in enumerate(functions)]


def _is_async(function: RewardFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _awaited(function: Any, arguments: Mapping[str, Any]) -> Any:
    with _failures_of(function):
        return await function(**arguments)


def _concurrently(calls: Mapping[int, Coroutine[Any, Any, Any]]) -> dict[int, Any]:
    """The results of coroutines, by the same keys."""

    async def all_results() -> list[Any]:
        tasks = [asyncio.create_task(call) for call in calls.values()]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # when one fails, the others have no use
                task.cancel()

    future = asyncio.run_coroutine_threadsafe(all_results(), _event_loop(os.getpid()))
    try:
        return dict(zip(calls, future.result(), strict=True))
    finally:
        future.cancel()  # after Ctrl-C


@cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """One loop for all async rewards, as in TRL: clients, sessions and semaphores belong to the loop that used them.

    It has a thread of its own, since the main thread of a notebook has a loop already. A forked process lacks the
    thread, and gets another loop.
    """
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="async rewards", daemon=True).start()
    return loop


@contextmanager
def _failures_of(function: RewardFunction) -> Iterator[None]:
    """Turn what a user's function raises into a UserError. It may fail in any way; the cause stays attached."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"reward {reward_name(function)}: {type(error).__name__}: {_shown(error, str)}, raised in {last.filename}, "
            f"line {last.lineno}"
        ) from error


def _rewards_of(function: RewardFunction, values: Any, count: int) -> list[float | None]:
    """The returned values as a list, checked; ``count`` is the number of completions."""
    name = reward_name(function)
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise UserError(
            f"reward {name}: returned {type(values).__name__}; it must return a list with one float or None "
            "for each completion"
        )
    if len(values) != count:
        raise UserError(f"reward {name}: returned {len(values)} rewards for {count} completions")
    return [_reward(value, name, sample) for sample, value in enumerate(values)]


def _accepted(function: RewardFunction, context: Mapping[str, Any]) -> dict[str, Any]:
    """The further arguments that a function takes, by name or as ``**columns``."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a function written in C
        return {}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in context.items() if takes_any or name in parameters}


def _check_parameters(function: RewardFunction, columns: Mapping[str, Any]) -> None:
    """Raise UserError if the function cannot be called with prompts, completions and these columns."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C
        return
    try:
        signature.bind(prompts=[], completions=[], **columns)
    except TypeError as error:
        arguments = ", ".join(["prompts", "completions", *columns])
        raise UserError(
            f"reward {reward_name(function)}: {error}. It is called with {arguments}: name the arguments that it "
            "needs, and add **columns for the others."
        ) from error


def _copies(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Copies that a function can change without changing the problems. A value that repeats is copied once."""
    memo: dict[int, Any] = {}
    return {
        name: [deepcopy(value, memo) if isinstance(value, list | dict) else value for value in values]
        if isinstance(values, list | tuple)
        else values
        for name, values in columns.items()
    }


def _reward(value: Any, name: str, sample: int) -> float | None:
    """The value as a float, or None.

    Raises:
        UserError: it is neither a number of usable size nor None.
    """
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:  # an int or a Fraction beyond float's range
        number = math.inf
    except Exception:  # a number class of the user's own
        number = math.nan
    if math.isfinite(number) and abs(number) <= LARGEST_REWARD:
        return number
    raise UserError(
        f"reward {name}: returned {_shown(value, repr)} for sample {sample}; it must be a finite number between "
        f"-{LARGEST_REWARD:g} and {LARGEST_REWARD:g}, or None to skip the sample"
    )


def _shown(value: Any, show: Callable[[Any], str]) -> str:
    """The value as text for a message. The text is made by a user's class, which may fail."""
    try:
        text = show(value)
    except (Exception, SystemExit):
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 200 else f"{text[:200]}..."


def reward_statistics(functions: Sequence[RewardFunction], rows: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """TRL's ``rewards/{name}/mean`` and ``rewards/{name}/std``, over the completions that each function judged."""
    statistics = {}
    for name, row in zip(reward_names(functions), rows, strict=True):
        judged = [value for value in row if value is not None]
        if not judged:
            continue
        statistics[f"rewards/{name}/mean"] = fmean(judged)
        statistics[f"rewards/{name}/std"] = stdev(judged) if len(judged) > 1 else 0.0
    return statistics


def combine_rewards(weights: Sequence[float], rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The weighted sum of all reward functions for each completion, by TRL's rules: a None adds nothing.

    None where every function returned None: such a completion has no part in the update.

    Args:
        weights: one per function.
        rows: what `call_rewards` returned, one row per function.

    Raises:
        UserError: functions and weights differ in number, or a sum is too large.
    """
    if not rows or len(rows) != len(weights):
        raise UserError(
            f"rewards: {len(rows)} reward functions and {len(weights)} reward_weights; "
            "give at least one function and a weight for each"
        )
    rewards: list[float | None] = []
    for sample, values in enumerate(zip(*rows, strict=True)):
        terms = [weight * value for weight, value in zip(weights, values, strict=True) if value is not None]
        if not terms:
            rewards.append(None)
            continue
        total = sum(terms)
        if not abs(total) <= LARGEST_REWARD:
            raise UserError(
                f"rewards: the weighted sum for sample {sample} is {total:g}; lower reward_weights so that it "
                f"stays between -{LARGEST_REWARD:g} and {LARGEST_REWARD:g}"
            )
        rewards.append(total)
    return rewards


def try_rewards(
    functions: Sequence[RewardFunction],
    weights: Sequence[float],
    problems: Sequence[Problem],
    context: Callable[[Sequence[str]], Mapping[str, Any]] = lambda completions: {},
) -> None:
    """Call the functions on the right answers of two problems, so that faulty ones are found before training.

    Args:
        functions: the reward functions.
        weights: one for each of them.
        problems: the first two are used.
        context: the further arguments of `call_rewards`, from completions.

    Raises:
        UserError: see `call_reward`, `reward_columns` and `combine_rewards`.
    """
    few = problems[:2]
    prompts = [problem.prompt for problem in few]
    right = [f"{MARKER} {problem.answer}" for problem in few]
    said = [completion_of(problem, text) for problem, text in zip(few, right, strict=True)]
    rows = call_rewards(functions, prompts, said, reward_columns(few), context(right))
    combine_rewards(weights, rows)


def load_reward(path: str) -> RewardFunction:
    """Import a reward function from ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        UserError: the text has another form, the module cannot be imported, or it has no such function.
    """
    example = "dropout_grpo.data.rewards:exact_answer"
    function: RewardFunction = load_object(path, noun="function", what=f"reward {path!r}", example=example)
    return function
