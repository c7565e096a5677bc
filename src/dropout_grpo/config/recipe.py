"""Options of the commands. A recipe holds all options of a run: every command that trains or measures can read it."""

import os
from dataclasses import dataclass, field, make_dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dropout_grpo.config.choices import TrackerName
from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.config.needs import Need
from dropout_grpo.config.ranges import check_ranges, ranged, seed_field
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

EXACT_ANSWER = "dropout_grpo.data.rewards:exact_answer"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The language model that the curriculum starts from.

    Args:
        name_or_path: hub name or folder of a causal language model, or a GGUF file (or a folder with one), whose
            weights are dequantized. When not given, a model with random weights and the built-in task's word-level
            tokenizer is made, of the type and size below.
        model_type: architecture of the model made from scratch, as transformers names it: gpt2, llama, qwen3, ...
        n_embd: width of the model made from scratch.
        n_layer: its layers.
        n_head: its attention heads.
        n_positions: its positions.
    """

    name_or_path: str | None = None
    model_type: str = "gpt2"
    n_embd: int = ranged(128, at_least=1)
    n_layer: int = ranged(3, at_least=1)
    n_head: int = ranged(4, at_least=1)
    n_positions: int = ranged(160, at_least=1)

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            ("model_type", "n_embd", "n_layer", "n_head", "n_positions"),
            "a model from scratch, and name_or_path names another one",
            lambda model: model.name_or_path is None,
        ),
    )

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if self.n_embd % self.n_head:
            raise UserError(f"model.n_embd={self.n_embd} must be a multiple of model.n_head={self.n_head}.")


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
        grpo: file or hf: dataset for GRPO, where steps are not needed; or a list of them, each with source and weight.
        valid: file or hf: dataset to validate on; or a list of them, whose metrics are eval/NAME/pass@1 by file.
        test: file or hf: dataset to measure on.
        columns: names of the columns in these files and datasets.
        chat_template: put questions into a user's turn of the tokenizer's chat template, for Instruct models; if not
            given, as the checkpoint was trained. A question that is a conversation, [{"role": "user", "content":
            ...}], always goes through the template.
        max_problems: number of problems that are read of each file or dataset, the first ones; all if not given.
        max_valid: number of validation problems of each file that are used during training.
        task: the built-in task. The option of the same name, such as prosqa.seed, holds its settings.
    """

    train: str | None = None
    grpo: str | tuple[WeightedSource, ...] | None = None
    valid: str | tuple[str, ...] | None = None
    test: str | None = None
    columns: Columns = field(default_factory=Columns)
    chat_template: bool | None = None
    max_problems: int | None = ranged(None, at_least=1)
    max_valid: int = ranged(500, at_least=1)
    task: TaskName = DEFAULT_TASK

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        if self.grpo == ():
            raise UserError("data.grpo is an empty list: name at least one source, or leave it out.")
        if self.valid == ():
            raise UserError("data.valid is an empty list: name at least one file, or leave it out.")
        names = self.valid_names
        if len(set(names)) < len(names):
            raise UserError(
                f"data.valid: metrics are named by file, and two are named alike ({', '.join(names)}): rename one."
            )

    @property
    def valid_names(self) -> tuple[str, ...]:
        """The names in metrics of the sources of ``valid``: the files' names without folder and suffix."""
        return tuple(PurePath(source.removeprefix("hf:")).stem for source in self.sources("valid"))

    def sources(self, split: str) -> tuple[str, ...]:
        """The files and datasets of a split; none if the built-in task makes it."""
        given = getattr(self, split)
        if isinstance(given, tuple):
            return tuple(part if isinstance(part, str) else part.source for part in given)
        return () if given is None else (given,)


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What a published checkpoint does not record. A folder that dropout-grpo has written needs neither.

    Args:
        latent_steps: number of thoughts before an answer, for a checkpoint without latent_config.json.
        base: folder or hub name of the model that a state_dict file of Coconut (checkpoint_33) or CODI
            (pytorch_model.bin) was trained from.
    """

    latent_steps: int | None = ranged(None, at_least=0)
    base: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of a run.

    Args:
        run_dir: folder of the run.
        resume: continue the run that is in run_dir.
        seed: seed of weights, data order, masks and samples.
        bf16: compute matrix products in bf16, with float32 weights; if not given, on hardware that multiplies bf16
            matrices.
        attention: what reads prompts, plain matrix products or transformers' SDPA; if not given, by type of device.
        fsdp: shard weights, gradients and optimiser state over the processes of torchrun or accelerate launch (FSDP2),
            instead of a copy in each.
        report_to: trackers that get the training metrics in addition to metrics.jsonl: tensorboard, wandb, trackio.
        data: problems.
        model: model that the curriculum starts from.
        lora: adapter that is trained instead of all weights.
        curriculum: Coconut's curriculum.
        exploration: randomness of the latent phase.
        grpo: GRPO.
        reward_funcs: import paths of reward functions, package.module:function or file.py:function.
        evaluation: how checkpoints are measured.
    """

    run_dir: str = "runs/run"
    resume: bool = False
    seed: int = seed_field()
    bf16: bool | None = None
    attention: Literal["products", "sdpa"] | None = None
    fsdp: bool = False
    report_to: tuple[TrackerName, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    grpo: GRPOOptions = field(default_factory=GRPOOptions)
    reward_funcs: tuple[str, ...] = (EXACT_ANSWER,)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            ("fsdp",),
            "more than one process, as torchrun starts them",
            lambda recipe: int(os.environ.get("WORLD_SIZE", "1")) > 1,
        ),
    )

    def __post_init__(self) -> None:
        check_ranges(self)
