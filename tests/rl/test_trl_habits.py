"""What people who know TRL expect of a trainer: its argument names, callbacks, evaluation, resuming, completions."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState

from dropout_grpo import GRPOConfig, GRPOTrainer, NoExploration, SharedDropout, UserError
from dropout_grpo.evaluation.config import EvaluationConfig
from dropout_grpo.rl import trainer as trainer_module
from helpers.grpo_run import CONFIG, digits, steps_of, trainer
from helpers.tiny_latent import assert_same_weights, tiny_latent, tiny_problems, weights_of

ROWS = [{"question": p.question, "answer": p.answer} for p in tiny_problems(5)]


def test_lists_of_dicts_datasets_and_paths_train_as_problems_and_models_do(tmp_path: Path) -> None:
    model = tiny_latent()
    model.save_pretrained(tmp_path / "checkpoint")
    expected = tiny_latent()
    made = trainer(tmp_path / "expected", model=expected, exploration=SharedDropout(0.1), seed=0)
    made.train()
    for name, given, dataset in (
        ("dicts", tiny_latent(), ROWS),
        ("dataset", tiny_latent(), datasets.Dataset.from_list(ROWS)),
        ("path", str(tmp_path / "checkpoint"), tiny_problems(5)),
    ):
        found = GRPOTrainer(given, digits, CONFIG, dataset, run=tmp_path / name)
        found.train()
        assert_same_weights(weights_of(found.model), weights_of(expected))
        assert steps_of(tmp_path / name) == steps_of(tmp_path / "expected")


def test_keyword_names_are_trls(tmp_path: Path) -> None:
    made = GRPOTrainer(
        model=tiny_latent(),
        reward_funcs=[digits],
        args=GRPOConfig(max_steps=1, prompts_per_step=2, num_generations=2, max_completion_length=3),
        train_dataset=ROWS,
        eval_dataset=ROWS[:3],
        run=tmp_path / "run",
    )
    made.train()
    assert set(made.evaluate()) == {"eval/pass@1"}


def test_evaluate_is_pass_at_1_of_the_plain_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answers(model: Any, problems: Any, config: EvaluationConfig, *, bf16: bool) -> list[Any]:
        asked.append(config)
        return [SimpleNamespace(plain_correct=problem.id in (0, 2)) for problem in problems]

    monkeypatch.setattr(trainer_module, "answer_problems", answers)
    made = GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, ROWS, run=tmp_path)
    assert made.evaluate() == {"eval/pass@1": 0.4}
    (config,) = asked
    assert (config.num_samples, config.max_new_tokens) == (0, CONFIG.max_completion_length)


def test_without_an_eval_dataset_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the trainer an eval_dataset"):
        GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, run=tmp_path).evaluate()


class Watching(TrainerCallback):
    """Records its calls, and sets the given control flags at a step."""

    def __init__(self, **asked: int) -> None:
        self.events: list[tuple[str, int]] = []
        self.metrics: list[dict[str, float]] = []
        self.asked = asked

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.events.append(("begin", state.global_step))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert kwargs["model"] is not None
        self.events.append(("step", state.global_step))
        for flag, step in self.asked.items():
            if state.global_step == step:
                setattr(control, flag, True)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert "reward" in kwargs["logs"]

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.events.append(("evaluate", state.global_step))
        self.metrics.append(kwargs["metrics"])

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.events.append(("save", state.global_step))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.events.append(("end", state.global_step))
        assert [line["step"] for line in state.log_history] == [*range(1, state.global_step + 1)]


def test_callbacks_are_called_in_order(tmp_path: Path) -> None:
    watching = Watching()
    config = GRPOConfig(**{**vars(CONFIG), "eval_steps": 2, "save_steps": 3})
    GRPOTrainer(tiny_latent(), digits, config, ROWS, ROWS, run=tmp_path, callbacks=[watching]).train()
    assert watching.events == [
        ("begin", 0),
        ("step", 1),
        ("step", 2),
        ("evaluate", 2),
        ("step", 3),
        ("save", 3),
        ("end", 3),
    ]
    assert [set(metrics) for metrics in watching.metrics] == [{"eval/pass@1"}]


def test_a_callback_can_evaluate_save_and_stop_and_the_run_resumes(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", model=tiny_latent(), exploration=SharedDropout(0.1), seed=0)
    whole.train()
    watching = Watching(should_evaluate=1, should_training_stop=2)
    run = tmp_path / "parts"
    GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, ROWS, run=run, callbacks=[watching]).train()
    assert watching.events[1:] == [("step", 1), ("evaluate", 1), ("step", 2), ("save", 2), ("end", 2)]
    again = GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, run=run)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights_of(again.model), weights_of(whole.model))
    assert [line["step"] for line in steps_of(run)] == [1, 2, 3]


def test_a_run_is_not_replaced_without_resuming(tmp_path: Path) -> None:
    GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, run=tmp_path / "run").train()
    with pytest.raises(UserError, match="exists already"):
        GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, run=tmp_path / "run").train()


def test_completions_are_printed_with_rewards_and_advantages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GRPOConfig(**{**vars(CONFIG), "max_steps": 1, "log_completions": True, "num_completions_to_print": 1})
    made = GRPOTrainer(tiny_latent(), digits, config, ROWS, exploration=NoExploration(), run=tmp_path)
    seen: list[Any] = []
    table = trainer_module.completions_table

    def watched(*args: Any) -> Any:
        seen.append(args)
        return table(*args)

    trainer_module.completions_table = watched  # type: ignore[attr-defined]
    try:
        made.train()
    finally:
        trainer_module.completions_table = table  # type: ignore[attr-defined]
    assert "step 1" in capsys.readouterr().err
    (_, questions, completions, rewards, advantages, _) = seen[0]
    assert len(questions) == 1
    assert [len(part[0]) for part in (completions, rewards, advantages)] == [CONFIG.num_generations] * 3
    assert rewards[0] == pytest.approx(digits([], completions[0]))
    mean = sum(rewards[0]) / len(rewards[0])
    assert advantages[0] == pytest.approx([reward - mean for reward in rewards[0]], abs=1e-6)


def test_push_to_hub_uploads_a_checkpoint_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[tuple[set[str], str, bool]] = []

    def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
        pushed.append(({p.name for p in folder.iterdir()}, repo_id, private))
        return "https://hub.example/me/mine"

    monkeypatch.setattr(trainer_module, "push_folder", push_folder)
    made = GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, run=tmp_path)
    assert made.push_to_hub("me/mine", private=True) == "https://hub.example/me/mine"
    ((files, repo_id, private),) = pushed
    assert {"model.safetensors", "README.md", "custom_generate", "latent_config.json"} <= files
    assert (repo_id, private) == ("me/mine", True)
