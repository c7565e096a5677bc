"""``dropout-grpo demo``: data, curriculum, Dropout-GRPO, the same GRPO without masks, measures, report."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.shared.options import add_json, add_recipe
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.data.answers import answers_match
from dropout_grpo.data.files import save_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import SAME_COMMAND, UserError
from dropout_grpo.runs.files import DATA_FOLDER
from dropout_grpo.tasks.base import SPLIT_NAMES
from dropout_grpo.training.interrupt import Interrupted, handled_signals
from dropout_grpo.training.machine import keep_freed_memory, number_of_threads
from dropout_grpo.training.progress import console, tell

if TYPE_CHECKING:
    from dropout_grpo.commands.shared.context import Context
    from dropout_grpo.evaluation.answering import ModelAnswers
    from dropout_grpo.latent.model import LatentModel
    from dropout_grpo.runs.folder import RunFolder

HELP = "make data, train a Coconut, post-train it with Dropout-GRPO, measure, report"
UNUSED = ()
DEFAULT_RECIPE = "word-problems"

_FIRST = ("recipe", "run_dir", "seed", "smoke", "resume", "device", "json", "exploration.p", "grpo.max_steps")

_T = TypeVar("_T")
_COLLAPSE_PROBLEMS = 64
_FLIPS_KEPT = 20
_KEPT = {"baseline": "coconut", "dropout_grpo": "dropout_grpo"}
"""The checkpoints of the arms whose thoughts are read."""


def add_options(parser: ArgumentParser) -> None:
    parser.description = (
        f"{parser.description} Without --recipe it uses the recipe {DEFAULT_RECIPE}; the defaults below are those of "
        "this recipe."
    )
    add_json(parser)
    add_recipe(parser, hidden=UNUSED, first=_FIRST)


def run(options: Namespace) -> None:
    from dropout_grpo.commands.shared.context import started
    from dropout_grpo.distributed.processes import is_main

    with started(options, UNUSED, SPLIT_NAMES) as recipe:
        results = demo(recipe)
        if options.json and is_main():
            print(json.dumps(results))


def demo(recipe: Recipe) -> dict[str, Any]:
    """Run everything; returns ``results.json``.

    Raises:
        UserError: bad options or files, before anything is trained.
    """
    import torch

    from dropout_grpo.commands.shared.context import Context
    from dropout_grpo.commands.shared.measure import measure, require_askable
    from dropout_grpo.commands.shared.model_card import describe_measured
    from dropout_grpo.commands.shared.models import format_of, refuse_lora_from_scratch, starting_tokenizer
    from dropout_grpo.commands.shared.problems import problems_of, require_readable, vocabulary
    from dropout_grpo.commands.shared.thoughts import thoughts_of_run
    from dropout_grpo.commands.shared.training import grpo_trainer, train_curriculum, train_grpo
    from dropout_grpo.distributed.device import default_device
    from dropout_grpo.distributed.processes import is_main, on_main, size
    from dropout_grpo.evaluation.measures import sample, summarize
    from dropout_grpo.evaluation.statistics import compare
    from dropout_grpo.exploration.base import NoExploration
    from dropout_grpo.exploration.build import build_exploration
    from dropout_grpo.report import write_report
    from dropout_grpo.rl.collapse import collapse
    from dropout_grpo.runs.provenance import provenance

    exploration = build_exploration(recipe.exploration)
    if isinstance(exploration, NoExploration) or recipe.exploration.p == 0:
        raise UserError("the demo compares masks with none: give it an exploration.kind, and a p above 0.")
    refuse_lora_from_scratch(recipe)
    if recipe.lora.r is not None and recipe.grpo.beta > 0:
        raise UserError("the demo trains one adapter throughout, and grpo.beta needs a merge before GRPO: set it to 0.")
    clock = Clock()
    problems = clock("data", lambda: problems_of(recipe.data, SPLIT_NAMES))
    tokenizer = starting_tokenizer(recipe.model, vocabulary(recipe.data), recipe.data.chat_template_kwargs)
    require_readable(tokenizer, recipe.data, format_of(recipe.data.chat_template), problems)
    context = Context.start("demo", recipe, exploration, device=default_device(), problems=problems)
    recipe, run = context.recipe, context.run
    if is_main():
        (run.path / DATA_FOLDER).mkdir(exist_ok=True)
        for name, split in problems.items():
            save_problems(run.path / DATA_FOLDER / f"{name}.json", split)
    train, grpo, valid, test = (problems[name] for name in SPLIT_NAMES)

    def check(model: LatentModel) -> None:
        grpo_trainer(recipe, run, exploration, model, grpo, valid, "dropout_grpo")
        require_askable(model, test, "test", recipe)

    def finished_or(name: str, make: Callable[[], LatentModel]) -> LatentModel:
        """The checkpoint of that name, of a resumed run or of the second process; made if there is none."""
        return _checkpoint(context, name) if run.checkpoint(name).is_dir() else make()

    def arm(part: str, context: Context) -> LatentModel:
        def make() -> LatentModel:
            return train_grpo(context, _checkpoint(context, "coconut"), grpo, valid, part)

        return clock(part, lambda: finished_or(part, make))

    def test_of(name: str, model: LatentModel, *, plain_only: bool = False) -> list[ModelAnswers]:
        title = f"test of {name}"
        return clock("evaluation", lambda: measure(context, model, test, title, plain_only=plain_only))

    model = clock(
        "sft", lambda: finished_or("coconut", lambda: train_curriculum(context, train, valid, tokenizer, check))
    )
    before = test_of("the baseline", model)
    nothing = clock("evaluation", lambda: collapse(model, test[:_COLLAPSE_PROBLEMS], recipe.grpo))

    # The two arms run at the same time where there are two threads. A resumed run seldom has both left to do.
    parallel = torch.get_num_threads() > 1 and context.device.type == "cpu" and not recipe.resume and size() == 1
    log = run.path / "temperature_only.log"
    with second_process(log, train_temperature_only, recipe) if parallel else nullcontext(lambda: None) as wait:
        model = arm("dropout_grpo", context)
        after = test_of("dropout-grpo", model)
        clock("temperature_only", wait)
    model = arm("temperature_only", context.exploring(NoExploration()))
    plain = test_of("temperature-only", model, plain_only=True)

    results = {
        "seed": recipe.seed,
        "n_test": len(test),
        "baseline": summarize(before),
        "dropout_grpo": summarize(after),
        "temperature_only": summarize(plain),
        "collapse": nothing,
        "comparison": compare(correct(before), correct(after)),
        "comparison_temperature_only": compare(correct(plain), correct(after)),
        "seconds": clock.seconds(),
        **provenance(),
    }
    run.write_results(results)
    write_flips(run, before, after)
    arms = {"baseline": before, "dropout_grpo": after, "temperature_only": plain}
    run.write_samples([{"arm": arm, **sample(f"test: {arm}", a)} for arm, said in arms.items() for a in said])
    models = {name: (_checkpoint(context, kept), arms[name]) for name, kept in _KEPT.items()}
    run.write_thoughts(thoughts_of_run(context, flips_of(before, after), models))
    report = on_main(lambda: str(write_report(run.path)))
    on_main(lambda: describe_measured(run.path, "demo"))
    for name, said in arms.items():
        right = sum(correct(said))
        tell(f"{name}: {right} of {len(test)} test problems right, {100 * right / len(test):.1f} %")
    if is_main():
        tell(what_next(run.path, report, *to_ask(before, after)))
    return results


def to_ask(before: Sequence[ModelAnswers], after: Sequence[ModelAnswers]) -> tuple[Problem, str]:
    """A problem to ask the trained model, and what it shows: one that training has turned from wrong to right.

    Preferably both the plain answer and the vote of the masks were wrong and are right, and most masks are right: then
    other masks agree.

    Args:
        before: the baseline's answers.
        after: the trained model's answers to the same problems.
    """

    from dropout_grpo.evaluation.answering import vote

    def voted(answered: ModelAnswers) -> bool:
        return answers_match(vote(answered), answered.problem.answer, answered.tolerance)

    pairs = [*zip(before, after, strict=True)]
    plain = [(a, b) for a, b in pairs if not a.plain_correct and b.plain_correct]
    both = [(a, b) for a, b in plain if not voted(a) and voted(b)]
    of_vote = [(a, b) for a, b in pairs if not voted(a) and voted(b)]
    for found, who in ((both, "plain answer and vote"), (plain, "plain answer"), (of_vote, "vote")):
        if found:
            clearest = max((b for _, b in found), key=lambda b: sum(b.samples_correct()))
            return clearest.problem, f"GRPO turned its {who} from wrong to right"
    return after[0].problem, "GRPO turned no test problem from wrong to right"


def what_next(run: Path, report: str, problem: Problem, shows: str) -> str:
    """How to look at the report, and what to try next.

    Args:
        run: the run folder of the demo.
        report: its report.
        problem: one that the model can be asked.
        shows: what its answer shows.
    """
    question = problem.question
    program = shlex.quote(sys.argv[0]) if Path(sys.argv[0]).name == "dropout-grpo" else "dropout-grpo"
    checkpoint = shlex.quote(str(run / "checkpoints" / "dropout_grpo"))
    files, again = shlex.quote(f"[{run / DATA_FOLDER / 'test.json'}]"), shlex.quote(f"{run}-eval")
    measure_it = f"eval --checkpoint {checkpoint} --files {files} --run_dir {again}"
    return (
        f"report: {report}\n"
        f"open it in a browser:   python3 -m webbrowser {shlex.quote(Path(report).resolve().as_uri())}\n"
        f"ask the model:          {program} ask {checkpoint} {shlex.quote(question)}\n"
        f"                        right answer: {problem.answer} ({shows})\n"
        f"measure it again:       {program} {measure_it}\n"
        f"look inside:            {program} inspect {checkpoint}\n"
        "other models and data:  README.md, 'Your own model, data, reward'"
    )


def _checkpoint(context: Context, name: str) -> LatentModel:
    """A checkpoint of the run, on the context's device."""
    from dropout_grpo.commands.shared.models import load_model

    return load_model(context.run.checkpoint(name), device=context.device)


def train_temperature_only(recipe: Recipe) -> None:
    """Train the arm without masks in a second process, from the checkpoint ``coconut`` of the run.

    Args:
        recipe: the recipe with the first process's choices, so that both arms use the same precision and attention.
    """
    from dropout_grpo.commands.shared.context import Context
    from dropout_grpo.commands.shared.problems import problems_of
    from dropout_grpo.commands.shared.training import train_grpo
    from dropout_grpo.distributed.device import default_device
    from dropout_grpo.exploration.base import NoExploration

    context = Context.start("demo", recipe, NoExploration(), device=default_device(), joins=True)
    problems = problems_of(recipe.data, ("grpo", "valid"))
    model = _checkpoint(context, "coconut")
    train_grpo(context, model, problems["grpo"], problems["valid"], "temperature_only")


@contextmanager
def second_process(log: Path, work: Callable[..., None], *args: Any) -> Iterator[Callable[[], None]]:
    """Run ``work(*args)`` in a second process; both get half of the threads, which small models can't share well.

    Yields a function that waits for the end of the work. A block that is left without it stops the process, which
    finishes and saves the update at hand.

    Args:
        log: file that gets the process's standard error, since two progress bars do not fit on one terminal.
        work: a function of a module, since the process imports it.
        *args: its arguments.

    Raises:
        UserError: from the function: the work failed. The message has the last line of the log.
    """
    import torch

    threads = torch.get_num_threads()
    process = multiprocessing.get_context("spawn").Process(
        target=_in_second_process, args=(log, threads // 2, work, args), daemon=True
    )

    def wait() -> None:
        process.join()
        if process.exitcode != 0:
            *_, last = [f"exit status {process.exitcode}", *log.read_text(encoding="utf-8").splitlines()]
            raise UserError(f"the second process failed, see {log}: {last} Continue with {SAME_COMMAND}.")

    process.start()
    try:
        with number_of_threads(threads - threads // 2):
            yield wait
    finally:
        process.terminate()
        process.join()


def _in_second_process(log: Path, threads: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch

    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        with handled_signals():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the first one ends this one
            work(*args)
    except Interrupted as interrupt:
        console.print(str(interrupt), markup=False)
        sys.exit(interrupt.status)


def _end_with_parent() -> None:
    """A parent that is killed cannot end this process, and a resumed run must not find it running."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a child"
    parent.join()
    os._exit(1)


class Clock:
    """Counts the seconds of each part; parts of the same name add up."""

    def __init__(self) -> None:
        self._start, self._parts = time.monotonic(), {}  # type: tuple[float, dict[str, float]]

    def __call__(self, part: str, work: Callable[[], _T]) -> _T:
        """Do the work, count its time and return its result."""
        start = time.monotonic()
        done = work()
        self._parts[part] = self._parts.get(part, 0.0) + time.monotonic() - start
        return done

    def seconds(self) -> dict[str, float]:
        """Seconds by part, with ``total``."""
        whole = {**self._parts, "total": time.monotonic() - self._start}
        return {name: round(seconds, 1) for name, seconds in whole.items()}


def correct(answered: Sequence[ModelAnswers]) -> list[bool]:
    """Whether the plain network solves each problem."""
    return [a.plain_correct for a in answered]


def flips_of(before: Sequence[ModelAnswers], after: Sequence[ModelAnswers]) -> dict[str, list[int]]:
    """Indices of a few problems that training turned from wrong to right and back, and that stayed as they were."""
    names = {(False, True): "gained", (True, False): "lost", (True, True): "right", (False, False): "wrong"}
    kinds: dict[str, list[int]] = {name: [] for name in names.values()}
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        kinds[names[a.plain_correct, b.plain_correct]].append(i)
    counts = {"gained": 2, "lost": 1, "right": 1, "wrong": 1}
    return {kind: kinds[kind][:count] for kind, count in counts.items()}


def write_flips(run: RunFolder, before: Sequence[ModelAnswers], after: Sequence[ModelAnswers]) -> None:
    """Write flips.jsonl: problems that GRPO turned from wrong to right or back, with the votes of their masks."""
    from dropout_grpo.evaluation.answering import vote_table

    lines = []
    for direction in ("gained", "lost"):
        flipped = [
            (a, b)
            for a, b in zip(before, after, strict=True)
            if a.plain_correct != b.plain_correct and b.plain_correct == (direction == "gained")
        ]
        for a, b in flipped[:_FLIPS_KEPT]:
            record = {
                "question": a.problem.question,
                "answer": a.problem.answer,
                "direction": direction,
                "before": {"plain": a.plain.strip(), "votes": vote_table(a)},
                "after": {"plain": b.plain.strip(), "votes": vote_table(b)},
            }
            lines.append(record)
    run.write_flips(lines)
