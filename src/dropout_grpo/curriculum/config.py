"""Options of the curriculum."""

from dataclasses import dataclass
from typing import Literal

from dropout_grpo.errors import UserError
from dropout_grpo.training.config import Schedule


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Options of Coconut's curriculum.

    Args:
        c_thought: c, thoughts that stand in for one step.
        max_latent_stage: steps that become thoughts; the full latent block has c_thought times as many thoughts.
        cot_epochs: epochs of stage 0, all steps in words.
        epochs_per_stage: epochs of each latent stage.
        final_epochs: epochs of the final stage, answers alone.
        uniform_prob: probability that a problem is shown as in a random stage instead of the current one.
        thoughts_predict: the hidden states that are fed back, or will be in the next stage, are trained as well: each
            predicts the words that it stands in for, which a step's thoughts take in turn, so that it becomes the set
            of what the words would have said. Not in Coconut.
        thought: hidden_state is Coconut; projection CODI, an MLP of the hidden state; pause the control, a learned
            vector in place of every hidden state.
        batch_size: problems an update.
        micro_batch_size: problems in one forward and backward pass, the whole batch when not given; halved where memory
            runs out.
        optimizer: adamw is Coconut's; muon, Muon for the matrices inside the model, teaches one from scratch faster.
        learning_rate: peak of each stage's schedule.
        lr_scheduler_type: shape of each stage's schedule, after warm-up.
        warmup_steps: updates of linear warm-up in each stage.
        weight_decay: AdamW's, and Muon's.
        max_grad_norm: gradients are clipped to this norm.
        reset_optimizer: a fresh optimiser in every stage, as Coconut does.
        eval_steps: validate every so many updates; 0 only at the end of a stage.
        save_stages: keep a checkpoint after every stage, not only the last.
    """

    c_thought: int = 2
    max_latent_stage: int = 3
    cot_epochs: int = 25
    epochs_per_stage: int = 10
    final_epochs: int = 20
    uniform_prob: float = 0.0
    thoughts_predict: bool = False
    thought: Literal["hidden_state", "pause", "projection"] = "hidden_state"
    batch_size: int = 128
    micro_batch_size: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    lr_scheduler_type: Schedule = "constant"
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    reset_optimizer: bool = True
    eval_steps: int = 0
    save_stages: bool = False

    def __post_init__(self) -> None:
        """Refuse a curriculum that is none.

        Raises:
            UserError: names the option and the remedy.
        """
        if self.c_thought < 1 or self.max_latent_stage < 1:
            raise UserError(
                f"c_thought={self.c_thought} and max_latent_stage={self.max_latent_stage} give 0 latent steps: both "
                "must be at least 1 for a model that thinks."
            )
        if not 0.0 <= self.uniform_prob <= 1.0:
            raise UserError(f"uniform_prob={self.uniform_prob} is outside [0, 1].")
        if self.batch_size < 1 or self.learning_rate <= 0:
            raise UserError(f"batch_size={self.batch_size} and learning_rate={self.learning_rate} must be above 0.")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"micro_batch_size={self.micro_batch_size} must be at least 1.")
        for name in ("cot_epochs", "epochs_per_stage", "final_epochs", "warmup_steps", "eval_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative.")
        if self.cot_epochs + self.epochs_per_stage + self.final_epochs == 0:
            raise UserError("cot_epochs, epochs_per_stage and final_epochs are all 0: there is nothing to train.")

    @property
    def latent_steps(self) -> int:
        """The full latent block."""
        return self.c_thought * self.max_latent_stage
