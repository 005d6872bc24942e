"""Recipes: the one place where names become objects. A section is checked against the signature of what it will call.

    images, encoder, method, views, optimizer, schedule, pretrain, watch, evaluate        each a map of plain arguments

Nothing below this file ever sees a recipe: a library user calls the constructors with plain arguments.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from diptych.base import strict_yaml
from diptych.base.errors import RecipeError
from diptych.commands.shelf import fail, find
from diptych.data.images import images
from diptych.downstream.evaluate import evaluate
from diptych.methods import METHODS
from diptych.networks.encoders import REACHING, encoder
from diptych.training.optimizers import OPTIMIZERS
from diptych.training.pretrain import pretrain
from diptych.training.schedules import SCHEDULES
from diptych.views import OPERATIONS


def watches(collapse: bool = True, knn: bool = True, images: int = 512) -> None:
    """The signature of the `watch` section: which readings to take, on how many of the training images."""


# What a section calls, and the parameters that are not the recipe's to give.
FIXED: dict[str, tuple[Callable, set[str]]] = {
    "images": (images, {"source", "progress"}),
    "encoder": (encoder, set()),
    "pretrain": (
        pretrain,
        {
            "method",
            "images",
            "views",
            "optimizer",
            "schedule",
            "watch",
            "out",
            "resume",
            "overwrite",
            "record",
            "show",
        },
    ),
    "watch": (watches, set()),
    "evaluate": (evaluate, {"run", "train", "test", "device", "show"}),
}
NAMED: dict[str, tuple[Mapping[str, Callable], set[str]]] = {
    "method": (METHODS, {"encoder", "width"}),
    "optimizer": (OPTIMIZERS, {"module"}),
    "schedule": (SCHEDULES, set()),
}
SECTIONS = ("images", "encoder", "method", "views", "optimizer", "schedule", "pretrain", "watch", "evaluate")
NEEDED = ("encoder", "method", "views", "optimizer", "pretrain")


def read(name: str, overrides: Sequence[str] = ()) -> dict:
    """A recipe by name or file with `key=value` overrides, completely checked and with every default written out."""
    path = find(name)
    recipe = strict_yaml.read(path)
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path}: a recipe is a map of sections ({', '.join(SECTIONS)})")
    for text in overrides:
        override(recipe, text)
    return resolve(recipe, path.name)


def override(recipe: dict, text: str) -> None:
    """Set one value in place: `optimizer.lr=0.3`, `views.both.0.random_resized_crop.scale=[0.2, 1.0]`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{text!r} is not an override; write section.key=value, as optimizer.lr=0.3")
    *path, last = key.split(".")
    place: Any = recipe
    for part in path:
        if isinstance(place, list):
            place = place[position(place, part, key)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            raise RecipeError(f"{key}: {part} is a value, it holds nothing")
    made = strict_yaml.parse(value, key)
    if isinstance(place, list):
        place[position(place, last, key)] = made
    else:
        place[last] = made


def position(items: list, part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise RecipeError(f"{key}: {part} is not a position in a list of {len(items)} (counted from 0)")
    return int(part)


def resolve(recipe: dict, where: str) -> dict:
    """The recipe with every default written out; RecipeError at the first thing that no constructor would take."""
    for section in recipe:
        if section not in SECTIONS:
            fail(f"{where}: there is no section {section!r}", str(section), SECTIONS)
    for section in NEEDED:
        if not recipe.get(section):
            raise RecipeError(f"{where}: the section {section!r} is missing")
    whole = {}
    for section in SECTIONS:
        options = recipe.get(section)
        options = {} if options is None else options
        if section == "views":
            whole[section] = {name: [operation(entry, f"{where}: views.{name}") for entry in operations]
                              for name, operations in views_of(options, where).items()}  # fmt: skip
        elif section in FIXED:
            whole[section] = arguments(*FIXED[section], options, f"{where}: {section}")
            if section == "encoder" and (reaching := [key for key in options if key in REACHING]):
                raise RecipeError(f"{where}: encoder takes no {reaching[0]}; use pretrained, or import-weights")
        else:
            whole[section] = named(section, options, where)
    return whole


def named(section: str, options: Any, where: str) -> dict:
    """A section that names its constructor: `{name: lars, lr: 0.2}`."""
    makers, hidden = NAMED[section]
    if section == "schedule" and not options:
        options = {"name": "warmup_cosine"}
    if not isinstance(options, dict) or "name" not in options:
        raise RecipeError(f"{where}: {section} needs a name, one of {', '.join(makers)}")
    name = options["name"]
    if not isinstance(name, str) or name not in makers:
        fail(
            f"{where}: {section}.name {name!r} is unknown",
            str(name),
            list(makers),
            f"known: {', '.join(makers)}",
        )
    rest = {key: value for key, value in options.items() if key != "name"}
    return {"name": name} | arguments(makers[name], hidden, rest, f"{where}: {section}")


def views_of(options: Any, where: str) -> dict[str, list]:
    if not isinstance(options, dict) or set(options) not in ({"both"}, {"first", "second"}):
        raise RecipeError(f"{where}: views holds either `both`, or `first` and `second`, each a list of operations")
    for name, operations in options.items():
        if not isinstance(operations, list) or not operations:
            raise RecipeError(f"{where}: views.{name} is a list of operations, as `- horizontal_flip: {{p: 0.5}}`")
    return options


def operation(entry: Any, where: str) -> dict[str, dict]:
    """One operation of a view, `{name: {arguments}}`."""
    entry = {entry: {}} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or len(entry) != 1:
        raise RecipeError(f"{where}: {entry!r} is not one operation; write `- name: {{argument: value}}`")
    [(name, options)] = entry.items()
    if not isinstance(name, str) or name not in OPERATIONS:
        fail(
            f"{where}: there is no operation {name!r}",
            str(name),
            list(OPERATIONS),
            f"known: {', '.join(OPERATIONS)}",
        )
    return {name: arguments(OPERATIONS[name], set(), options or {}, f"{where}.{name}")}


def arguments(make: Callable, hidden: set[str], options: Any, where: str) -> dict:
    """`options` with the defaults of `make`'s signature; RecipeError for an unknown key, a missing one or a wrong type."""
    if not isinstance(options, dict):
        raise RecipeError(f"{where} is a map of arguments, not {options!r}")
    hints = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make)
    known = {name: p for name, p in inspect.signature(make).parameters.items() if name not in hidden}
    free = any(p.kind is p.VAR_KEYWORD for p in known.values())  # encoder: the rest is timm's, which checks it
    known = {name: p for name, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key, value in options.items():
        if key not in known and not free:
            fail(f"{where} has no {key!r}", str(key), list(known), f"it takes {', '.join(known)}")
        if key in known and key in hints and not fits(value, hints[key]):
            raise RecipeError(f"{where}.{key} is {value!r}, which is not {spell(hints[key])}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise RecipeError(f"{where} needs {name}")
    defaults = {name: p.default for name, p in known.items() if p.default is not p.empty}
    return as_data(defaults | options)


def as_data(value: Any) -> Any:
    """Tuples as lists, so that what is written to recipe.yaml equals what is read from it."""
    if isinstance(value, Mapping):
        return {key: as_data(inner) for key, inner in value.items()}
    return [as_data(inner) for inner in value] if isinstance(value, list | tuple) else value


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can stand for a parameter of this type (a list for a tuple, an integer for a float)."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    base = origin or hint
    if base in (tuple, list) or base is Sequence:
        if not isinstance(value, list | tuple):
            return False
        each = [t for t in inner if t is not Ellipsis]
        return (
            not each
            or len(each) > 1
            and len(each) != len(value)
            or all(fits(v, each[i % len(each)]) for i, v in enumerate(value))
        )
    if inspect.isclass(base) and issubclass(base, nn.Module):
        return False  # for Python only
    if inspect.isclass(base) and issubclass(base, Mapping):
        return isinstance(value, Mapping)
    return True  # a type that no YAML value can be wrong for is left to the constructor


def spell(hint: Any) -> str:
    """A type in a user's words."""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a word",
        type(None): "null",
    }
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(spell(kind) for kind in typing.get_args(hint) if kind is not nn.Module)
    return words.get(hint) or ("a list" if typing.get_origin(hint) in (tuple, list, Sequence) else str(hint))
