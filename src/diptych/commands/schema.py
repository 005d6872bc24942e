"""A signature as a schema: the parameters a recipe may set, whether a value fits, and the object it describes.

A recipe may set the parameters whose type hints YAML can hold: true or false, numbers, words, lists and maps of them,
and frozen dataclasses of them, written as a map of their fields.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from diptych.base.errors import RecipeError
from diptych.base.ranges import check_range, ranged_hints, short
from diptych.commands.shelf import fail

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", types.NoneType: "null"}
LISTS = (list, tuple, Sequence)


def arguments(make: Callable, given: Collection[str], options: Any, where: str) -> dict:
    """`options` as plain data, with the defaults of `make`'s signature.

    given: arguments that a command passes; a recipe must not set them.

    Raises RecipeError for an unknown key, a missing one, or a value of a wrong type or outside of its range. A function that
    takes `**options` takes unknown keys too; the range of their hint holds for all numbers in them.
    """
    if not isinstance(options, Mapping):
        raise RecipeError(f"{where} is a map of arguments, not {options!r}")
    parameters, hints = inspect.signature(make).parameters, hints_of(make)
    known = {name: hints[name] for name in parameters if name in hints and name not in given and is_data(hints[name])}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in options:
            if key not in known:
                fail(f"{where} has no {key!r}", str(key), list(known), f"it takes {', '.join(known)}")
    values = {key: checked_value(value, known[key], f"{where}.{key}") if key in known else value
              for key, value in options.items()}  # fmt: skip
    defaults = {
        name: parameters[name].default for name in known if parameters[name].default is not inspect.Signature.empty
    }
    ranges = ranged_hints(make)
    for key, value in values.items():
        check_range(value, ranges[key] if key in known else ranges["options"], f"{where}.{key}")
    for name in known:
        if name not in values and name not in defaults:
            raise RecipeError(f"{where} needs {name}")
    return as_data(defaults | values)


def call_arguments(make: Callable, options: Mapping[str, Any]) -> dict:
    """Checked `options` as `make` takes them: a map becomes the dataclass that its parameter's hint names."""
    hints = hints_of(make)
    return {key: as_object(value, hints.get(key)) for key, value in options.items()}


def as_object(value: Any, hint: Any) -> Any:
    """The dataclass that a map describes; any other value unchanged."""
    record = dataclass_of(hint)
    return record(**call_arguments(record, value)) if record and isinstance(value, Mapping) else value


def as_data(value: Any) -> Any:
    """Tuples as lists and dataclasses as maps, so that writing a recipe and reading it gives the same recipe."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_data(inner) for key, inner in value.items()}
    return [as_data(inner) for inner in value] if isinstance(value, list | tuple) else value


def hints_of(make: Callable) -> dict[str, Any]:
    """The type hints of a call's parameters, by name."""
    initialised = inspect.isclass(make) and not dataclasses.is_dataclass(make)
    return typing.get_type_hints(make.__init__ if initialised else make)


def checked_value(value: Any, hint: Any, where: str) -> Any:
    """The value, with its defaults where it is the map of a dataclass; RecipeError where it does not fit its hint."""
    record = dataclass_of(hint)
    if record and isinstance(value, Mapping):
        value = arguments(record, (), value, where)
        try:
            as_object(value, record)  # the dataclass's own checks run before an image is read
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from None
        return value
    if not fits_hint(value, hint):
        raise RecipeError(f"{where} is {short(value)}, which is not {spell(hint)}")
    return value


def is_data(hint: Any) -> bool:
    """Whether YAML can hold values of a type; of `X | Y`, whether it can hold those of X or of Y."""
    kind, inner = kind_of(hint), typing.get_args(hint)
    if members := members_of(hint):
        return any(is_data(member) for member in members if member is not types.NoneType)
    if hint in WORDS or kind is typing.Literal:
        return True
    if kind in LISTS or is_map(kind):
        return all(item in (Any, Ellipsis) or is_data(item) for item in inner)
    return is_record(hint) and all(is_data(field) for field in typing.get_type_hints(hint).values())


def fits_hint(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be passed to a parameter of this type (a list as a tuple, a whole number as a float)."""
    kind, inner = kind_of(hint), typing.get_args(hint)
    if members := members_of(hint):
        return any(fits_hint(value, member) for member in members)
    if hint is Any:
        return True
    if kind is typing.Literal:
        return value in inner
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint in WORDS:
        return isinstance(value, hint)
    if kind in LISTS:
        return isinstance(value, list | tuple) and items_fit(value, inner)
    return is_map(kind) and isinstance(value, Mapping)


def items_fit(items: Sequence, inner: tuple) -> bool:
    """Whether items fit the arguments of a hint: none, one for all (`list[int]`, `tuple[int, ...]`) or one per item."""
    inner = tuple(hint for hint in inner if hint is not Ellipsis)
    if len(inner) > 1:
        return len(items) == len(inner) and all(map(fits_hint, items, inner))
    return all(fits_hint(item, hint) for hint in inner for item in items)


def spell(hint: Any) -> str:
    """A type in words for messages; of `X | Y`, the types that YAML can hold."""
    if members := members_of(hint):
        return " or ".join(spell(member) for member in members if is_data(member))
    kind = kind_of(hint)
    if kind is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if is_record(hint):
        return f"a map of {', '.join(field.name for field in dataclasses.fields(hint))}"
    return WORDS.get(hint) or ("a list" if kind in LISTS else "a map")


def dataclass_of(hint: Any) -> type | None:
    """The frozen dataclass in `Record` or `Record | None`; None for other hints."""
    return next((member for member in members_of(hint) or (hint,) if is_record(member)), None)


def members_of(hint: Any) -> tuple:
    """The types of `X | Y`; () for other hints."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()


def kind_of(hint: Any) -> Any:
    """`list` of `list[int]`; a plain type is its own kind."""
    return typing.get_origin(hint) or hint


def is_map(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Mapping)


def is_record(hint: Any) -> bool:
    """Whether a type is a frozen dataclass: its values do not change."""
    parameters = getattr(hint, "__dataclass_params__", None)
    return inspect.isclass(hint) and parameters is not None and parameters.frozen
