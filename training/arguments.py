"""How every script here reads its options: a yaml recipe first, the command line over it."""

import json
from pathlib import Path

import yaml
from transformers import HfArgumentParser


def parse_recipe(dataclass_types, arguments):
    """Fill dataclasses from `[recipe.yaml] [--name value ...]`; what stands on the command line wins.

    The recipe is turned into command-line words and parsed by the same HfArgumentParser, so that a value is checked
    against its type in one place. A `null` in the recipe leaves the dataclass's default.

    Args:
        dataclass_types: dataclass or tuple of dataclasses, as HfArgumentParser takes them.
        arguments (list[str]): the command line without the program's name.

    Returns:
        tuple: one instance per dataclass.

    Raises:
        OSError: the recipe cannot be read.
        ValueError: it is not a mapping, or names an option that no dataclass has.
    """
    parser = HfArgumentParser(dataclass_types)
    words = list(arguments)
    if words and words[0].endswith((".yaml", ".yml")):
        words = _recipe_as_words(Path(words[0]), parser) + words[1:]
    return parser.parse_args_into_dataclasses(words)


def _recipe_as_words(recipe, parser):
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{recipe} must hold a mapping of option: value, but holds {type(values).__name__}")
    known = {action.dest for action in parser._actions}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{recipe} names options that do not exist: {', '.join(unknown)}")
    words = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        items = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(item) for item in items)]
    return words
