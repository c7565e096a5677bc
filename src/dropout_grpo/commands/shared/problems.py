"""The problems of a command: from files and datasets where given, else made by the built-in task."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from dropout_grpo.config.data import DataConfig
from dropout_grpo.config.needs import changed, within
from dropout_grpo.data.files import load_problems
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.latent.tokens import CHAT, most_common, unknown_words
from dropout_grpo.tasks.registry import TASKS
from dropout_grpo.training.progress import console


def problems_of(data: DataConfig, wanted: Sequence[str]) -> dict[str, list[Problem]]:
    """Problems of the wanted splits.

    Raises:
        UserError: a file is missing or malformed, or problems to learn from are given and none to measure on.
    """
    given = {name: getattr(data, name) for name in wanted}
    learnt = [name for name in ("train", "grpo") if given.get(name) is not None]
    measured = [name for name in ("valid", "test") if name in given and given[name] is None]
    if learnt and measured:
        raise UserError(
            f"data.{learnt[0]} is given and data.{measured[0]} is not: the model would be measured on problems of the "
            f"built-in task. Give data.{measured[0]} too."
        )
    unnamed = [name for name, source in given.items() if source is None]
    if 0 < len(unnamed) < len(given):
        names = " and ".join(f"data.{name}" for name in unnamed)
        console.print(f"{names}: made by the built-in task {data.task}, since no file is given", markup=False)
    made = TASKS[data.task].make_splits(getattr(data, data.task), unnamed)
    problems = {name: made[name] if source is None else _load(name, data) for name, source in given.items()}
    for measured_on, seen in (("valid", ("train", "grpo")), ("test", ("train", "grpo", "valid"))):
        for name in seen:
            if measured_on in problems and name in problems and given[name] is not None:
                warn_of_overlap(
                    problems[measured_on],
                    place_of(data, measured_on),
                    problems[name],
                    place_of(data, name),
                )
    return problems


def settings_without_effect(data: DataConfig, wanted: Collection[str], typed: Collection[str]) -> Iterator[str]:
    """A warning if the command line names settings of a built-in task, which makes none of the wanted splits."""

    def told(task: str) -> list[str]:
        return [one for one in changed(getattr(data, task), f"data.{task}") if within(one.split("=")[0], typed)]

    if others := [one for task in TASKS if task != data.task for one in told(task)]:
        yield f"warning: {', '.join(others)}: no effect; data.task is {data.task}."
    settings = told(data.task)
    if settings and wanted and all(getattr(data, name) is not None for name in wanted):
        yield f"warning: {', '.join(settings)}: no effect; all problems of this command come from files."


def place_of(data: DataConfig, split: str) -> str:
    """The name of a split in messages: its option, with the sources if any are given."""
    return f"data.{split} {', '.join(data.sources(split))}".rstrip()


def warn_of_overlap(measured: Sequence[Problem], measured_place: str, seen: Sequence[Problem], seen_place: str) -> None:
    """Print a warning if questions to measure on are also among those that training or validation has used.

    Args:
        measured: problems to measure on.
        measured_place: their name in the warning.
        seen: problems that training or validation uses.
        seen_place: their name in the warning.
    """
    questions = {_normalized(problem.question) for problem in seen}
    shared = sum(_normalized(problem.question) in questions for problem in measured)
    if shared:
        console.print(
            f"warning: {shared:,} of {len(measured):,} questions of {measured_place} are also in {seen_place}: what is "
            "measured on them does not hold for unseen problems.",
            markup=False,
        )


def _normalized(question: str) -> str:
    return " ".join(question.split()).casefold()


def _load(split: str, data: DataConfig) -> list[Problem]:
    source, most = getattr(data, split), data.max_problems
    if isinstance(source, str):
        return load_problems(source, columns=data.columns, require_steps=split == "train", max_problems=most)
    sources = data.weighted(split)
    parts = [
        load_problems(one.source, columns=one.columns or data.columns, require_steps=False, max_problems=most)
        for one in sources
    ]
    return Mixture(parts, [one.weight for one in sources])


def vocabulary(data: DataConfig) -> list[str]:
    """The words of the built-in task, for a model made from scratch."""
    return TASKS[data.task].vocabulary(getattr(data, data.task))


def require_readable(
    tokenizer: PreTrainedTokenizerBase, data: DataConfig, prompt_format: str, problems: Mapping[str, Sequence[Problem]]
) -> None:
    """Check, before a run begins, that the tokenizer knows all words of the splits.

    Raises:
        UserError: see ``require_known_words``.
    """
    plain = prompt_format != CHAT and all(one.messages is None for split in problems.values() for one in split)
    if data.chat_template_kwargs and plain:
        console.print(
            "warning: data.chat_template_kwargs: no effect; it needs data.chat_template true, or questions that are "
            "conversations.",
            markup=False,
        )
    for name, split in problems.items():
        what = ", ".join(data.sources(name)) or f"{data.task} {name}"
        require_known_words(tokenizer, split, what, steps=name == "train")


def require_known_words(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], what: str, *, steps: bool = False
) -> None:
    """Check that the tokenizer knows every word of the problems. It would silently read others as its unknown token.

    Byte-level tokenizers have no unknown words. Slow tokenizers do not report where a token came from and are not
    checked.

    Args:
        tokenizer: the tokenizer of the model that reads the problems.
        problems: their questions and answers are checked.
        what: name of the problems, for the message.
        steps: check the steps too, which only the curriculum reads.

    Raises:
        UserError: names the unknown words, most frequent first, and the number of problems that have one.
    """
    words: Counter[str] = Counter()
    concerned = 0
    for problem in problems:
        found = unknown_words(tokenizer, [problem.question, *(problem.steps if steps else ()), problem.answer])
        words += found
        concerned += bool(found)
    if words:
        raise UserError(
            f"{what}: {concerned} of {len(problems)} problems have words that the model's tokenizer does not know and "
            f"would read as {tokenizer.unk_token}: {most_common(words)}; use problems of the task that the tokenizer "
            "was made for (data.task) with the same settings (such as data.word_problems.max_number), or a pretrained "
            "model (model.name_or_path)"
        )
