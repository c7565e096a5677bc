"""The main job: data, curriculum, Dropout-GRPO, the same without masks, measures, report."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch

from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import Answered, vote_table
from dropout_grpo.evaluation.measures import summarize
from dropout_grpo.evaluation.paired import compare
from dropout_grpo.exploration.base import Exploration, NoExploration
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.jobs.parts import (
    SPLITS,
    device,
    grpo_trainer,
    measure,
    problems_of,
    refuse_lora_from_scratch,
    require_askable,
    require_readable,
    starting_tokenizer,
    train_curriculum,
    train_grpo,
    vocabulary,
)
from dropout_grpo.jobs.recipe import Recipe
from dropout_grpo.jobs.side_process import beside
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.problems.files import save_problems
from dropout_grpo.report import write_report
from dropout_grpo.rl.collapse import collapse
from dropout_grpo.runs.folder import RunFolder, provenance, write_text
from dropout_grpo.training.progress import console

_T = TypeVar("_T")
_COLLAPSE_PROBLEMS = 64
_FLIPS_KEPT = 20


def demo(recipe: Recipe) -> dict[str, Any]:
    """Run everything; returns what ``results.json`` holds.

    Raises:
        UserError: bad options or files, before anything is trained.
    """
    exploration = build_exploration(recipe.exploration)
    if isinstance(exploration, NoExploration) or recipe.exploration.p == 0:
        raise UserError("the demo compares masks with none: give it an exploration.kind, and a p above 0.")
    refuse_lora_from_scratch(recipe)
    if recipe.lora.r is not None and recipe.grpo.beta > 0:
        raise UserError("the demo trains one adapter throughout, and grpo.beta needs a merge before GRPO: set it to 0.")
    clock = Clock()
    problems = clock("data", lambda: problems_of(recipe.data, SPLITS))
    require_readable(starting_tokenizer(recipe.model, vocabulary(recipe.data)), recipe.data, problems)
    run = RunFolder(recipe.run_dir, "demo", recipe, resume=recipe.resume, report_to=recipe.report_to)
    (run.path / "data").mkdir(exist_ok=True)
    for name, split in problems.items():
        save_problems(run.path / "data" / f"{name}.json", split)
    train, grpo, valid, test = (problems[name] for name in SPLITS)

    def check(model: LatentModel) -> None:
        grpo_trainer(recipe, run, model, exploration, grpo, valid, "dropout_grpo")
        require_askable(model, test, "test", recipe.evaluation)

    def again(name: str) -> LatentModel:
        return LatentModel.from_pretrained(run.checkpoint(name))

    def finished_or(name: str, make: Callable[[], LatentModel]) -> LatentModel:
        return again(name) if run.checkpoint(name).is_dir() else make()  # of a resumed run, or made beside this one

    model = clock("sft", lambda: finished_or("coconut", lambda: train_curriculum(recipe, run, train, valid, check)))
    before = clock("evaluation", lambda: measure(recipe, model, test, exploration, "test of the baseline"))
    nothing = clock("evaluation", lambda: collapse(model, test[:_COLLAPSE_PROBLEMS], recipe.grpo))

    def arm(part: str, masks: Exploration) -> LatentModel:
        def train() -> LatentModel:
            return train_grpo(recipe, run, again("coconut"), masks, grpo, valid, part)

        return clock(part, lambda: finished_or(part, train))

    # one arm beside the other, where there are threads for two; what a resumed run has to do is seldom both
    apart = torch.get_num_threads() > 1 and device().type == "cpu" and not recipe.resume
    log = run.path / "temperature_only.log"
    with beside(log, train_temperature_only, recipe) if apart else nullcontext(lambda: None) as wait:
        model = arm("dropout_grpo", exploration)
        after = clock("evaluation", lambda: measure(recipe, model, test, exploration, "test of dropout-grpo"))
        clock("temperature_only", wait)
    model = arm("temperature_only", NoExploration())
    plain = clock("evaluation", lambda: measure(recipe, model, test, None, "test of temperature-only"))

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
    console.print(f"report: {write_report(run.path)}", markup=False)
    return results


def train_temperature_only(recipe: Recipe) -> None:
    """The arm without masks, from the checkpoint ``coconut`` of the run, in a process of its own."""
    run = RunFolder(recipe.run_dir, "demo", recipe, resume=True, report_to=recipe.report_to)
    problems = problems_of(recipe.data, ("grpo", "valid"))
    model = LatentModel.from_pretrained(run.checkpoint("coconut"))
    train_grpo(recipe, run, model, NoExploration(), problems["grpo"], problems["valid"], "temperature_only")


class Clock:
    """Seconds of each part; parts of the same name add up."""

    def __init__(self) -> None:
        self._start, self._parts = time.monotonic(), {}  # type: tuple[float, dict[str, float]]

    def __call__(self, part: str, work: Callable[[], _T]) -> _T:
        """Do the work and count its time."""
        start = time.monotonic()
        done = work()
        self._parts[part] = self._parts.get(part, 0.0) + time.monotonic() - start
        return done

    def seconds(self) -> dict[str, float]:
        """By part, with ``total``."""
        whole = {**self._parts, "total": time.monotonic() - self._start}
        return {name: round(seconds, 1) for name, seconds in whole.items()}


def correct(answered: Sequence[Answered]) -> list[bool]:
    """Which problems the plain network solves."""
    return [a.plain_correct for a in answered]


def write_flips(run: RunFolder, before: Sequence[Answered], after: Sequence[Answered]) -> None:
    """flips.jsonl: problems that went from wrong to right and back, with the votes of their masks."""
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
            lines.append(json.dumps(record) + "\n")
    write_text(run.path / "flips.jsonl", "".join(lines))
