"""The recipes that ship with the package: their names, their files, their texts. Needs no torch."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diptych.base.errors import RecipeError

FOLDER = Path(__file__).parent / "recipes"


def list_recipes() -> str:
    """Each recipe's name and the first line of its file."""
    rows = [(path.stem, path.read_text().splitlines()[0].lstrip("# ")) for path in sorted(FOLDER.glob("*.yaml"))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {first}" for name, first in rows) + "\n\n`diptych recipes NAME` prints one."


def print_recipe(name: str) -> str:
    """A recipe's text as it stands, comments included. Raises RecipeError for an unknown name."""
    return find(name).read_text().rstrip()


def names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships with the package."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {name}; give its path, or a name that `diptych recipes` lists")
        return path
    if name not in names():
        fail(f"there is no recipe {name!r}", name, names(), "`diptych recipes` lists them")
    return FOLDER / f"{name}.yaml"


def fail(problem: str, word: str, known: Sequence[str], otherwise: str = "") -> NoReturn:
    """A RecipeError that offers the near names, or else says what there is."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else otherwise or f"known: {', '.join(known)}"
    raise RecipeError(f"{problem}; {hint}")
