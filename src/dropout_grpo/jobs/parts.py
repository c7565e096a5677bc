"""The parts that commands are made of: problems, a model to start from, a trained curriculum, a GRPO arm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError, told_of
from dropout_grpo.evaluation.answering import Answered, answer_problems
from dropout_grpo.evaluation.config import EvaluationConfig
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.jobs.recipe import DataConfig, ModelConfig, Recipe
from dropout_grpo.latent.lora.adapter import add_lora, require_peft
from dropout_grpo.latent.lora.checkpoint import is_adapter
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.latent.weights.causal_lm import load_causal_lm, load_tokenizer
from dropout_grpo.latent.weights.scratch import scratch_model
from dropout_grpo.problems.files import load_problems
from dropout_grpo.problems.problem import Problem
from dropout_grpo.problems.rewards import load_reward, try_rewards
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import CONFIG, RunFolder, started_with
from dropout_grpo.tasks import prosqa, word_problems
from dropout_grpo.tasks.word_tokenizer import require_known_words, word_tokenizer
from dropout_grpo.training.checkpoint import save_checkpoint, trainer_state
from dropout_grpo.training.precision import bf16_or_not
from dropout_grpo.training.progress import Bar

SPLITS = ("train", "grpo", "valid", "test")


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settled(recipe: Recipe) -> Recipe:
    """The recipe with ``bf16`` decided: as in the run that it continues, else by measurement."""
    run = Path(recipe.run_dir)
    if recipe.bf16 is None and recipe.resume and (run / CONFIG).is_file():
        return replace(recipe, bf16=started_with(run)["config"].get("bf16"))
    return replace(recipe, bf16=bf16_or_not(recipe.bf16, device()))


def problems_of(data: DataConfig, wanted: Sequence[str]) -> dict[str, list[Problem]]:
    """Problems of the wanted splits: from files and datasets where given, else made by the embedded task.

    Raises:
        UserError: a missing or malformed file, or files to learn from and none to be measured on.
    """
    given = {name: getattr(data, name) for name in wanted}
    learnt = [name for name in ("train", "grpo") if given.get(name) is not None]
    measured = [name for name in ("valid", "test") if name in given and given[name] is None]
    if learnt and measured:
        raise UserError(
            f"data.{learnt[0]} is given and data.{measured[0]} is not: the model would be measured on problems of the "
            f"embedded task. Give data.{measured[0]} too."
        )
    made = _make_splits(data, [name for name, source in given.items() if source is None])
    return {
        name: made[name]
        if source is None
        else load_problems(source, columns=data.columns, require_steps=name == "train")
        for name, source in given.items()
    }


def _make_splits(data: DataConfig, wanted: Sequence[str]) -> dict[str, list[Problem]]:
    if data.task == "prosqa":
        return prosqa.make_splits(data.prosqa, wanted)
    return word_problems.make_splits(data.word_problems, wanted)


def vocabulary(data: DataConfig) -> list[str]:
    """The words of the embedded task, for a model made from scratch."""
    return prosqa.vocabulary() if data.task == "prosqa" else word_problems.vocabulary(data.word_problems)


def starting_tokenizer(config: ModelConfig, words: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that the curriculum starts from; `words` are for a model made from scratch.

    Raises:
        UserError: ``name_or_path`` has none that can be loaded, or is an adapter.
    """
    if config.name_or_path is None:
        return word_tokenizer(words)
    if is_adapter(config.name_or_path):
        raise UserError(
            f"model.name_or_path {config.name_or_path!r} is an adapter: merge it first (dropout-grpo merge)."
        )
    return load_tokenizer(config.name_or_path)


def require_readable(
    tokenizer: PreTrainedTokenizerBase, data: DataConfig, problems: Mapping[str, Sequence[Problem]]
) -> None:
    """Refuse splits with words that the tokenizer does not know, before a run begins.

    Raises:
        UserError: see `require_known_words`.
    """
    for name, few in problems.items():
        require_known_words(tokenizer, few, getattr(data, name) or f"{data.task} {name}")


def fresh_model(config: ModelConfig, words: Sequence[str], latent_steps: int, thought: str, seed: int) -> LatentModel:
    """The model that the curriculum starts from, with latent tokens; `words` are for a model made from scratch.

    Raises:
        UserError: ``name_or_path`` cannot be loaded.
    """
    tokenizer = starting_tokenizer(config, words)
    if config.name_or_path is None:
        model = scratch_model(
            tokenizer,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_positions=config.n_positions,
            model_type=config.model_type,
            seed=seed,
        )
    else:
        model, tokenizer = load_causal_lm(config.name_or_path)
    add_latent_tokens(model, tokenizer)
    latent = LatentModel(model, tokenizer, latent_steps=latent_steps, thought=thought, seed=seed)
    return latent.to(device())


def refuse_lora_from_scratch(recipe: Recipe) -> None:
    """Refuse an adapter on random weights that are in no folder, and one without PEFT, before a run begins.

    Raises:
        UserError: says what to give.
    """
    if recipe.lora.r is None:
        return
    require_peft()
    if recipe.model.name_or_path is None:
        raise UserError(
            "lora needs a model to adapt: give model.name_or_path, or leave lora out to train from scratch."
        )


def validator(recipe: Recipe, problems: Sequence[Problem]) -> Callable[..., float]:
    """pass@1 of the plain network on the validation problems, in [0, 1]."""
    few = problems[: recipe.data.max_valid]

    def validate(model: LatentModel, latent_steps: int | None = None, max_new_tokens: int | None = None) -> float:
        config = EvaluationConfig(
            num_samples=0,
            max_new_tokens=max_new_tokens or recipe.evaluation.max_new_tokens,
            batch_size=recipe.evaluation.batch_size,
            latent_steps=latent_steps,
        )
        answered = answer_problems(model, few, config, bf16=bf16_or_not(recipe.bf16, model.device))
        return sum(a.plain_correct for a in answered) / len(answered)

    return validate


def train_curriculum(
    recipe: Recipe,
    run: RunFolder,
    train: Sequence[Problem],
    valid: Sequence[Problem],
    check: Callable[[LatentModel], None] = lambda model: None,
) -> LatentModel:
    """Take a model through the whole curriculum and keep it as the checkpoint ``coconut``.

    ``check`` sees the model before it is trained, to refuse what would fail after the curriculum.
    """
    curriculum = recipe.curriculum
    last = run.checkpoint("sft-last")
    if recipe.resume and trainer_state(last) is not None:
        model = LatentModel.from_pretrained(last).to(device())
    else:
        words = vocabulary(recipe.data)
        model = fresh_model(recipe.model, words, curriculum.latent_steps, curriculum.thought, recipe.seed)
        if recipe.lora.r is not None:
            model = add_lora(model, recipe.lora, seed=recipe.seed)
    trainer = CurriculumTrainer(
        model,
        curriculum,
        train,
        run,
        seed=recipe.seed,
        bf16=bf16_or_not(recipe.bf16, model.device),
        evaluate=validator(recipe, valid),
    )
    require_askable(model, valid, "valid", recipe.evaluation)
    check(model)
    trainer.train(resume=recipe.resume)
    save_checkpoint(run.checkpoint("coconut"), model)
    return model


def require_askable(model: LatentModel, problems: Sequence[Problem], split: str, config: EvaluationConfig) -> None:
    """Refuse a split that could not be measured once training is over.

    Raises:
        UserError: no problems, or a question too long for the model.
    """
    if not problems:
        raise UserError(f"the split {split} has no problems: give a file for data.{split}, or have some made.")
    with told_of(f"data.{split}"):
        model.encode_rows([p.question for p in problems], room=config.max_new_tokens)


def train_grpo(
    recipe: Recipe,
    run: RunFolder,
    model: LatentModel,
    exploration: Exploration,
    problems: Sequence[Problem],
    valid: Sequence[Problem],
    part: str,
) -> LatentModel:
    """Post-train a model and keep it as the checkpoint named like the part."""
    grpo_trainer(recipe, run, model, exploration, problems, valid, part).train(resume=recipe.resume)
    save_checkpoint(run.checkpoint(part), model)
    return model


def grpo_trainer(
    recipe: Recipe,
    run: RunFolder,
    model: LatentModel,
    exploration: Exploration,
    problems: Sequence[Problem],
    valid: Sequence[Problem],
    part: str,
) -> GRPOTrainer:
    """A trainer of which everything that can be refused has been.

    Raises:
        UserError: names the option, the problem or the reward function.
    """
    rewards = [load_reward(path) for path in recipe.reward_funcs]
    trainer = GRPOTrainer(
        model,
        recipe.grpo,
        exploration,
        rewards,
        problems,
        run,
        seed=recipe.seed,
        bf16=bf16_or_not(recipe.bf16, model.device),
        evaluate=validator(recipe, valid),
        part=part,
    )
    try_rewards(rewards, recipe.grpo.reward_weights or (1.0,) * len(rewards), problems)
    require_askable(model, valid, "valid", recipe.evaluation)
    return trainer


def measure(
    recipe: Recipe,
    model: LatentModel,
    problems: Sequence[Problem],
    exploration: Exploration | None,
    title: str,
) -> list[Answered]:
    """Answers to all problems, with a progress bar."""
    config = recipe.evaluation
    if exploration is None:
        config = replace(config, num_samples=0)
    with Bar(title, len(problems)) as bar:
        return answer_problems(
            model,
            problems,
            config,
            exploration=exploration,
            seed=recipe.seed,
            bf16=bf16_or_not(recipe.bf16, model.device),
            progress=bar.reach,
        )
