"""What can be written on the command line. Nothing here imports torch: help and mistakes are told at once."""

from collections.abc import Sequence

from jsonargparse import ActionConfigFile, ArgumentParser

from dropout_grpo.evidence.bench.config import BenchConfig
from dropout_grpo.exploration.config import ExplorationConfig
from dropout_grpo.jobs.recipe import AskOptions, CheckpointOptions, Recipe, Task
from dropout_grpo.jobs.recipe_file import recipe_names, recipe_path
from dropout_grpo.tasks.prosqa import ProsqaConfig
from dropout_grpo.tasks.word_problems import WordProblemsConfig

_DEFAULT_RECIPE = "word-problems"


def build_parser() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The whole command line, and the parsers of its commands."""
    about = "Dropout-GRPO: post-training for language models that reason in continuous latent space."
    parser = ArgumentParser(prog="dropout-grpo", description=about, exit_on_error=False, allow_abbrev=False)
    subcommands = parser.add_subcommands(dest="command", metavar="command")
    made: dict[str, ArgumentParser] = {}

    def command(name: str, what: str, more: str = "") -> ArgumentParser:
        made[name] = ArgumentParser(description=f"{what}. {more}".rstrip(), exit_on_error=False, allow_abbrev=False)
        subcommands.add_subcommand(name, made[name], help=what)
        return made[name]

    def with_recipe(sub: ArgumentParser) -> None:
        shipped = f"a YAML file, or a shipped recipe: {', '.join(recipe_names())}"
        sub.add_argument("--recipe", action=ActionConfigFile, help=shipped)
        sub.add_class_arguments(Recipe, as_group=False)
        small = "try the rest of the command line: two steps of everything on a small stand-in, offline, in seconds"
        sub.add_argument("--smoke", action="store_true", help=small)

    def with_checkpoint_options(sub: ArgumentParser) -> None:
        sub.add_class_arguments(CheckpointOptions, as_group=False)

    def with_json(sub: ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print one JSON object on standard output")

    sub = command(
        "demo",
        "make data, train a Coconut, post-train it with Dropout-GRPO, measure, report",
        f"Without --recipe it takes the recipe {_DEFAULT_RECIPE}; the defaults below are of options in no recipe.",
    )
    with_recipe(sub)
    with_json(sub)
    sub = command("data", "write an embedded task's problems as Coconut JSON files")
    sub.add_argument("--out", type=str, required=True, help="folder to write train, grpo, valid and test .json to")
    sub.add_argument("--task", type=Task, default="word_problems", help="which embedded task")
    sub.add_class_arguments(WordProblemsConfig, "word_problems")
    sub.add_class_arguments(ProsqaConfig, "prosqa")
    with_recipe(command("sft", "train a latent model through Coconut's curriculum"))
    sub = command("grpo", "post-train a checkpoint with Dropout-GRPO")
    sub.add_argument("--checkpoint", type=str, required=True, help="folder or hub name of a latent model")
    with_checkpoint_options(sub)
    with_recipe(sub)
    sub = command("eval", "measure a checkpoint: plain, under masks, and the model average")
    sub.add_argument("--checkpoint", type=str, required=True, help="folder or hub name of a latent model")
    with_checkpoint_options(sub)
    sub.add_argument("--files", type=list[str], required=True, help="files or hf: datasets: [a.json,b.jsonl]")
    with_json(sub)
    with_recipe(sub)
    sub = command("compare", "two eval runs on the same problems: wins, losses, exact McNemar test, difference")
    sub.add_argument("run_a", type=str, help="run folder of an eval")
    sub.add_argument("run_b", type=str, help="run folder of another eval on the same files")
    with_json(sub)
    sub = command("ask", "answer one question: the plain network, several masks, their vote")
    sub.add_argument("checkpoint", type=str, help="folder or hub name of a latent model")
    sub.add_argument("question", type=str)
    with_checkpoint_options(sub)
    sub.add_class_arguments(AskOptions, as_group=False)
    sub.add_class_arguments(ExplorationConfig, "exploration")
    sub = command("inspect", "what is found in a model: sites, masks, latent tokens; and a dry run")
    sub.add_argument("model", type=str, help="folder or hub name of a model, with latent tokens or without")
    with_checkpoint_options(sub)
    with_json(sub)
    sub = command("merge", "add an adapter to its base: a plain checkpoint")
    sub.add_argument("folder", type=str, help="folder or hub name of an adapter, as sft and grpo with lora write it")
    sub.add_argument("--out", type=str, required=True, help="folder to write the checkpoint to")
    sub = command("theory", "check the paper's claims numerically and print a table")
    sub.add_argument("--seed", type=int, default=0, help="of the Monte-Carlo checks and of the small model they train")
    sub.add_argument("--plots", type=str | None, default=None, help="folder to write the figures to, as SVG")
    with_json(sub)
    sub = command("bench", "measure the engine against three other ways to do the same jobs; see docs/benchmark.md")
    sub.add_class_arguments(BenchConfig, as_group=False)
    sub.add_argument("--sweep", action="store_true", help="vary one axis at a time at the largest K, and fit lines")
    with_json(sub)
    sub = command("report", "write report.html from a run folder")
    sub.add_argument("run_dir", type=str, help="the run folder")
    return parser, made


def with_recipe_paths(argv: Sequence[str]) -> list[str]:
    """Names of shipped recipes become their files; the demo has a recipe of its own where none is given.

    Recipes go before all other options: what stands on the command line counts, wherever it stands.
    """
    recipes, others = [], []
    words = iter(argv)
    for word in words:
        name = next(words, None) if word == "--recipe" else word.removeprefix("--recipe=")
        if name is None or name == word:
            others.append(word)
        else:
            recipes.append(f"--recipe={recipe_path(name)}")
    if others[:1] == ["demo"] and not recipes and "--recipe" not in others:
        recipes = [f"--recipe={recipe_path(_DEFAULT_RECIPE)}"]
    return [*others[:1], *recipes, *others[1:]]
