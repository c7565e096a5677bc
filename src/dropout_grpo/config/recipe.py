"""A recipe holds all options of a run: every command that trains or measures can read it."""

import os
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dropout_grpo.config.choices import ParamDtype, TrackerName
from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.data import DataConfig
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.config.model import ModelConfig
from dropout_grpo.config.needs import Need
from dropout_grpo.config.ranges import check_ranges, seed_field

EXACT_ANSWER = "dropout_grpo.data.rewards:exact_answer"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of a run.

    Args:
        run_dir: folder of the run.
        resume: continue the run that is in run_dir.
        seed: seed of weights, data order, masks and samples.
        bf16: compute matrix products in bf16, with float32 weights; if not given, on hardware that multiplies bf16
            matrices.
        param_dtype: dtype of the weights during training. With bfloat16 everything is computed in bf16, whatever bf16
            says, and updates change float32 masters; checkpoints hold the masters. float32 if not given.
        attention: what reads prompts, plain matrix products or transformers' SDPA; if not given, by type of device.
        fsdp: shard weights, gradients and optimiser state over the processes of torchrun or accelerate launch (FSDP2),
            instead of a copy in each.
        report_to: trackers that get the training metrics in addition to metrics.jsonl: tensorboard, wandb, trackio.
        data: problems.
        model: model that the curriculum starts from.
        lora: adapter that is trained instead of all weights.
        curriculum: Coconut's curriculum.
        exploration: the noise that makes rollouts differ.
        grpo: GRPO.
        reward_funcs: import paths of reward functions, package.module:function or file.py:function.
        evaluation: how checkpoints are measured.
    """

    run_dir: str = "runs/run"
    resume: bool = False
    seed: int = seed_field()
    bf16: bool | None = None
    param_dtype: ParamDtype | None = None
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
