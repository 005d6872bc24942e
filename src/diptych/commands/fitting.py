"""The parts of a recipe fit together after overrides: what belongs to an old choice goes, and sizes follow each other.

What an override says wins. Then comes what follows from the overrides here, and last what the recipe's file says.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from diptych.methods import METHODS
from diptych.networks.encoders import not_taken
from diptych.training.optimizers import OPTIMIZERS
from diptych.training.schedules import SCHEDULES

Path = tuple[str, ...]  # of a key: ("encoder", "name")
Say = Callable[[str], object]
NAMED: Mapping[str, Mapping[str, Callable]] = {"method": METHODS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
STRIDES = {
    "small": 1,
    "small-padded": 1,
    "small-stride2": 2,
    "standard": 4,
}  # pixels to a pixel of the first stage's maps
PIXELS = ("size", "sides")  # arguments of operations, in pixels of the images
STEP, LEAST = 8, 8  # pixels: views that are smaller than the images are multiples of 8


def fit(recipe: dict, original: Mapping, given: Sequence[Path], say: Say) -> None:
    """Make a recipe with its overrides, not yet checked, fit together in place.

    original: the recipe's file without overrides. given: the keys that overrides set; they are not touched, so that an
    option of the user's that a part does not take is an error. say: called with a line for each change.
    """
    for section in ("encoder", *NAMED):
        options, old = recipe.get(section), original.get(section)
        if isinstance(options, dict) and isinstance(old, dict) and options.get("name") != old.get("name"):
            mine = {key: value for key, value in options.items()
                    if key != "name" and not is_given((section, key), given)}  # fmt: skip
            leave_out(section, options, mine, str(old.get("name")), say)
            if section == "method":
                leave_out_rules(recipe, given, say)
    fit_sizes(recipe, original, given, say)


def leave_out(section: str, options: dict, mine: Mapping[str, Any], old: str, say: Say) -> None:
    """Remove from `options` those of `mine`, which the recipe's file has chosen for `old`, that the new choice does not take.

    Rate, decay and momentum of one optimizer do not suit another: all of its options go.
    """
    name, unfit = options["name"], []
    if section == "encoder" and isinstance(name, str):
        unfit = not_taken(name, dict(mine))
    elif section in NAMED and name in NAMED[section]:
        taken = () if section == "optimizer" else inspect.signature(NAMED[section][name]).parameters
        unfit = [key for key in mine if key not in taken]
    for key in unfit:
        del options[key]
    if unfit:
        reason = f"{old}'s {', '.join(unfit)}" if section == "optimizer" else ", ".join(unfit)
        does = "takes its own rates, not" if section == "optimizer" else "does not take"
        say(f"{section} {name} {does} {reason}: left out")


def leave_out_rules(recipe: dict, given: Sequence[Path], say: Say) -> None:
    """Remove the optimizer's rules for the networks of the old method."""
    optimizer = recipe.get("optimizer")
    if not isinstance(optimizer, dict):
        return
    rules = optimizer.get("groups")
    if isinstance(rules, list) and not is_given(("optimizer", "groups"), given):
        optimizer["groups"] = [rule for rule in rules if isinstance(rule, dict) and rule.get("match") == "1d"]
        if len(optimizer["groups"]) < len(rules):
            say("optimizer.groups names networks of the recipe's own method: left out")


def fit_sizes(recipe: dict, original: Mapping, given: Sequence[Path], say: Say) -> None:
    """Where an override sets images.size, scale the sizes of views and encoder as the images."""
    new = size_of(recipe.get("images"))
    places = list(sizes_in(recipe, given))
    all_sizes = [size for _, _, value in sizes_in(original, ()) for size in numbers(value)]
    old = size_of(original.get("images")) or max(all_sizes, default=None)
    if not is_given(("images", "size"), given) or new is None or old is None or new == old:
        return
    changes = {}
    for place, key, value in places:
        place[key] = (
            [scaled(part, old, new, key) for part in value] if isinstance(value, list) else scaled(value, old, new, key)
        )
        changes |= dict(zip(numbers(value), numbers(place[key]), strict=True)) if key == "size" else {}
    fit_stem(recipe, old, new, given, say)
    if changes:
        text = ", ".join(f"{before} -> {after}" for before, after in sorted(changes.items(), reverse=True))
        say(f"images.size is {new}: sizes of views follow ({text} pixels)")


def fit_stem(recipe: dict, old: int, new: int, given: Sequence[Path], say: Say) -> None:
    """A stem for images of `new` pixels in place of one for `old`: maps, and so the time of a step, stay about as they are."""
    encoder = recipe.get("encoder")
    if not isinstance(encoder, dict):
        return
    stem = encoder.get("stem")
    if stem not in STRIDES or encoder.get("pretrained") or is_given(("encoder", "stem"), given):
        return
    stride = STRIDES[stem] * new / old
    fitting = min(STRIDES, key=lambda known: (abs(math.log(STRIDES[known] / stride)), known != stem))
    if STRIDES[fitting] != STRIDES[stem] and not not_taken(str(encoder.get("name")), {"stem": fitting}):
        encoder["stem"] = fitting
        say(f"images.size is {new}: encoder.stem follows ({stem} -> {fitting})")


def sizes_in(recipe: Mapping, given: Sequence[Path]) -> Iterator[tuple[dict, str, Any]]:
    """(map, key, value) of the sizes in pixels of a recipe's views and of its encoder, without those of overrides."""
    encoder, views = recipe.get("encoder"), recipe.get("views")
    if isinstance(encoder, dict) and size_of(encoder) and not is_given(("encoder", "size"), given):
        yield encoder, "size", encoder["size"]
    for i, entry in enumerate(views if isinstance(views, list) else []):
        operations = entry.get("do") if isinstance(entry, dict) else None
        for j, operation in enumerate(operations if isinstance(operations, list) else []):
            for name, options in operation.items() if isinstance(operation, dict) else ():
                for key in PIXELS if isinstance(options, dict) else ():
                    path = ("views", str(i), "do", str(j), str(name), key)
                    if numbers(options.get(key)) and not is_given(path, given):
                        yield options, key, options[key]


def scaled(value: int, old: int, new: int, key: str) -> int:
    """A size in pixels for images of `new` instead of `old` pixels; of a view smaller than they are, a multiple of 8."""
    exact = value * new / old
    return max(LEAST, STEP * round(exact / STEP)) if key == "size" and value != old else round(exact)


def size_of(options: Any) -> int | None:
    """The option `size` of a section, where it is a number of pixels."""
    size = options.get("size") if isinstance(options, Mapping) else None
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def numbers(value: Any) -> list[int]:
    """The whole numbers in a number or a list of them; [] for anything else."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(part, int) and not isinstance(part, bool) for part in values) else []


def is_given(path: Path, given: Sequence[Path]) -> bool:
    """Whether an override sets the key at `path`, or a section or map that contains it, or a part of it."""
    return any(path[: len(other)] == other[: len(path)] for other in given)
