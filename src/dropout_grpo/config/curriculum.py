"""Options of the curriculum."""

from dataclasses import dataclass
from typing import Literal

from dropout_grpo.config.choices import Schedule
from dropout_grpo.config.ranges import check_ranges, ranged
from dropout_grpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """Options of Coconut's curriculum.

    Args:
        c_thought: c, the thoughts that replace one step.
        max_latent_stage: steps that become thoughts; the full latent block has c_thought times as many thoughts.
        cot_epochs: epochs of stage 0, which has all steps in words.
        epochs_per_stage: epochs of each latent stage.
        final_epochs: epochs of the final stage, which has only answers.
        uniform_prob: probability that a problem is shown as in a random stage instead of the current one: one of 0
            to its number of steps, as in Coconut.
        thoughts_predict: also train the hidden states that are fed back, in this stage or the next: each predicts the
            words that it replaces. A step's words are dealt to its thoughts in turn. Not in Coconut.
        thought: what is fed back. hidden_state is Coconut's; projection is CODI's, an MLP of the hidden state; pause is
            the control, a learned vector instead of every hidden state.
        batch_size: problems per update.
        micro_batch_size: problems in one forward and backward pass, the whole batch if not given; smaller where memory
            is short.
        gradient_checkpointing: run the decoder layers again in the backward pass instead of keeping what they compute:
            far less memory, more time, the same bits. If not given, on where a micro-batch of the smallest size does
            not fit otherwise.
        optimizer: adamw is Coconut's; adamw_8bit keeps moments of 2 bytes per parameter instead of 8, and needs
            bitsandbytes; muon uses Muon for the matrices inside the model, and a model from scratch learns faster with
            it.
        learning_rate: peak of each stage's schedule.
        lr_scheduler_type: shape of each stage's schedule, after warm-up.
        warmup_steps: updates of linear warm-up in each stage.
        weight_decay: weight decay of AdamW and Muon.
        max_grad_norm: gradients are clipped to this norm.
        reset_optimizer: start every stage with a new optimiser, as Coconut does.
        eval_steps: validate every so many updates; 0 only at the end of a stage.
        save_steps: save a checkpoint, from which the run can be resumed, every so many updates and at the end of a
            stage; 0 only at the end of a stage.
        save_total_limit: how many of these checkpoints are kept, the newest ones; null keeps all.
        save_stages: also keep the model of every stage, with the number of thoughts of that stage.
    """

    c_thought: int = ranged(2, at_least=1)
    max_latent_stage: int = ranged(3, at_least=1)
    cot_epochs: int = ranged(25, at_least=0)
    epochs_per_stage: int = ranged(10, at_least=0)
    final_epochs: int = ranged(20, at_least=0)
    uniform_prob: float = ranged(0.0, at_least=0, at_most=1)
    thoughts_predict: bool = False
    thought: Literal["hidden_state", "pause", "projection"] = "hidden_state"
    batch_size: int = ranged(128, at_least=1)
    micro_batch_size: int | None = ranged(None, at_least=1)
    gradient_checkpointing: bool | None = None
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    learning_rate: float = ranged(1e-3, above=0)
    lr_scheduler_type: Schedule = "constant"
    warmup_steps: int = ranged(20, at_least=0)
    weight_decay: float = ranged(0.01, at_least=0)
    max_grad_norm: float = ranged(1.0, above=0)
    reset_optimizer: bool = True
    eval_steps: int = ranged(0, at_least=0)
    save_steps: int = ranged(500, at_least=0)
    save_total_limit: int | None = ranged(2, at_least=1)
    save_stages: bool = False

    def __post_init__(self) -> None:
        """Check the ranges, and that some stage has epochs.

        Raises:
            UserError: names the option and the remedy.
        """
        check_ranges(self, "curriculum")
        if self.cot_epochs + self.epochs_per_stage + self.final_epochs == 0:
            raise UserError("cot_epochs, epochs_per_stage and final_epochs are all 0: there is nothing to train.")

    @property
    def latent_steps(self) -> int:
        """Number of thoughts in the full latent block."""
        return self.c_thought * self.max_latent_stage
