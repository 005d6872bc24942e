"""The defaults of a function, read from its file: `--help` shows them without importing torch."""

import ast
from pathlib import Path
from typing import Any

import typer

PACKAGE = Path(__file__).parents[1]


def defaults_of(file: str, function: str) -> dict[str, Any]:
    """The arguments' defaults in the signature of `function`, in a file of the package ("downstream/finetune.py").

    A default is a literal, or the name of a literal of the same file. Raises KeyError where it is neither.
    """
    tree = ast.parse((PACKAGE / file).read_text())
    literals: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            literals |= literals_of(node)
    [definition] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    arguments = definition.args
    positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    named = [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    pairs = [*zip(positional, arguments.defaults, strict=True), *named]
    return {
        argument.arg: literals[value.id] if isinstance(value, ast.Name) else ast.literal_eval(value)
        for argument, value in pairs
    }


def literals_of(node: ast.Assign) -> dict[str, Any]:
    """The names that an assignment at the top of a file gives to literals, `A = 1` and `A, B = 1, 2`."""
    try:
        value = ast.literal_eval(node.value)
    except ValueError:  # a call or another name
        return {}
    target = node.targets[0]
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple):
        return {name.id: part for name, part in zip(target.elts, value, strict=True) if isinstance(name, ast.Name)}
    return {}


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None. The function that gets them has its own defaults for the others."""
    return {name: value for name, value in arguments.items() if value is not None}


def option_of_finetune(name: str, help: str = "", flag: str | None = None, **limits: Any) -> Any:
    """An option that is an argument of `diptych.finetune`. Its help shows the default of the signature."""
    default = defaults_of("downstream/finetune.py", "finetune")[name]
    shown = "fitted" if default is None else str(default)
    names = () if flag is None else (flag,)
    return typer.Option(*names, help=help, show_default=shown, **limits)
