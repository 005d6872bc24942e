"""The recipes that ship with the package: names, files and texts. Does not import torch."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diptych.base.errors import RecipeError

FOLDER = Path(__file__).parent / "recipes"


def list_recipes() -> str:
    """The names of the recipes with the first line of their files."""
    rows = [(path.stem, path.read_text().splitlines()[0].lstrip("# ")) for path in sorted(FOLDER.glob("*.yaml"))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {first}" for name, first in rows) + "\n\n`diptych recipes NAME` prints one."


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
