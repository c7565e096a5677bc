"""The snippets of TRL's GRPO documentation train here, changed only in the import and in the names of docs/from-trl.md.

Their model is a tiny one, and its folder stands for its name on the Hub. Batches are small and answers short, so that a
run takes a fraction of a second.
"""

import asyncio
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from dropout_grpo import GRPOConfig, GRPOTrainer, UserError, exact_answer
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tiny_latent import PLAIN_TOKENS, read_metrics

ROWS = Dataset.from_list(
    [{"prompt": f"Ann has {i} . Bob gets {i} . how many ?", "ground_truth": str(i)} for i in range(4)]
)


@pytest.fixture
def name(tmp_path: Path) -> str:
    """A plain language model, as a Hub name would be."""
    folder = tmp_path / "Qwen2-0.5B-Instruct"
    tiny_model("qwen2", torch.float32, vocab_size=PLAIN_TOKENS).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def config(tmp_path: Path, **options: Any) -> GRPOConfig:
    small = {"max_completion_length": 3, "num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 2}
    return GRPOConfig(output_dir=str(tmp_path / "Qwen2-0.5B-GRPO"), **{**small, **options})


def reward_len(completions: list[str], **kwargs: Any) -> list[float]:
    return [-abs(20 - len(completion)) for completion in completions]


def test_rewards_of_tokens_of_a_reference_and_of_a_format(name: str, tmp_path: Path) -> None:
    def by_tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        """Reward function that assigns higher scores to longer completions (in terms of token count)."""
        return [float(len(ids)) for ids in completion_ids]

    def by_reference(completions: list[str], ground_truth: list[str], **kwargs: Any) -> list[float]:
        matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
        contents = [match.group(1) if match else "" for match in matches]
        return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]

    async def async_reward_func(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [1.0 if completion else 0.0 for completion in completions]

    trainer = GRPOTrainer(
        model=name,
        latent_steps=2,
        reward_funcs=[by_tokens, by_reference, async_reward_func],
        args=config(tmp_path, reward_weights=[1.0, 2.0, 0.5], num_train_epochs=1, max_steps=-1),
        train_dataset=ROWS,
    )
    trainer.train()
    lines = read_metrics(tmp_path / "Qwen2-0.5B-GRPO")
    assert len(lines) == 2  # 4 prompts, 2 in a step
    for line in lines:
        means = [line[f"rewards/{name}/mean"] for name in ("by_tokens", "by_reference", "async_reward_func")]
        assert means[0] == pytest.approx(line["completions/mean_length"])
        assert line["reward"] == pytest.approx(means[0] + 2 * means[1] + means[2] / 2)


def test_an_object_its_tokenizer_and_callbacks(name: str, tmp_path: Path) -> None:
    class Seen(TrainerCallback):
        steps: ClassVar[list[int]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps.append(state.global_step)

    model = AutoModelForCausalLM.from_pretrained(name)
    trainer = GRPOTrainer(
        model=model,
        latent_steps=2,
        processing_class=AutoTokenizer.from_pretrained(name),
        reward_funcs=reward_len,
        args=config(
            tmp_path, seed=1, eval_strategy="steps", eval_steps=1, logging_steps=1, metric_for_best_model="pass@1"
        ),
        train_dataset=ROWS,
        eval_dataset=[{"prompt": "Ann has 1 ?", "solution": "1"}],
        callbacks=[Seen, EarlyStoppingCallback(early_stopping_patience=5), TensorBoardCallback],
    )
    output = trainer.train()
    assert Seen.steps == [1, 2]
    assert output.global_step == 2
    assert trainer.model.model is model
    assert [round(log["eval_pass@1"], 3) for log in trainer.state.log_history if "eval_pass@1" in log] == [0.0, 0.0]
    trainer.save_model(str(tmp_path / "saved"))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.vocab_size == PLAIN_TOKENS + 3


def test_training_adapters_with_peft(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trainer = GRPOTrainer(
        model=name,
        latent_steps=2,
        reward_funcs=reward_len,
        args=config(tmp_path, learning_rate=1e-5, gradient_accumulation_steps=2, bf16=False, report_to="none"),
        train_dataset=ROWS,
        peft_config=peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    notes = tmp_path / "Qwen2-0.5B-GRPO" / "notes.txt"
    notes.write_text("mine")
    trainer.save_model()
    trainer.save_model(str(notes.parent))  # TRL's usual last line; fault: it replaced the whole run folder
    assert notes.read_text() == "mine"
    assert (notes.parent / "metrics.jsonl").is_file()
    trainer.save_model(tmp_path / "other")
    trainer.save_model(tmp_path)
    assert notes.is_file()
    for folder in (tmp_path, tmp_path / "other"):
        assert (folder / "adapter_config.json").is_file()
    assert (tmp_path / "Qwen2-0.5B-GRPO" / "checkpoints" / "grpo" / "adapter_config.json").is_file()


def test_a_reward_that_needs_answers_says_so_where_rows_have_none(name: str, tmp_path: Path) -> None:
    trainer = GRPOTrainer(
        model=name, latent_steps=2, reward_funcs=exact_answer, args=config(tmp_path), train_dataset=ROWS
    )
    with pytest.raises(UserError, match="reward exact_answer: missing a required argument: 'answer'"):
        trainer.train()
    mixed = [{"prompt": "how many ?"}, {"prompt": "how many ?", "solution": "3"}]
    with pytest.raises(UserError, match="train_dataset, row 0: field 'answer' is missing"):
        GRPOTrainer(model=name, latent_steps=2, reward_funcs=reward_len, args=config(tmp_path), train_dataset=mixed)
