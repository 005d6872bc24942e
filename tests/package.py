"""The package's own files as text and syntax trees, for the tests that read them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "diptych"


def name_of(path: Path) -> str:
    """`views/geometry.py` is `views.geometry`, `views/__init__.py` is `views`, the door is `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1]) if len(parts) > 1 and parts[-1] == "__init__" else ".".join(parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
TREES = {name: ast.parse(text, str(FILES[name])) for name, text in TEXTS.items()}


def imports(nodes: Iterator[ast.AST], folder: tuple[str, ...] = ()) -> set[str]:
    """What nodes import, absolutely; `folder` is where the file lies that says `from .heads import mlp`."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["diptych", *folder]
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def imports_of(name: str) -> set[str]:
    """What a file imports, wherever in it: `from .heads import mlp` is `diptych.heads.mlp`."""
    return imports(ast.walk(TREES[name]), FILES[name].relative_to(PACKAGE).parts[:-1])


def rooms_of(name: str) -> set[str]:
    """The files of ours that a file imports; `import diptych` alone is `__init__`."""
    rooms = set()
    for imported in imports_of(name):
        parts = imported.split(".")
        if parts[0] == "diptych":
            inside = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
            rooms.add(next((room for room in inside if room in FILES), "__init__"))
    return rooms - {name}


def dotted(node: ast.AST | None) -> str:
    """`torch.load` of an expression, "" where it is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """`file.name` or `file.Class.name`, and the node, of every function that is not inside another one."""

    def walk(name: str, body: list[ast.stmt]) -> Iterator[tuple[str, ast.FunctionDef]]:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node
            elif isinstance(node, ast.ClassDef):
                yield from walk(f"{name}.{node.name}", node.body)

    for name, tree in TREES.items():
        yield from walk(name, tree.body)
