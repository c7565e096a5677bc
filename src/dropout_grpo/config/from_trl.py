"""TRL's names that are elsewhere here, and those that are not supported, with the reason.

Two tables, from which `GRPOConfig` and `GRPOTrainer` take their messages. ``docs/from-trl.md`` has the rows of the
config's. Does not import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dropout_grpo.errors import UserError, nearest
from dropout_grpo.old_names import REMOVED_OPTIONS

_ONLY_STEPS = "intervals are steps: {0}_steps, and 0 for none"
_NOISE = "noise is the exploration's, and the model's own dropout is always 0"
_LOADED = "load the model as you like and give it to the trainer, or give its name"
_PLAIN = "questions are read and answered by the model itself, since other engines cannot think in hidden states"
_SAME_OPTIMISERS = {None: "adamw_torch", "adamw_torch_fused": "adamw_torch", "adamw_bnb_8bit": "adamw_8bit"}
"""transformers' other names of the optimisers."""

_THEIR_EPOCHS = 3.0
"""transformers' default."""

_CLIP = "only epsilon and epsilon_high clip the ratio"
_NO_TOOLS = "models answer at once, without tools"
_LOSSES = "loss_type is sum, grpo, dr_grpo or dapo"
_ENTROPY = "the objective has no entropy term"
_HUB = "call trainer.push_to_hub(repo_id)"
_NO_EFFECT = "it has no effect here and can be left out"
_DATA = "all questions are in memory, tokenised once"
_SEED = "seed is the only seed"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A name that `GRPOConfig` or `GRPOTrainer` does not have.

    Attributes:
        here: what to do instead.
        accepted: values that ask for what happens here anyway.
    """

    here: str
    accepted: tuple[Any, ...] = (None,)


_OFF = (None, False)

ELSEWHERE: Mapping[str, Elsewhere] = {
    "logging_strategy": Elsewhere("intervals are steps: logging_steps", ("steps",)),
    "eval_strategy": Elsewhere(
        f"{_ONLY_STEPS.format('eval')}; 'steps' without eval_steps validates every logging_steps", ("steps", "no")
    ),
    "save_strategy": Elsewhere(_ONLY_STEPS.format("save"), ("steps", "no")),
    "logging_first_step": Elsewhere("set logging_steps to 1", _OFF),
    "eval_on_start": Elsewhere("call trainer.evaluate() before train()", _OFF),
    "load_best_model_at_end": Elsewhere(
        "set metric_for_best_model: trainer.state.best_global_step names the step, and its checkpoint is kept where "
        "save_steps is equal to eval_steps",
        _OFF,
    ),
    "resume_from_checkpoint": Elsewhere("give it to trainer.train()"),
    "overwrite_output_dir": Elsewhere("a run folder is never replaced: remove it, or choose another", _OFF),
    "run_name": Elsewhere("the run folder's name is the run's"),
    "project": Elsewhere("set the environment variable WANDB_PROJECT or TRACKIO_PROJECT", (None, "huggingface")),
    "trackio_space_id": Elsewhere("trackio keeps its files on this machine"),
    "push_to_hub": Elsewhere(_HUB, _OFF),
    "hub_model_id": Elsewhere(_HUB),
    "hub_private_repo": Elsewhere("call trainer.push_to_hub(repo_id, private=True)"),
    "hub_strategy": Elsewhere(f"nothing is uploaded during the training: leave it out, and {_HUB}"),
    "logging_dir": Elsewhere(_NO_EFFECT),
    "data_seed": Elsewhere(_SEED),
    "shuffle_dataset": Elsewhere("questions are always shuffled, by seed", (None, True)),
    "fp16": Elsewhere("bf16 is the only reduced precision", _OFF),
    "tf32": Elsewhere("set torch.backends.cuda.matmul.allow_tf32"),
    "gradient_checkpointing_kwargs": Elsewhere(
        "layers are checkpointed without reentrant autograd", (None, {"use_reentrant": False})
    ),
    "auto_find_batch_size": Elsewhere(
        "always on: micro_batch_size is halved where memory runs out", (None, True, False)
    ),
    "adam_epsilon": Elsewhere("AdamW's epsilon is 1e-8", (None, 1e-8)),
    "warmup_ratio": Elsewhere(
        "give warmup_steps, a whole number: the ratio x max_steps x num_iterations, rounded", (None, 0.0)
    ),
    "lr_scheduler_kwargs": Elsewhere("give min_lr_rate"),
    "steps_per_generation": Elsewhere("a step samples one batch and makes num_iterations updates with all of it"),
    "generation_batch_size": Elsewhere(
        "give prompts_per_step: a step samples prompts_per_step x num_generations answers"
    ),
    "per_device_eval_batch_size": Elsewhere("give rollout_batch_size"),
    "fsdp": Elsewhere("give fsdp=True to the trainer", (None, False, "")),
    "deepspeed": Elsewhere("give fsdp=True to the trainer, which shards weights, gradients and optimiser state"),
    "model_init_kwargs": Elsewhere(_LOADED),
    "trust_remote_code": Elsewhere("code of a model's repository is never run", _OFF),
    "cast_lm_head_to_fp32": Elsewhere("log-probs are computed in float32 from the logits", _OFF),
    "ds3_gather_for_generation": Elsewhere("fsdp shards the weights", (None, True, False)),
    "pad_to_multiple_of": Elsewhere(_NO_EFFECT),
    "log_completions_hub_repo": Elsewhere("completions are printed, see log_completions"),
    "disable_dropout": Elsewhere(_NOISE, (None, True, False)),
    "remove_unused_columns": Elsewhere("all columns go to the reward functions", _OFF),
    "top_k": Elsewhere("answers are sampled with temperature and top_p", (None, 0)),
    "min_p": Elsewhere("answers are sampled with temperature and top_p"),
    "repetition_penalty": Elsewhere("answers are sampled with temperature and top_p", (None, 1.0)),
    "generation_kwargs": Elsewhere("answers are sampled with temperature and top_p"),
    "cache_implementation": Elsewhere(_PLAIN),
    "use_vllm": Elsewhere(_PLAIN, _OFF),
    "use_transformers_paged": Elsewhere(_PLAIN, _OFF),
    "use_transformers_continuous_batching": Elsewhere(_PLAIN, _OFF),
    "use_liger_kernel": Elsewhere(_PLAIN, _OFF),
    "torch_compile": Elsewhere(_PLAIN, _OFF),
    "delta": Elsewhere(_CLIP),
    "sapo_temperature_neg": Elsewhere(_LOSSES),
    "sapo_temperature_pos": Elsewhere(_LOSSES),
    "multi_objective_aggregation": Elsewhere(
        "rewards are added with reward_weights, then compared within the group", (None, "sum_then_normalize")
    ),
    "top_entropy_quantile": Elsewhere("all answer tokens are trained", (None, 1.0)),
    "entropy_coef": Elsewhere(_ENTROPY, (None, 0.0)),
    "use_adaptive_entropy": Elsewhere(_ENTROPY, _OFF),
    "off_policy_mask_threshold": Elsewhere(_CLIP),
    "use_bias_correction_kl": Elsewhere("kl_estimator is k3, k3_huber or k3_clamp", _OFF),
    "max_tool_calling_iterations": Elsewhere(_NO_TOOLS),
    "log_unique_prompts": Elsewhere("log_completions prints whole groups", _OFF),
    "disable_tqdm": Elsewhere("there is no tqdm", (None, True, False)),
    "log_level": Elsewhere("use transformers.logging.set_verbosity"),
    "ddp_find_unused_parameters": Elsewhere("gradients of all processes are added without DDP", (None, True, False)),
    "ddp_timeout": Elsewhere(_NO_EFFECT),
    "ddp_backend": Elsewhere(_NO_EFFECT),
    "dataloader_num_workers": Elsewhere(_DATA, (None, 0)),
    "dataloader_pin_memory": Elsewhere(_DATA, (None, True, False)),
    "dataloader_drop_last": Elsewhere(_DATA, (None, True, False)),
}
"""TRL's and transformers' names that `GRPOConfig` does not have. Names with ``vllm_`` go with ``use_vllm``."""

ELSEWHERE_OF_TRAINER: Mapping[str, Elsewhere] = {
    "reward_processing_classes": Elsewhere("reward models are not supported: call the model in a reward function"),
    "optimizers": Elsewhere("the config has optim, learning_rate and lr_scheduler_type", (None, (None, None))),
    "quantization_config": Elsewhere("weights are not quantised: give peft_config to train an adapter"),
    "tools": Elsewhere(_NO_TOOLS),
    "rollout_func": Elsewhere(_PLAIN),
    "environment_factory": Elsewhere(_NO_TOOLS),
}
"""TRL's arguments that `GRPOTrainer` does not have."""

_SCALES = {True: "group", False: "none"}


def accepted(given: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """The arguments of `GRPOConfig` from those that a user of TRL gives.

    Args:
        given: by name.
        known: the options of `GRPOConfig`.

    Raises:
        UserError: a name or value that this package does not have; the message says what it has.
    """
    options = dict(given)
    if options.get("max_steps") == -1:  # transformers' default: as num_train_epochs says
        del options["max_steps"]
        if options.get("num_train_epochs") is None:
            options["num_train_epochs"] = _THEIR_EPOCHS
    if isinstance(options.get("scale_rewards"), bool):
        options["scale_rewards"] = _SCALES[options["scale_rewards"]]
    if "optim" in options and options["optim"] in _SAME_OPTIMISERS:
        options["optim"] = _SAME_OPTIMISERS[options["optim"]]
    _steps(options)
    for name, value in given.items():
        elsewhere = ELSEWHERE.get("use_vllm" if name.startswith("vllm_") else name)
        if name in known or name not in options:
            continue
        if gone := REMOVED_OPTIONS.get(f"grpo.{name}"):
            raise UserError(f"GRPOConfig: {name} is no longer an option: {gone}.")
        if elsewhere is None:
            near = nearest(name, (*known, *ELSEWHERE))
            raise UserError(
                f"GRPOConfig has no option {name!r}{near}. If TRL has it, it has no effect here: leave it out."
            )
        _require_same_meaning("GRPOConfig", name, value, elsewhere)
        del options[name]
    return options


def require_accepted(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Check arguments that `GRPOTrainer` does not have.

    Args:
        given: by name.
        known: the arguments that it has.

    Raises:
        UserError: an argument asks for something; the message says what this package has.
    """
    for name, value in given.items():
        if name not in ELSEWHERE_OF_TRAINER:
            near = nearest(name, (*known, *ELSEWHERE_OF_TRAINER))
            raise UserError(f"GRPOTrainer has no argument {name!r}{near}; it has {', '.join(known)}.")
        _require_same_meaning("GRPOTrainer", name, value, ELSEWHERE_OF_TRAINER[name])


def _require_same_meaning(owner: str, name: str, value: Any, elsewhere: Elsewhere) -> None:
    if value not in elsewhere.accepted:
        raise UserError(f"{owner}: {name}={value!r:.60} is not supported: {elsewhere.here}.")


def _steps(options: dict[str, Any]) -> None:
    """Take the meaning of strategies over into the numbers of steps."""
    strategies = {
        kind: str(options.get(f"{kind}_strategy", "")).rpartition(".")[2].lower() for kind in ("eval", "save")
    }
    for kind, strategy in strategies.items():
        steps = f"{kind}_steps"
        if strategy == "no":
            if options.get(steps):
                raise UserError(
                    f"GRPOConfig: {kind}_strategy='no' contradicts {steps}={options[steps]}: leave one out."
                )
            options[steps] = 0
            del options[f"{kind}_strategy"]
        elif strategy == "steps" and kind == "eval":
            options.setdefault(steps, options.get("logging_steps", 1))  # as in transformers
