"""A training script's command line: a recipe (yaml) first, then whatever the caller wants different."""

import dataclasses
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse_recipe(argument_types, arguments=None):
    """
    `script.py recipe.yaml --learning_rate 3e-3` -> one instance of each dataclass in `argument_types`.

    The recipe's keys are field names of the dataclasses; a flag on the command line wins over the recipe, the recipe
    over the dataclass's default. Without a recipe the flags stand alone.

    Args:
        argument_types (`list[type]`): dataclasses that [`~transformers.HfArgumentParser`] understands.
        arguments (`list[str]`, *optional*): the command line without the script; `sys.argv[1:]` where None.

    Raises:
        OSError: when the recipe cannot be read.
        ValueError: when it is no yaml, no mapping, or names a field that none of the dataclasses has; so does a flag.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # an abbreviation would let a misspelt flag pass for another
    parser = HfArgumentParser(argument_types, allow_abbrev=False)
    if arguments and not arguments[0].startswith("-"):
        recipe = read_recipe(arguments.pop(0), known={f.name for t in argument_types for f in dataclasses.fields(t)})
        parser.set_defaults(**recipe)
        for action in parser._actions:
            action.required = action.required and action.dest not in recipe
    *parsed, unknown = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(f"the command line has {' '.join(unknown)}; no such arguments (see --help)")
    return tuple(parsed)


def read_recipe(path, known):
    """The mapping in the yaml file at `path`, each key one of `known`."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {path} is no yaml: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise ValueError(
            f"recipe {path} holds {type(recipe).__name__}; expected a mapping of argument names to values"
        )
    unknown = sorted(set(recipe) - known)
    if unknown:
        raise ValueError(f"recipe {path} names {', '.join(unknown)}; no such arguments (see --help)")
    return recipe
