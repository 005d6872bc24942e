"""Recipes: a section is checked against the signature of the function or class that it calls.

    images, encoder, method, optimizer, schedule, pretrain, watch, evaluate        a map of arguments
    views                                                                          a list of {times, do: [operations]}

Only the commands read recipes: a user of the library calls the constructors with plain arguments.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diptych.base import strict_yaml
from diptych.base.errors import RecipeError
from diptych.commands.build import build_operation, repeat_view, watches
from diptych.commands.fitting import fit
from diptych.commands.schema import arguments
from diptych.commands.shelf import fail, find_recipe
from diptych.data.images import images
from diptych.downstream.evaluate import evaluate
from diptych.downstream.protocols import require_names
from diptych.methods import METHODS
from diptych.networks.encoders import REACHING, encoder
from diptych.training.budget import check_length
from diptych.training.optimizers import OPTIMIZERS
from diptych.training.pretrain import pretrain
from diptych.training.schedules import SCHEDULES
from diptych.views import OPERATIONS

# What a section calls: a function, or one of several by name. `views` calls its function once per entry.
CALLS: dict[str, Callable | Mapping[str, Callable]] = {
    "images": images,
    "encoder": encoder,
    "method": METHODS,
    "views": repeat_view,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "pretrain": pretrain,
    "watch": watches,
    "evaluate": evaluate,
}
# Arguments that a command passes, and a recipe must not.
GIVEN_BY_COMMAND: dict[str, set[str]] = {
    "images": {"source"},
    "method": {"width"},
    "pretrain": {"out", "resume", "overwrite", "record", "show"},
    "watch": {"seed"},
    "evaluate": {"trained", "device", "show"},
}
SECTIONS = tuple(CALLS)
REQUIRED_SECTIONS = ("encoder", "method", "views", "optimizer", "pretrain")
# The keys that recipes of older versions have under `views`, and their present place.
OLDER_VIEWS = {"both": "views.0.do", "first": "views.0.do", "second": "views.1.do"}


def read_recipe(name: str, overrides: Sequence[str] = (), say: Callable[[str], object] = len) -> dict:
    """A recipe by name or file with `key=value` overrides, checked, and with every default written out.

    say: called with a line for each change that makes the other parts fit the overrides, see `fit`.
    """
    path = find_recipe(name)
    recipe = strict_yaml.read(path)
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path}: a recipe is a map of sections ({', '.join(SECTIONS)})")
    original = copy.deepcopy(recipe)
    given = [override(recipe, text, path.name) for text in overrides]
    fit(recipe, original, given, say)
    prefer_given_length(recipe, overrides)
    return resolve(recipe, path.name)


def prefer_given_length(recipe: dict, overrides: Sequence[str]) -> None:
    """`pretrain.budget=20m` takes the place of the recipe's epochs, `pretrain.epochs=5` that of its budget."""
    given = {text.partition("=")[0] for text in overrides} & {"pretrain.epochs", "pretrain.budget"}
    if len(given) == 1:
        (replaced,) = {"epochs", "budget"} - {given.pop().removeprefix("pretrain.")}
        recipe["pretrain"].pop(replaced, None)


def override(recipe: dict, text: str, where: str) -> tuple[str, ...]:
    """Set one value in place: `optimizer.lr=0.3`, `views.0.do.0.random_resized_crop.scale=[0.2, 1.0]`. Returns its path."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{text!r} is not an override; write section.key=value, such as optimizer.lr=0.3")
    *path, last = key.split(".")
    refuse_older_views([*path, last], where)
    place: Any = recipe
    for part in path:
        if isinstance(place, list):
            place = place[position(place, part, key)]
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            raise RecipeError(f"{key}: {part} is a value and has no keys")
    setting = strict_yaml.parse(value, key)
    if isinstance(place, list):
        place[position(place, last, key)] = setting
    else:
        place[last] = setting
    return (*path, last)


def position(items: list, part: str, key: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) < 10) or int(part) >= len(items):
        raise RecipeError(f"{key}: {part} is not a position in a list of {len(items)} (counted from 0)")
    return int(part)


def refuse_older_views(path: list[str], where: str) -> None:
    """Raise RecipeError for an override of `views.both`, with what to write instead."""
    if path[0] == "views" and len(path) > 1 and path[1] in OLDER_VIEWS:
        key = ".".join([OLDER_VIEWS[path[1]], *path[2:]])
        raise RecipeError(f"{where}: views is a list and has no {path[1]!r}; write {key}=... for {'.'.join(path)}=...")


def resolve(recipe: dict, where: str) -> dict:
    """The recipe with every default written out; RecipeError for the first key or value that no constructor takes."""
    for section in recipe:
        if section not in SECTIONS:
            fail(f"{where}: there is no section {section!r}", str(section), SECTIONS)
    for section in REQUIRED_SECTIONS:
        if not recipe.get(section):
            raise RecipeError(f"{where}: the section {section!r} is missing")
    complete: dict[str, Any] = {}
    for section, call in CALLS.items():
        options = {} if recipe.get(section) is None else recipe[section]
        if section == "views":
            complete[section] = resolve_views(options, f"{where}: views")
        elif isinstance(call, Mapping):
            complete[section] = resolve_named(section, call, options, where)
        else:
            complete[section] = arguments(call, GIVEN_BY_COMMAND.get(section, ()), options, f"{where}: {section}")
    try:
        check_length(complete["pretrain"].get("epochs"), complete["pretrain"].get("budget"))
    except RecipeError as error:
        raise RecipeError(f"{where}: pretrain: {error}") from None
    try:
        require_names(complete["evaluate"]["protocols"])
    except RecipeError as error:
        raise RecipeError(f"{where}: evaluate.protocols: {error}") from None
    if refused := [key for key in complete["encoder"] if key in REACHING]:
        raise RecipeError(f"{where}: encoder takes no {refused[0]}; use pretrained, or import-weights")
    return complete


def resolve_named(section: str, constructors: Mapping[str, Callable], options: Any, where: str) -> dict:
    """A section that names its constructor: `{name: lars, lr: 0.2}`."""
    if section == "schedule" and not options:
        options = {"name": "warmup_cosine"}
    if not isinstance(options, dict) or "name" not in options:
        raise RecipeError(f"{where}: {section} needs a name, one of {', '.join(constructors)}")
    name = options["name"]
    check_name(name, constructors, f"{where}: {section}.name {name!r} is unknown")
    rest = {key: value for key, value in options.items() if key != "name"}
    given = GIVEN_BY_COMMAND.get(section, ())
    return {"name": name} | arguments(constructors[name], given, rest, f"{where}: {section}")


def check_name(name: Any, constructors: Mapping[str, Callable], problem: str) -> None:
    if not isinstance(name, str) or name not in constructors:
        fail(problem, str(name), list(constructors), f"known: {', '.join(constructors)}")


def resolve_views(options: Any, where: str) -> list[dict]:
    """The list of views: an entry `{times, do: [operations]}` is `times` views that draw independently."""
    if not isinstance(options, list):
        older = [key for key in OLDER_VIEWS if isinstance(options, dict) and key in options]
        form = "[{do: [...]}, {do: [...]}]" if {"first", "second"} & {*older} else "[{times: 2, do: [...]}]"
        instead = f" and has no {' or '.join(map(repr, older))}" if older else f", not {options!r}"
        raise RecipeError(f"{where} is a list{instead}; write `views: {form}`")
    return [resolve_view(entry, f"{where}.{index}") for index, entry in enumerate(options)]


def resolve_view(entry: Any, where: str) -> dict:
    """One entry of the list of views."""
    entry = arguments(repeat_view, (), entry, where)
    if not entry["do"]:
        raise RecipeError(f"{where}.do is an empty list; name an operation, as `- horizontal_flip: {{p: 0.5}}`")
    operations = [resolve_operation(options, f"{where}.do.{index}") for index, options in enumerate(entry["do"])]
    return entry | {"do": operations}


def resolve_operation(entry: Any, where: str) -> dict[str, dict]:
    """One operation of a view, `{name: {arguments}}`."""
    entry = {entry: {}} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or len(entry) != 1:
        raise RecipeError(f"{where}: {entry!r} is not one operation; write `- name: {{argument: value}}`")
    [(name, options)] = entry.items()
    check_name(name, OPERATIONS, f"{where}: there is no operation {name!r}")
    options = arguments(OPERATIONS[name], (), {} if options is None else options, f"{where}.{name}")
    try:
        build_operation(name, options)  # an operation checks its own numbers
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from None
    return {name: options}
