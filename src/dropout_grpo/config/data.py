"""Options of the problems: files, datasets, and the settings of the built-in tasks."""

from dataclasses import dataclass, field, make_dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from dropout_grpo.config.ranges import check_ranges, ranged
from dropout_grpo.data.formats import Columns
from dropout_grpo.errors import UserError
from dropout_grpo.tasks.registry import DEFAULT_TASK, TASKS

if TYPE_CHECKING:
    TaskName = str
    TaskSettings: Any
else:
    TaskName = Literal[tuple(TASKS)]
    TaskSettings = make_dataclass(
        "TaskSettings",
        [(name, task.config, field(default_factory=task.config)) for name, task in TASKS.items()],
        namespace={"__doc__": "\n".join(["Args:", *(f"    {name}: settings of the task {name}." for name in TASKS)])},
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True, kw_only=True)
class WeightedSource:
    """One of several sources of GRPO problems.

    Args:
        source: file or hf: dataset.
        weight: share of the questions that come from it, up to a common factor.
        columns: names of its columns; data.columns when not given.
    """

    source: str
    weight: float = ranged(1.0, above=0)
    columns: Columns | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "data.grpo")


@dataclass(frozen=True, kw_only=True)
class DataConfig(TaskSettings):  # a field for each task of the registry
    """Where problems come from. The built-in task makes the splits that are not given.

    A source is a file (.json or .jsonl: Coconut's records, GSM8K or ProntoQA as published; .txt: GSM8K-Aug) or a
    Hugging Face dataset, hf:NAME_OR_FOLDER[:CONFIG][@SPLIT], for example hf:openai/gsm8k:main@train.

    Args:
        train: file or hf: dataset of problems with steps, for the curriculum.
        grpo: file or hf: dataset for GRPO, where steps are not needed; or a list of them, each with source and weight,
            or without weights, [a.json,b.json].
        valid: file or hf: dataset to validate on; or a list of them, whose metrics are eval/NAME/pass@1 by file.
        test: file or hf: dataset to measure on.
        columns: names of the columns in these files and datasets.
        chat_template: put questions into a user's turn of the tokenizer's chat template, for Instruct models; if not
            given, as the checkpoint was trained. A question that is a conversation, [{"role": "user", "content":
            ...}], always goes through the template.
        chat_template_kwargs: variables of the chat template, such as {enable_thinking: false} for Qwen3. They are
            written into the template, and saved with the checkpoint.
        max_problems: number of problems that are read of each file or dataset, the first ones; all if not given.
        max_valid: number of validation problems of each file that are used during training.
        task: the built-in task. The option of the same name, such as prosqa.seed, holds its settings.
    """

    train: str | None = None
    grpo: str | tuple[WeightedSource, ...] | tuple[str, ...] | None = None
    valid: str | tuple[str, ...] | None = None
    test: str | None = None
    columns: Columns = field(default_factory=Columns)
    chat_template: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_problems: int | None = ranged(None, at_least=1)
    max_valid: int = ranged(500, at_least=1)
    task: TaskName = DEFAULT_TASK

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        if self.grpo == ():
            raise UserError("data.grpo is an empty list: name at least one source, or leave it out.")
        if self.valid == ():
            raise UserError("data.valid is an empty list: name at least one file, or leave it out.")
        for split in ("train", "test"):
            if (getattr(self, split) or "").startswith(("[", "{")):
                raise UserError(
                    f"data.{split} {getattr(self, split):.80}: it takes one file or dataset; join the files."
                )
        lists = {"grpo": "[{source: a.json,weight: 2},{source: b.json}] or [a.json,b.json]", "valid": "[a.json,b.json]"}
        for split, form in lists.items():
            for source in self.sources(split):
                if source.startswith(("[", "{")):  # a list that cannot be read as one
                    raise UserError(f"data.{split} {source:.80}: a list has the form {form}.")
        names = self.valid_names
        if len(set(names)) < len(names):
            raise UserError(
                f"data.valid: metrics are named by file, and two are named alike ({', '.join(names)}): rename one."
            )

    @property
    def valid_names(self) -> tuple[str, ...]:
        """The names in metrics of the sources of ``valid``: the files' names without folder and suffix."""
        return tuple(
            PurePath(source).name.removeprefix("hf:") if source.startswith("hf:") else PurePath(source).stem
            for source in self.sources("valid")
        )

    def sources(self, split: str) -> tuple[str, ...]:
        """The files and datasets of a split; none if the built-in task makes it."""
        return tuple(part.source for part in self.weighted(split))

    def weighted(self, split: str) -> tuple[WeightedSource, ...]:
        """The sources of a split with their weights, which are 1 if not given."""
        given = getattr(self, split)
        parts = given if isinstance(given, tuple) else () if given is None else (given,)
        return tuple(WeightedSource(source=part) if isinstance(part, str) else part for part in parts)
