"""TRL's names in a config: their meaning here, or a refusal that names what this package has."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo import GRPOConfig, GRPOTrainer, UserError
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.from_trl import ELSEWHERE, ELSEWHERE_OF_TRAINER
from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.runs.folder import RunFolder
from helpers.grpo_run import CONFIG, digits
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, tiny_problems, weights_of

K = 8  # num_generations by default


@pytest.mark.parametrize(
    ("given", "processes", "expected"),
    [
        ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}, 2, (200, 16 * 4 * 2 // K, 16)),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}, 1, (200, 2, K)),  # one group is smallest
        ({"prompts_per_step": 32, "gradient_accumulation_steps": 4}, 2, (200, 32, 32 * K // 8)),
        ({"prompts_per_step": 32, "num_train_epochs": 2}, 1, (7, 32, 256)),  # 200 / 32 = 6.25
        ({"num_train_epochs": 0.5, "per_device_train_batch_size": 8, "max_steps": -1}, 2, (25, 2, 8)),
        ({"prompts_per_step": 50, "max_steps": -1}, 1, (6, 50, 256)),  # transformers' three epochs
    ],
)
def test_batches_and_epochs_are_calculated(given: dict[str, Any], processes: int, expected: tuple[int, ...]) -> None:
    settled = GRPOConfig(**given).settled(100, processes)
    assert isinstance(settled, GRPOOptions)
    assert not isinstance(settled, GRPOConfig)
    assert (settled.max_steps, settled.prompts_per_step, settled.micro_batch_size) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_train_epochs": 1, "max_steps": 7}, "max_steps=7 and num_train_epochs=1 both decide the same"),
        ({"num_train_epochs": 1, "max_steps": 200}, "max_steps=200 and num_train_epochs=1 both"),  # its default
        (
            {"gradient_accumulation_steps": 8, "micro_batch_size": 64},
            "micro_batch_size=64 and gradient_accumulation_steps=8 both decide the same",
        ),
        (
            {"per_device_train_batch_size": 8, "prompts_per_step": 7},
            "prompts_per_step=7 and per_device_train_batch_size=8 both decide the same",
        ),
        (
            {"per_device_train_batch_size": 3},
            "=3 x .*=1 x 1 processes are 3 answers, not whole groups of num_generations=8",
        ),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRPOConfig(**given).settled(100, 1)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_name_of_trl_that_is_elsewhere_is_refused_with_what_is_here(name: str) -> None:
    assert name not in {option.name for option in fields(GRPOConfig)}
    with pytest.raises(UserError, match="is not supported: ") as refused:
        GRPOConfig(**{name: "something else"})
    assert ELSEWHERE[name].here in str(refused.value)
    for value in ELSEWHERE[name].accepted:
        if value != "no":
            assert replace(GRPOConfig(**{name: value}), eval_steps=0) == GRPOConfig()


def test_a_batch_size_that_is_the_default_counts_as_given() -> None:
    """Fault: 512 answers at once."""
    config = GRPOConfig(per_device_train_batch_size=512, micro_batch_size=256)
    assert (config.settled(100, 1).prompts_per_step, config.settled(100, 1).micro_batch_size) == (64, 256)


def test_values_of_trl_with_the_same_meaning() -> None:
    assert GRPOConfig(scale_rewards=True, use_vllm=False) == GRPOConfig(scale_rewards="group")
    assert GRPOConfig(scale_rewards=False) == GRPOConfig()
    assert GRPOConfig(eval_strategy="steps", logging_steps=5).eval_steps == 5
    assert GRPOConfig(eval_strategy="steps", eval_steps=7).eval_steps == 7
    assert (GRPOConfig(save_strategy="no").save_steps, GRPOConfig(eval_strategy="no").eval_steps) == (0, 0)
    assert GRPOConfig("runs/x").output_dir == "runs/x"
    assert replace(GRPOConfig("runs/x", seed=3), beta=0.1) == GRPOConfig("runs/x", seed=3, beta=0.1)
    assert GRPOConfig(report_to="none").trackers == ()
    assert GRPOConfig(report_to=["tensorboard"]).trackers == ("tensorboard",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_generation": 4}, r"no option 'num_generation' \(did you mean 'num_generations'\?\)"),
        (
            {"vllm_mode": "colocate"},
            "vllm_mode='colocate' is not supported: questions are read and answered by the model",
        ),
        (
            {"torch_empty_cache_steps": 4},
            "_steps'. If TRL has it, it has no effect here: leave it out",
        ),
        ({"ddp_timeout": 1800}, "ddp_timeout=1800 is not supported: it has no effect here and can be left out"),
        ({"warmup_ratio": 0.1}, "a whole number: the ratio x max_steps x num_iterations"),
        ({"eval_strategy": "epoch"}, "eval_strategy='epoch' is not supported: intervals are steps: eval_steps"),
        ({"eval_strategy": "no", "eval_steps": 5}, "eval_strategy='no' contradicts eval_steps=5"),
        ({"loss_type": "bnpo"}, "loss_type='bnpo' must be one of sum, grpo, dr_grpo, dapo"),
        ({"train_only": ["a"]}, "train_only is no longer an option: train an adapter"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"sync_ref_model": "no", "beta": 0.1}, "sync_ref_model='no' must be True or False"),
        ({"replay": 0}, "replay=0 must be True or False"),
        ({"bf16": "yes"}, "bf16='yes' must be True or False"),
    ],
)
def test_other_names_and_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRPOConfig(**given)
    with pytest.raises(UserError, match="report_to: 'mlflow' is not one of tensorboard, wandb, trackio"):
        _ = GRPOConfig(report_to="mlflow").trackers


def test_a_config_of_trl_trains_as_the_trainers_own_arguments_do(tmp_path: Path) -> None:
    ours, theirs = tiny_latent(), tiny_latent()
    small = replace(CONFIG, micro_batch_size=4)
    GRPOTrainer(ours, digits, small, tiny_problems(6), run=tmp_path / "ours", seed=3).train()
    config = replace(
        CONFIG,
        **{"max_steps": -1, "prompts_per_step": 128, "micro_batch_size": 256},
        **{"num_train_epochs": 1.5, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
        **{"output_dir": str(tmp_path / "theirs"), "seed": 3, "report_to": "none", "bf16": False},
    )
    made = GRPOTrainer(theirs, digits, config, tiny_problems(6))
    assert made.train().global_step == 3  # 9 questions, 3 in a step
    assert_same_weights(weights_of(ours), weights_of(theirs))
    recorded = [json.loads((tmp_path / name / "config.json").read_text())["config"] for name in ("ours", "theirs")]
    assert recorded[0] == recorded[1]
    assert made.args is config


def test_the_trainers_arguments_and_its_config_must_agree(tmp_path: Path) -> None:
    def make(config: GRPOConfig, **given: Any) -> GRPOTrainer:
        return GRPOTrainer(tiny_latent(), digits, config, tiny_problems(5), **given)

    same = make(replace(CONFIG, output_dir=str(tmp_path), seed=3), run=tmp_path, seed=3)
    assert same.sampler.seed == 3
    with pytest.raises(UserError, match="seed=0 of the trainer and seed=3 of its config contradict"):
        make(replace(CONFIG, seed=3), seed=0)
    with pytest.raises(UserError, match="run=a of the trainer and output_dir=b of its config contradict"):
        make(replace(CONFIG, output_dir="b"), run="a")
    folder = RunFolder(tmp_path / "run", "grpo", {})
    with pytest.raises(UserError, match="report_to: a RunFolder has its own"):
        make(replace(CONFIG, report_to="tensorboard"), run=folder)


@pytest.mark.parametrize("name", ELSEWHERE_OF_TRAINER)
def test_arguments_of_trls_trainer_are_refused_with_what_is_here(name: str) -> None:
    """Fault: a TypeError, also for None."""
    with pytest.raises(UserError, match=f"GRPOTrainer: {name}='mine' is not supported: ") as refused:
        GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(5), **{name: "mine"})
    assert ELSEWHERE_OF_TRAINER[name].here in str(refused.value)
    for value in ELSEWHERE_OF_TRAINER[name].accepted:
        made = GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(5), **{name: value})
        assert made.processing_class is made.model.tokenizer


def test_an_argument_that_no_trainer_has_gets_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"no argument 'reward_func' \(did you mean 'reward_funcs'\?\); it has model, "):
        GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(5), reward_func=digits)


def test_early_stopping_reads_the_metric_that_the_config_names(tmp_path: Path) -> None:
    from transformers import EarlyStoppingCallback

    shares = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    config = replace(CONFIG, max_steps=5, eval_strategy="steps", eval_steps=1, metric_for_best_model="pass@1")
    made = GRPOTrainer(
        tiny_latent(),
        digits,
        config,
        tiny_problems(5),
        run=tmp_path,
        evaluate=lambda model: next(shares),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    assert made.train().global_step == 4  # 0.6 and 0.65 are below 0.7
    assert (made.state.best_metric, made.state.best_global_step) == (0.7, 2)
    assert [line["eval/pass@1"] for line in read_metrics(tmp_path)] == [0.5, 0.7, 0.6, 0.65]


def test_a_resumed_run_stops_as_early_and_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    """Faults: patience counted from 0 again; the best checkpoint removed by save_total_limit."""
    from transformers import EarlyStoppingCallback, TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = state.global_step == 3

    shares = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    config = replace(
        CONFIG, max_steps=5, eval_steps=1, save_steps=1, save_total_limit=1, metric_for_best_model="pass@1"
    )

    def train(*callbacks: Any, resume: bool) -> Any:
        stopping = EarlyStoppingCallback(early_stopping_patience=2)
        evaluate = {"evaluate": lambda model: next(shares), "callbacks": [stopping, *callbacks]}
        made = GRPOTrainer(tiny_latent(), digits, config, tiny_problems(5), run=tmp_path, **evaluate)
        made.train(resume_from_checkpoint=resume)
        return made

    train(Stop(), resume=False)
    assert train(resume=True).state.global_step == 4  # 0.6 before the stop, and 0.65 after it
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"grpo-step-2", "grpo-step-4"}


def test_an_unknown_metric_and_a_validation_that_cannot_happen_are_refused(tmp_path: Path) -> None:
    """Faults: both were ignored without a word."""
    config = replace(CONFIG, eval_steps=1, metric_for_best_model="reward")
    made = GRPOTrainer(tiny_latent(), digits, config, tiny_problems(5), run=tmp_path, evaluate=lambda model: 0.5)
    with pytest.raises(UserError, match=r"metric_for_best_model 'reward' is not .* which has pass@1: choose"):
        made.train()
    (line,) = read_metrics(tmp_path)
    assert line["eval/pass@1"] == 0.5, "the step is not lost"
    sets: dict[str, Any] = {"a": tiny_problems(2), "b": tiny_problems(2)}
    names = r"pass@1, masked_pass@1, pass@2, a/pass@1, a/masked_pass@1, a/pass@2, b/pass@1, b/masked_pass@1, b/pass@2"
    with pytest.raises(UserError, match=rf"metric_for_best_model 'reward' is not .* which has {names}: choose"):
        GRPOTrainer(tiny_latent(), digits, replace(config, num_generations_eval=2), tiny_problems(5), sets)
    known = replace(config, num_generations_eval=2, metric_for_best_model="b/pass@2", max_steps=1)
    made = GRPOTrainer(tiny_latent(), digits, known, tiny_problems(5), sets, run=tmp_path / "known")
    made.train()
    assert made.state.best_metric == read_metrics(tmp_path / "known")[0]["eval/b/pass@2"]
    given: dict[str, Any] = {"eval_dataset": tiny_problems(2), "evaluate": lambda model: 0.5}
    with pytest.raises(UserError, match="eval_dataset and evaluate both say"):
        GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(5), **given)
    with pytest.raises(UserError, match="evaluation says how eval_dataset is asked, and there is none"):
        GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(5), evaluation=EvaluationConfig())


def test_a_measure_before_the_training_is_not_its_best(tmp_path: Path) -> None:
    """Fault: it was, so that early stopping counted against it, and the best step 0 had no checkpoint."""
    from transformers import EarlyStoppingCallback

    shares = iter([0.9, 0.5, 0.6])
    made = GRPOTrainer(
        tiny_latent(),
        digits,
        replace(CONFIG, max_steps=2, eval_steps=1, metric_for_best_model="pass@1"),
        tiny_problems(5),
        run=tmp_path,
        evaluate=lambda model: next(shares),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )
    assert made.evaluate() == {"eval/pass@1": 0.9}
    assert made.train().global_step == 2
    assert (made.state.best_metric, made.state.best_global_step) == (0.6, 2)


def test_a_callback_may_ask_for_a_validation_when_it_sees_the_numbers(tmp_path: Path) -> None:
    """Fault: what was asked for in on_log was forgotten."""
    from transformers import TrainerCallback

    class Curious(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            if state.global_step == 2 and "reward" in logs:
                control.should_evaluate = True

    config = replace(CONFIG, max_steps=3, eval_steps=0)
    made = GRPOTrainer(
        tiny_latent(), digits, config, tiny_problems(5), tiny_problems(2), run=tmp_path, callbacks=[Curious()]
    )
    made.train()
    assert ["eval/pass@1" in line for line in read_metrics(tmp_path)] == [False, True, False]


@pytest.mark.parametrize(
    ("options", "given", "told"),
    [
        (
            {"metric_for_best_model": "pass@1"},
            {},
            "metric_for_best_model=pass@1: no effect; it needs eval_dataset,",
        ),
        ({"num_generations_eval": 8}, {}, "num_generations_eval=8: no effect; it needs eval_dataset."),
        (
            {"num_generations_eval": 8, "eval_steps": 1},
            {"evaluate": lambda model: 0.5},
            "num_generations_eval=8: no effect; it needs eval_dataset.",
        ),
    ],
)
def test_options_of_a_validation_that_there_is_not_are_told(
    options: dict[str, Any], given: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    GRPOTrainer(tiny_latent(), digits, replace(CONFIG, **options), tiny_problems(5), **given)
    assert told in " ".join(capsys.readouterr().err.split())


def test_accelerates_own_sharding_is_told_to_have_no_effect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(5), fsdp=True)
    assert "accelerate" not in capsys.readouterr().err
    GRPOTrainer(tiny_latent(), digits, CONFIG, tiny_problems(5))
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: accelerate's FSDP has no effect: to shard weights, give the trainer fsdp=True." in said


@pytest.mark.parametrize(
    ("options", "told"),
    [({"eval_steps": 1}, "metric_for_best_model"), ({"metric_for_best_model": "pass@1"}, "eval_dataset")],
)
def test_early_stopping_without_a_metric_or_validation_is_refused_at_construction(options: dict, told: str) -> None:
    """Fault: an assertion of transformers at train()."""
    from transformers import EarlyStoppingCallback

    with pytest.raises(UserError, match=f"EarlyStoppingCallback .*{told}"):
        GRPOTrainer(
            tiny_latent(),
            digits,
            replace(CONFIG, **options),
            tiny_problems(5),
            evaluate=None if "eval" in told else lambda model: 0.5,
            callbacks=[EarlyStoppingCallback()],
        )
