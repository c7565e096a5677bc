"""Finds, checks and reads the YAML file of a recipe."""

import warnings
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from dropout_grpo.config.recipe import Recipe
from dropout_grpo.config.safe_yaml import guard_yaml, load_yaml, yaml_problem
from dropout_grpo.errors import UserError, nearest


def load_recipe(name: str, options: Mapping[str, str] | None = None) -> Recipe:
    """The recipe in a YAML file, or a shipped one.

    Args:
        name: path of a YAML file, or name of a shipped recipe.
        options: options that replace those of the recipe, by their names on the command line, as text.

    Raises:
        UserError: there is no such recipe, or an option is wrong.
    """
    guard_yaml()
    parser = _parser()
    words = [f"--{option}={value}" for option, value in (options or {}).items()]
    try:
        found = parser.parse_args([f"--recipe={recipe_path(name)}", *words])
    except ArgumentError as error:
        raise UserError(f"recipe {name} with {' '.join(words) or 'no options'}: {error}") from error
    require_sections(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's notes to developers
        made = instantiated(parser, found)
    return Recipe(**{part.name: made[part.name] for part in fields(Recipe)})


@lru_cache(maxsize=1)
def _parser() -> ArgumentParser:
    """Parser of all options of a recipe, which takes long to build."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(Recipe, as_group=False)
    parser.add_argument("--recipe", action=ActionConfigFile)
    return parser


def instantiated(parser: ArgumentParser, options: Namespace) -> Namespace:
    """The options with sections as dataclasses.

    Raises:
        UserError: a section refuses its options. jsonargparse lists the refusals of an option of several types.
    """
    try:
        return parser.instantiate_classes(options)
    except UserError:
        raise
    except ValueError as error:
        reasons = [line[4:] for line in str(error).splitlines() if line.startswith("  - ")]
        own = [reason for reason in reasons if not reason.startswith("Expected a ")]
        raise UserError((own or [str(error)])[0]) from error


def require_sections(options: Namespace | Mapping[str, Any], section: type[Any] = Recipe, above: str = "") -> None:
    """Check that every section of a recipe holds options: YAML reads ``grpo:`` as null, and ``grpo: 3`` as a number.

    Args:
        options: options of the section.
        section: its dataclass.
        above: what precedes the names of its options, for example ``data.``.

    Raises:
        UserError: names the section.
    """
    for part in fields(section):
        name = above + part.name
        if not is_dataclass(part.default_factory) or part.name not in options:
            continue
        value = options[part.name]
        if value is None:
            raise UserError(f"{name} has no options in the recipe: give it some, or leave the line out.")
        if not isinstance(value, (Namespace, Mapping)):
            raise UserError(
                f"{name} must be options with values, as in the shipped recipes; found {str(value)[:60]!r}."
            )
        require_sections(value, part.default_factory, f"{name}.")


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes shipped with the package."""
    folder = files("dropout_grpo") / "recipes"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def recipe_path(name: str) -> Path:
    """The file of a recipe, given by its path or by the name of a shipped recipe.

    Raises:
        UserError: there is no such recipe, or it is not a text file of safe YAML.
    """
    if not _is_file(name):
        if name in recipe_names():
            return Path(str(files("dropout_grpo") / "recipes" / f"{name}.yaml"))
        raise UserError(
            f"recipe {name!r} is neither a file nor a shipped recipe{nearest(name, recipe_names())}; shipped are "
            f"{', '.join(recipe_names())}."
        )
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name} cannot be read: {error}.") from error
    try:
        options = load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name}, {yaml_problem(error)}.") from error
    if not isinstance(options, dict):
        raise UserError(f"recipe {name} must be options with values, such as `seed: 1`; it is {text.strip()[:60]!r}.")
    return Path(name)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False
