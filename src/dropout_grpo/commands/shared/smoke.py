"""``--smoke``: two steps of everything that a command would do, on a small stand-in for its model, offline, in seconds.

Add it to the command line that you are about to run. It keeps every choice of method, thoughts and stages, the reward
functions, and the problem files that exist. It replaces the model by a random one of the same architecture with its own
vocabulary, and reduces problems, batches, lengths and steps to a few. It adds a reward that differs within every group,
because a random model is never right and would have nothing to learn from; where groups are filtered by their reward,
only this one counts. Trackers are not used. The run goes to a temporary folder, which is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from jsonargparse import Namespace
from transformers import PreTrainedConfig

from dropout_grpo.commands.shared.models import fresh_model, starting_tokenizer
from dropout_grpo.commands.shared.options import recipe_of
from dropout_grpo.commands.shared.problems import problems_of
from dropout_grpo.config.data import DataConfig, WeightedSource
from dropout_grpo.config.model import ModelConfig
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.data.files import save_problems
from dropout_grpo.data.formats import Columns
from dropout_grpo.data.problem import Problem
from dropout_grpo.distributed.processes import is_main, on_main
from dropout_grpo.latent.io.gguf import gguf_architecture, gguf_file
from dropout_grpo.latent.io.scratch import scratch_model
from dropout_grpo.tasks.base import SPLIT_NAMES
from dropout_grpo.tasks.registry import TASKS
from dropout_grpo.tasks.word_tokenizer import word_tokenizer, words_of
from dropout_grpo.training.progress import console

_T = TypeVar("_T")

_PROBLEMS = 4  # of each split: two batches of two
_MODEL = {"n_embd": 32, "n_layer": 2, "n_head": 4}
_POSITIONS = 1024
_TASK = {f"n_{split}": _PROBLEMS for split in SPLIT_NAMES}
_CURRICULUM = {"cot_epochs": 1, "epochs_per_stage": 1, "final_epochs": 1, "batch_size": 2, "eval_steps": 2}
_GRPO = {
    "max_steps": 2,
    "prompts_per_step": 2,
    "dynamic_sampling_max_gen_batches": 2,
    "num_generations": 4,
    "max_completion_length": 8,
    "micro_batch_size": 4,
    "rollout_batch_size": 8,
    "warmup_steps": 1,
    "ref_model_sync_steps": 2,
    "eval_steps": 1,
    "save_steps": 1,
}
_EVALUATION = {"num_samples": 4, "max_new_tokens": 8, "batch_size": 8}

_ARCHITECTURES = {  # a word of a model's name -> what transformers calls its architecture
    "gpt2": "gpt2",
    "llama": "llama",
    "smollm": "llama",
    "qwen3": "qwen3",
    "qwen2": "qwen2",
    "gemma": "gemma",
    "pythia": "gpt_neox",
    "opt-": "opt",
}


def every_other(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """A reward that does not depend on the answers: 0.0 and 1.0 in turn."""
    return [float(i % 2) for i in range(len(completions))]


def smoke(recipe: Recipe) -> Recipe:
    """The same recipe with small numbers. No number grows, so what a recipe switches off with 0 stays off."""
    data, weights = recipe.data, recipe.grpo.reward_weights
    if recipe.grpo.filter_groups is not None:  # a random model's own rewards would leave no group in the range
        weights = (0.0,) * len(recipe.reward_funcs)
    return replace(
        recipe,
        resume=False,
        report_to=(),
        data=replace(data, **{name: _cut(getattr(data, name), _TASK) for name in TASKS}),
        model=_cut(recipe.model, _MODEL),
        curriculum=_cut(recipe.curriculum, _CURRICULUM),
        grpo=replace(_cut(recipe.grpo, _GRPO), reward_weights=None if weights is None else (*weights, 1.0)),
        reward_funcs=(*recipe.reward_funcs, f"{__name__}:{every_other.__name__}"),
        evaluation=_cut(recipe.evaluation, _EVALUATION),
    )


def with_stand_ins(options: Namespace) -> Recipe:
    """The small recipe of a smoke run. The options get its values, and stand-ins for the checkpoint and the files.

    A checkpoint that is not given is one of the recipe's model.
    """
    recipe, checkpoint = recipe_of(options), options.get("checkpoint")
    if "checkpoint" in options and checkpoint is None:
        checkpoint = recipe.model.name_or_path or "a checkpoint"
    files = options.get("files") or []
    small, checkpoint, files = stand_ins(
        recipe, options.get("base") or checkpoint, [files] if isinstance(files, str) else files
    )
    stand_in = {"checkpoint": checkpoint, "latent_steps": None, "base": None, "files": files}
    for name, value in {**vars(small), **stand_in}.items():
        options[name] = value
    return small


def stand_ins(recipe: Recipe, checkpoint: str | None, files: Sequence[str]) -> tuple[Recipe, str | None, list[str]]:
    """Small stand-ins for the recipe, checkpoint and files of a command, written to a new folder.

    Args:
        recipe: the user's recipe.
        checkpoint: the user's checkpoint; None for commands without one.
        files: the user's files; empty for commands without files.

    Raises:
        UserError: a local problem file is malformed.
    """
    folder = Path(on_main(lambda: mkdtemp(prefix="dropout-grpo-smoke-")))
    small = smoke(recipe)
    problems = {folder / f"{split}.json": _few(recipe.data, small.data, split) for split in SPLIT_NAMES}
    problems |= {
        folder / f"file-{i}.json": _few(replace(recipe.data, test=file), small.data, "test")
        for i, file in enumerate(files)
    }
    if is_main():
        for path, few in problems.items():
            save_problems(path, few)
    paths = [str(path) for path in problems]
    sources: dict[str, Any] = dict(zip(SPLIT_NAMES, paths, strict=False))
    if isinstance(recipe.data.grpo, tuple):
        sources["grpo"] = _mixed(recipe.data, small.data, folder)
    data = replace(small.data, columns=Columns(), **sources)
    small = replace(small, run_dir=str(folder / "run"), data=data)

    named = [name for name in (checkpoint, recipe.model.name_or_path) if name is not None]
    architecture = next((found for name in named if (found := architecture_of(name))), "gpt2")
    if named:
        small = replace(small, model=ModelConfig(name_or_path=str(folder / "base")))
    steps, thought = recipe.curriculum.latent_steps, recipe.curriculum.thought

    def write_models() -> None:
        if named:
            tokenizer = word_tokenizer(words_of([problem for few in problems.values() for problem in few]))
            tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
            model = scratch_model(tokenizer, n_positions=_POSITIONS, model_type=architecture, **_MODEL)
            for part in (model, tokenizer):
                part.save_pretrained(folder / "base")
        if checkpoint is not None:
            own = starting_tokenizer(small.model, [])
            fresh_model(small.model, own, steps, thought, recipe.seed).save_pretrained(folder / "checkpoint")

    on_main(write_models)
    if checkpoint is not None:
        checkpoint = str(folder / "checkpoint")
    _announce(recipe, files, architecture, named, folder)
    return small, checkpoint, paths[len(SPLIT_NAMES) :]


def architecture_of(name: str) -> str | None:
    """``model_type`` of a folder, GGUF file or cached hub model; else the one that the name speaks of; else None."""
    if file := gguf_file(name):
        return gguf_architecture(file)
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, local_files_only=True)
    except OSError:  # neither a folder nor cached: only the name is known
        config = {}
    spoken_of = (architecture for word, architecture in _ARCHITECTURES.items() if word in name.lower())
    return config.get("model_type") or next(spoken_of, None)


def _few(data: DataConfig, small: DataConfig, split: str) -> list[Problem]:
    """The first problems of a split's file, or of the built-in task if the file is not on this machine."""
    made: dict[str, Any] = {split: None}
    here = data.sources(split) and all(_is_here(source) for source in data.sources(split))
    (problems,) = problems_of(data if here else replace(small, **made), [split]).values()
    return [problem for problem in problems if problem.steps or split != "train"][:_PROBLEMS]


def _mixed(data: DataConfig, small: DataConfig, folder: Path) -> tuple[WeightedSource, ...]:
    """The sources of a mixture, each with a few problems in a separate file."""
    sources = []
    for i, part in enumerate(data.weighted("grpo")):
        path = folder / f"grpo-{i}.json"
        one = replace(data, grpo=part.source, columns=part.columns or data.columns)
        if is_main():
            save_problems(path, _few(one, small, "grpo"))
        sources.append(WeightedSource(source=str(path), weight=part.weight))
    return tuple(sources)


def _is_here(source: str) -> bool:
    return Path(source).is_file()


def _announce(recipe: Recipe, files: Sequence[str], architecture: str, named: Sequence[str], folder: Path) -> None:
    named_files = [source for split in SPLIT_NAMES for source in recipe.data.sources(split)]
    away = sorted({source for source in (*named_files, *files) if not _is_here(source)})
    model = f"a random {architecture} of {_MODEL['n_layer']} layers" + (f" for {named[0]}" if named else "")
    data = "problems of the built-in task" + (f" for {', '.join(away)}" if away else "")
    instead = "" if recipe.run_dir == Recipe.run_dir else f", not to {recipe.run_dir}"
    console.print(
        f"smoke run (its results mean nothing): {model}; {data}; it writes to {folder}{instead}",
        markup=False,
    )


def _cut(config: _T, most: Mapping[str, int]) -> _T:
    """A dataclass with the named numbers reduced to at most ``most``; those that are None stay so."""
    given = {name: getattr(config, name) for name in most}
    return replace(config, **{name: min(own, most[name]) for name, own in given.items() if own is not None})  # type: ignore[type-var]
