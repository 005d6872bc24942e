"""Write docs/api.md, the reference of the public names, from their signatures and docstrings.

    python docs/make_api.py

A test compares the file with what this writes.
"""

import importlib
import inspect
import sys
from pathlib import Path

import diptych

FILE = Path(__file__).with_name("api.md")
MODULES = ("views", "methods", "losses", "optimizers", "schedules")
# Functions of anybody's vectors (M, E): file of diptych.embeddings -> names.
ON_VECTORS = {
    "store": ("save_embeddings", "load_embeddings"),
    "nearest": ("nearest", "nearest_others"),
    "duplicates": ("near_duplicates", "groups_of"),
    "outliers": ("outlier_scores", "expected_ordinary"),
    "label_errors": ("suspect_labels",),
    "picking": ("pick",),
}


def reference() -> str:
    """The page: functions and classes of `diptych`, then those of its public modules."""
    words = "N images of a batch, M of a set, S pixels of a side, E and D widths ([words](words.md))"
    parts = ["# API", "", f"Made by `docs/make_api.py` from the docstrings. Shapes: {words}."]
    names = [name for name in diptych.__all__ if name not in MODULES]
    for name in names:
        parts += entry(f"diptych.{name}", getattr(diptych, name))
    for module_name in MODULES:
        module = getattr(diptych, module_name)
        parts += ["", f"## diptych.{module_name}", "", text_of(module)]
        for name in public(module):
            parts += entry(f"diptych.{module_name}.{name}", getattr(module, name), "###")
    parts += [
        "",
        "## diptych.embeddings",
        "",
        "Functions of anybody's vectors: NumPy arrays or tensors (M, E), also memory-mapped.",
    ]
    for file, names in ON_VECTORS.items():
        module = importlib.import_module(f"diptych.embeddings.{file}")
        for name in names:
            parts += entry(f"diptych.embeddings.{file}.{name}", getattr(module, name), "###")
    return "\n".join(parts) + "\n"


def public(module) -> list[str]:
    """The names of a module's functions and classes for users: those of `__all__`, else those it defines itself."""
    own = getattr(module, "__all__", None)
    if own is not None:
        return [name for name in own if callable(getattr(module, name))]
    return [name for name, value in vars(module).items()
            if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            and inspect.getdoc(value)]  # fmt: skip


def entry(name: str, value, level: str = "##") -> list[str]:
    call = f"{name}{signature_of(value)}"
    return ["", f"{level} {name}", "", "```text", call, "```", "", text_of(value)]


def signature_of(value) -> str:
    """The arguments, one line each where they are many, without the annotations' metadata."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    arguments, star = [], False
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not star:
            arguments.append("*")
            star = True
        prefix = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        star = star or one.kind is one.VAR_POSITIONAL
        default = "" if one.default is one.empty else f"={default_of(one.default)}"
        arguments.append(f"{prefix}{one.name}{default}")
    line = f"({', '.join(arguments)})"
    return line if len(line) < 100 else "(\n    " + ",\n    ".join(arguments) + ",\n)"


def default_of(value) -> str:
    return getattr(value, "__name__", None) or repr(value)


def text_of(value) -> str:
    """A docstring as Markdown: text as it is, indented blocks as code."""
    return (inspect.getdoc(value) or "").replace("<", "&lt;")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
