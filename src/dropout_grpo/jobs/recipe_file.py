"""Finds, checks and reads the YAML file of a recipe."""

from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.errors import UserError, nearest
from dropout_grpo.jobs.recipe import Recipe


def load_recipe(name: str) -> Recipe:
    """The recipe in a YAML file, or a shipped one.

    Raises:
        UserError: there is no such recipe, or an option is wrong.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, as_group=False)
    options = parser.parse_path(recipe_path(name))
    require_sections(options)
    return Recipe(**vars(parser.instantiate_classes(options)))


def require_sections(options: Namespace, section: type[Any] = Recipe, above: str = "") -> None:
    """Refuse a section without options, which YAML reads as null (``grpo:``).

    Raises:
        UserError: names the section.
    """
    for part in fields(section):
        name = above + part.name
        if not is_dataclass(part.default_factory) or name not in options:
            continue
        if options[name] is None:
            raise UserError(f"{name} has no options in the recipe: give it some, or leave the line out.")
        require_sections(options, cast("type[Any]", part.default_factory), f"{name}.")


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes shipped with the package."""
    folder = files("dropout_grpo") / "recipes"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def recipe_path(name: str) -> Path:
    """The file of a recipe, given by its path or by the name of a shipped recipe.

    Raises:
        UserError: there is no such recipe, or it is not a text file.
    """
    if Path(name).is_file():
        try:
            Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"recipe {name} cannot be read: {error}.") from error
        return Path(name)
    if name in recipe_names():
        return Path(str(files("dropout_grpo") / "recipes" / f"{name}.yaml"))
    raise UserError(
        f"recipe {name!r} is neither a file nor a shipped recipe{nearest(name, recipe_names())}; shipped are "
        f"{', '.join(recipe_names())}."
    )
