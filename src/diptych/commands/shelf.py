"""The recipes that ship with the package: names, files and texts. Does not import torch."""

import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from diptych.base.errors import RecipeError

FOLDER = Path(__file__).parent / "recipes"
COLUMNS = 80
ENDINGS = {"-cifar10-small": 1, "-small": 0, "-cifar10": 2, "-imagenet": 3}  # their order in a group, others behind
LEGEND = """\
-small: a folder of photographs, at 64 pixels on a CPU; -cifar10-small: CIFAR-10
on a CPU; -cifar10: on a GPU; -imagenet: as published, on 8 GPUs or more;
-published: what a program does; -intended: what its text says it does;
demo: what `diptych demo` trains.

`diptych recipes METHOD` says what each needs (--all: of all methods),
`diptych recipes NAME` prints one, `diptych plan SOURCE` fits one to images."""
# What is read of a recipe without building it.
METHOD = re.compile(r"^method:\s+{?name: (\w+)", re.MULTILINE)
HARDWARE, TIME = (re.compile(rf"^# {word} +(.+)", re.MULTILINE) for word in ("hardware", "time"))


def list_recipes(groups: Mapping[str, Sequence[str]]) -> str:
    """The names of the recipes, by method, on one screen."""
    indent = 2 + max(map(len, groups))
    rows = [
        textwrap.fill(", ".join(names), COLUMNS, initial_indent=f"{method:<{indent}}", subsequent_indent=" " * indent,
                      break_on_hyphens=False)
        for method, names in groups.items()
    ]  # fmt: skip
    return "\n".join([*rows, "", LEGEND])


def describe_recipes(groups: Mapping[str, Sequence[str]]) -> str:
    """First line, hardware and time of each recipe, by method."""
    return "\n\n".join("\n\n".join([method, *map(described, names)]) for method, names in groups.items())


def described(name: str) -> str:
    text = (FOLDER / f"{name}.yaml").read_text()
    first, *_ = text.splitlines()
    hardware, time = (match.group(1) for match in (find.search(text) for find in (HARDWARE, TIME)) if match)
    lines = [first.lstrip("# "), f"hardware: {hardware}", f"time: {time}"]
    indents = {"initial_indent": "    ", "subsequent_indent": "      "}
    return "\n".join([f"  {name}", *(textwrap.fill(line, COLUMNS, **indents) for line in lines)])


def recipes_by_method() -> dict[str, list[str]]:
    """Method -> names of its recipes, from the smallest computer to the largest; variants of a method are in one group."""
    methods: dict[str, list[str]] = {}
    for name in sorted(recipe_names(), key=lambda name: (name.partition("-")[0], rank_of(name), name)):
        match = METHOD.search((FOLDER / f"{name}.yaml").read_text())
        method = match.group(1) if match else "other"
        group = next((known for known in methods if method.endswith(known)), method)
        methods.setdefault(group, []).append(name)
    return {method: methods[method] for method in sorted(methods)}


def rank_of(name: str) -> int:
    return next((rank for ending, rank in ENDINGS.items() if name.endswith(ending)), len(ENDINGS))


def show_recipes(name: str | None, *, every: bool) -> str:
    """What `diptych recipes` prints: names, the descriptions of a method or of all recipes, or the text of one recipe."""
    groups, method = recipes_by_method(), (name or "").replace("-", "_")
    if every and name is not None:
        raise RecipeError(f"--all describes every recipe: leave out {name}, or leave out --all")
    if name is None:
        return describe_recipes(groups) if every else list_recipes(groups)
    if method in groups:
        return describe_recipes({method: groups[method]})
    known = [*recipe_names(), *groups]
    if name not in known and "." not in name:
        fail(f"there is no recipe and no method {name!r}", name, known, "`diptych recipes` lists them")
    return print_recipe(name)


def print_recipe(name: str) -> str:
    """A recipe's text with its comments. Raises RecipeError for an unknown name."""
    return find_recipe(name).read_text().rstrip()


def recipe_names() -> list[str]:
    """The names of the recipes that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships with the package."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {name}; give its path, or a name that `diptych recipes` lists")
        return path
    if name not in recipe_names():
        fail(f"there is no recipe {name!r}", name, recipe_names(), "`diptych recipes` lists them")
    return FOLDER / f"{name}.yaml"


def fail(problem: str, word: str, known: Sequence[str], otherwise: str = "") -> NoReturn:
    """Raise a RecipeError that suggests similar names, or else lists the known ones."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else otherwise or f"known: {', '.join(known)}"
    raise RecipeError(f"{problem}; {hint}")
