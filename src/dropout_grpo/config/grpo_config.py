"""`GRPOConfig`: the options of GRPO for Python, and those that are in TRL's config but elsewhere in this package."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

from dropout_grpo.config.choices import TrackerName
from dropout_grpo.config.from_trl import accepted
from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.config.needs import warn_without_effect
from dropout_grpo.config.ranges import ranged
from dropout_grpo.errors import UserError


class _GivenInPython(GRPOOptions):
    SECTION: ClassVar[str] = ""


class _NamesOfTRL(type):
    """Calls a config with the arguments that `from_trl.accepted` makes of TRL's."""

    def __call__(cls, output_dir: str | Path | None = None, **given: Any) -> Any:
        names = tuple(option.name for option in fields(cast(Any, cls)))
        given.pop("_named", None)  # of vars(config)
        replaced = len(given) >= len(names) - 1  # dataclasses.replace gives all of them
        given = accepted(given, names)
        config = super().__call__(output_dir, **given)
        if not replaced:
            object.__setattr__(config, "_named", frozenset(given))
        return config


@dataclass(frozen=True)
class GRPOConfig(GRPOOptions, metaclass=_NamesOfTRL):
    """Options of ``GRPOTrainer``: those of GRPO, and those that are in TRL's config but elsewhere in this package.

    Values of TRL that have the same meaning here are accepted (``scale_rewards=True``, ``eval_strategy="no"``,
    ``use_vllm=False``). Other names are refused with what this package has instead; see ``docs/from-trl.md``.

    Args:
        output_dir: the run folder; the trainer's ``run``.
        seed: the trainer's ``seed``.
        bf16: the trainer's ``bf16``.
        report_to: experiment trackers: names, ``"all"`` that are installed, or ``"none"``.
        num_train_epochs: passes over the questions, instead of ``max_steps``.
        per_device_train_batch_size: answers of one process in one forward and backward pass. A step then has this many
            answers, times ``gradient_accumulation_steps``, times the number of processes: it sets ``prompts_per_step``
            and ``micro_batch_size``, which is at least one group. Give a smaller ``micro_batch_size`` too where memory
            is short.
        gradient_accumulation_steps: number of forward and backward passes in an update. Without
            ``per_device_train_batch_size`` the batch stays ``prompts_per_step`` questions, and is split into this many
            passes.
        chat_template_kwargs: variables of the chat template, such as ``{"enable_thinking": False}`` for Qwen3. They are
            written into the template of the model's tokenizer, and saved with it.
        metric_for_best_model: a validation metric such as ``pass@1``, for callbacks.
        greater_is_better: whether more of it is better.
    """

    output_dir: str | Path | None = None
    _: KW_ONLY
    seed: int | None = ranged(None, at_least=0)
    bf16: bool | None = None
    report_to: str | Sequence[str] | None = None
    num_train_epochs: float | None = ranged(None, above=0)
    per_device_train_batch_size: int | None = ranged(None, at_least=1)
    gradient_accumulation_steps: int | None = ranged(None, at_least=1)
    chat_template_kwargs: Mapping[str, Any] | None = None
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None

    SECTION: ClassVar[str] = ""
    _named: ClassVar[frozenset[str]] = frozenset()  # of an object: the options that it was made with

    def __post_init__(self) -> None:
        """Check as ``GRPOOptions`` does."""
        self._check()
        warn_without_effect(self, above=1)

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """The trackers that ``report_to`` names.

        Raises:
            UserError: an unknown one.
        """
        wanted = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or ())
        if wanted == ["all"]:
            wanted = [name for name in get_args(TrackerName) if find_spec(name) is not None]
        wanted = [] if wanted == ["none"] else wanted
        if unknown := [name for name in wanted if name not in get_args(TrackerName)]:
            raise UserError(f"report_to: {unknown[0]!r} is not one of {', '.join(get_args(TrackerName))}.")
        return tuple(cast(list[TrackerName], wanted))

    def settled(self, problems: int, processes: int) -> GRPOOptions:
        """The options of GRPO, with numbers of steps and batch sizes calculated from TRL's.

        Args:
            problems: number of training questions.
            processes: number of processes.

        Raises:
            UserError: options contradict each other, or a batch does not hold whole groups.
        """
        options = {option.name: getattr(self, option.name) for option in fields(GRPOOptions)}
        options |= self._batches(processes)
        with warnings.catch_warnings(action="ignore"):  # told when this config was made
            settled = _GivenInPython(**options)
            if self.num_train_epochs is None:
                return settled
            self._refuse_both("max_steps", f"num_train_epochs={self.num_train_epochs}")
            return replace(settled, max_steps=math.ceil(self.num_train_epochs * problems / settled.questions_per_step))

    def _batches(self, processes: int) -> dict[str, int]:
        size, accumulated, k = self.per_device_train_batch_size, self.gradient_accumulation_steps, self.num_generations
        if size is None and accumulated is None:
            return {}
        if size is None:
            assert accumulated is not None
            self._refuse_both("micro_batch_size", f"gradient_accumulation_steps={accumulated}")
            groups = math.ceil(self.prompts_per_step / (accumulated * processes))
            return {"micro_batch_size": groups * k}
        self._refuse_both("prompts_per_step", f"per_device_train_batch_size={size}")
        answers = size * (accumulated or 1) * processes
        if answers % k:
            raise UserError(
                f"per_device_train_batch_size={size} x gradient_accumulation_steps={accumulated or 1} x {processes} "
                f"processes are {answers} answers, not whole groups of num_generations={k}: change one of them."
            )
        own = self._given("micro_batch_size")  # smaller where memory is short; the batch stays as it is
        return {"prompts_per_step": answers // k, "micro_batch_size": own or max(size, k)}

    def _given(self, name: str) -> Any:
        """The value of an option of ``GRPOOptions`` that was given; None for its default.

        After ``dataclasses.replace`` an option counts as given if it differs from its default.
        """
        value = getattr(self, name)
        unlike_default = value != GRPOOptions.__dataclass_fields__[name].default
        return value if unlike_default or name in self._named else None

    def _refuse_both(self, ours: str, theirs: str) -> None:
        if (value := self._given(ours)) is not None:
            raise UserError(f"{ours}={value} and {theirs} both decide the same: leave one out.")


def either(ours: str, given: Any, theirs: str, configured: Any, default: Any) -> Any:
    """What the trainer's argument ``ours`` says, or the config's option ``theirs``, or else the default.

    Raises:
        UserError: both are given, and differ.
    """
    if given is None:
        return default if configured is None else configured
    if configured is not None and str(getattr(given, "path", given)) != str(configured):
        raise UserError(
            f"{ours}={getattr(given, 'path', given)} of the trainer and {theirs}={configured} of its config contradict "
            "each other: leave one out."
        )
    return given
