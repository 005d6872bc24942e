"""The recipes that ship with the package: names, files and texts. Does not import torch."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diptych.base.errors import RecipeError

FOLDER = Path(__file__).parent / "recipes"
# What is read of a recipe without building it.
METHOD = re.compile(r"^method:\s+{?name: (\w+)", re.MULTILINE)
HARDWARE, TIME = (re.compile(rf"^# {word} +(.+)", re.MULTILINE) for word in ("hardware", "time"))


def list_recipes() -> str:
    """The recipes by method: name, first line, hardware and time of each."""
    width = max(map(len, recipe_names()))
    methods: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        text = path.read_text()
        first, *_ = text.splitlines()
        method, hardware, time = (
            match.group(1) for match in (find.search(text) for find in (METHOD, HARDWARE, TIME)) if match
        )
        row = f"  {path.stem:<{width}}  {first.lstrip('# ')}\n  {'':<{width}}  {hardware}; time: {time}"
        group = next((known for known in methods if method.endswith(known)), method)  # with the variants of a method
        methods.setdefault(group, []).append(row)
    groups = ("\n".join([method, *rows]) for method, rows in methods.items())
    return "\n\n".join([*groups, "`diptych recipes NAME` prints one."])


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
