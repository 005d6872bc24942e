"""Ranges of arguments, as metadata of their type hints: `lr: Annotated[float, Range(0)]`. One function checks them all.

`checked` makes a function check its own arguments. `commands.schema` checks those that a recipe gives, before an image is read.
"""

import functools
import inspect
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, TypeGuard, TypeVar

from diptych.base.errors import RecipeError

F = TypeVar("F", bound=Callable)
LARGEST = 1e18  # of numbers without another bound: more is no whole number of 64 bits, and its square no float32


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, both included; `above` and `below` are bounds that are not. NaN is in no range.

    Infinity is only in a range whose `most` is infinite.
    """

    least: float = -LARGEST
    most: float = LARGEST
    above: float | None = None
    below: float | None = None

    def takes(self, value: float) -> bool:
        inside = self.above is None or value > self.above
        return self.least <= value <= self.most and inside and (self.below is None or value < self.below)

    def __str__(self) -> str:
        low = f"above {spelled(self.above)}" if self.above is not None else f"at least {spelled(self.least)}"
        if self.below is not None:
            return f"{low} and below {spelled(self.below)}"
        return low if self.most == math.inf else f"{low} and at most {spelled(self.most)}"


@dataclass(frozen=True)
class Words:
    """Words that match `pattern` completely. spelling: how a message says so; by default as the pattern's alternatives."""

    pattern: str
    spelling: str = ""

    def takes(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value, re.ASCII) is not None

    def __str__(self) -> str:
        return self.spelling or f"one of {self.pattern.replace('|', ', ')}"


Misfit = tuple[str, Any, Range | Words]  # place in a value, the part there, the range that it is outside of
Count = Annotated[int, Range(1, 10**9)]
Width = Annotated[int, Range(1, 2**20)]  # of a layer
Side = Annotated[int, Range(1, 2**13)]  # of an image or a view, in pixels
Seed = Annotated[int, Range(-(2**63), 2**63 - 1)]
Rate = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Momentum = Annotated[float, Range(0, below=1)]
Positive = Annotated[float, Range(above=0)]
Device = Annotated[str, Words("auto|cpu|cuda(:[0-9]{1,3})?", "auto, cpu, cuda or cuda:N")]
Options = Annotated[Any, Range(-(2**17), 2**17)]  # of a network: all numbers in them


def checked(call: F) -> F:
    """The function (or `__init__`) with its arguments checked: RecipeError for one outside of its range."""
    signature, name = inspect.signature(call), call.__qualname__.removesuffix(".__init__")

    @functools.wraps(call)
    def inner(*args: Any, **kwargs: Any) -> Any:
        hints = ranged_hints(call)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # the call itself says what is missing
            given = {}
        for key, value in given.items():
            if key in hints:
                check_range(value, hints[key], f"{name}: {key}")
        return call(*args, **kwargs)

    return typing.cast(F, inner)


@functools.cache
def ranged_hints(call: Callable) -> dict[str, Any]:
    """The type hints of a function or a class by parameter, with their ranges."""
    initialised = inspect.isclass(call) and not hasattr(call, "__dataclass_fields__")
    return typing.get_type_hints(call.__init__ if initialised else call, include_extras=True)


def check_range(value: Any, hint: Any, name: str) -> None:
    """RecipeError where a value, or an item of it, is outside of the range in its hint. Its type is not checked here."""
    if misfit := outside(value, hint):
        place, wrong, limit = misfit
        raise RecipeError(f"{name}{place} is {short(wrong)}; it must be {limit}")


def outside(value: Any, hint: Any, certain: bool = True) -> Misfit | None:
    """(place in the value, the part that is outside, its range) of the first such part; None if there is none.

    certain: a value of another type than the range's is outside; in `X | Y` another member may take it.
    """
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        if inner[0] is Any:
            return outside_anywhere(value, inner[1])
        limit = inner[1]
        compared = isinstance(value, str) if isinstance(limit, Words) else is_real(value)
        compared = compared and (inner[0] is not int or isinstance(value, Integral))
        return ("", value, limit) if (not limit.takes(value) if compared else certain) else None
    if kind in (typing.Union, types.UnionType):
        return next(filter(None, (outside(value, member, False) for member in inner)), None)
    if isinstance(value, list | tuple) and inner and inspect.isclass(kind) and issubclass(kind, Sequence):
        items = [part for part in inner if part is not Ellipsis]
        if len(items) == 1:
            items *= len(value)
        return first_of(
            (f".{i}", outside(part, item)) for i, (part, item) in enumerate(zip(value, items, strict=False))
        )
    return None


def outside_anywhere(value: Any, limit: Range) -> Misfit | None:
    """As `outside`, for all numbers in nested lists and maps."""
    if isinstance(value, Mapping):
        return first_of((f".{key}", outside_anywhere(part, limit)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return first_of((f".{i}", outside_anywhere(part, limit)) for i, part in enumerate(value))
    return ("", value, limit) if is_real(value) and not limit.takes(value) else None


def first_of(misfits: Any) -> Misfit | None:
    return next(((place + misfit[0], *misfit[1:]) for place, misfit in misfits if misfit), None)


def is_real(value: Any) -> TypeGuard[float]:
    """Whether a value is a number, also one of NumPy's; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def spelled(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def short(value: Any) -> str:
    """A value in a message, cut where it is long. A whole number of thousands of digits has no text in Python."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a whole number of more than 30 digits"
    return reprlib.repr(value)
