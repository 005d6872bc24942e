"""YAML without its surprises: 1e-3 is a number, `no` is a string, no key repeats, and nothing can be executed.

PyYAML reads YAML 1.1, where `1e-3` is a string, `no` is False, `1:30` is 90 and the last of two equal keys silently wins.
It is installed wherever timm is, which depends on it (docs/decisions).
"""

import re
from pathlib import Path
from typing import Any

import yaml

from diptych.base.errors import RecipeError

MAX_RECIPE_BYTES = 1_000_000  # a recipe is about a page


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and booleans; no aliases (bombs), no tags, no repeated keys."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.constructor.ConstructorError(None, None, f"tags ({event.tag}) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' appears twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _number(loader: StrictLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


# YAML 1.2's core schema: tag, pattern, the characters it can begin with.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
for _tag, _pattern, _first in _SCALARS:
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
StrictLoader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))
StrictLoader.add_constructor("tag:yaml.org,2002:float", _number)


def parse(text: str | bytes, name: str) -> Any:
    """The value of a YAML text. Raises RecipeError in one line with `name` and the line number."""
    if len(text) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{name} has {len(text):,} bytes; a recipe has at most {MAX_RECIPE_BYTES:,}")
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem, hint = str(error.problem), ""
        if "'\\t'" in problem:
            hint = " (indent with spaces, not tabs)"
        elif "<stream end>" in problem:
            hint = "; a bracket or a quote before it is never closed"
        raise RecipeError(f"{name}{line}: {problem}{hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name}: not YAML ({str(error).splitlines()[0]})") from None


def read(path: Path) -> Any:
    """The value of a YAML file. Raises RecipeError naming the file."""
    try:
        return parse(path.read_bytes(), str(path))
    except OSError as error:
        raise RecipeError(f"cannot read {path} ({error.strerror})") from None


def write(value: Any) -> str:
    """YAML that `parse` reads back as the same value."""
    return yaml.dump(value, Dumper=CompactDumper, sort_keys=False, allow_unicode=True, width=110)


class CompactDumper(yaml.SafeDumper):
    """Short lists on one line, as people write them."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        simple = all(not isinstance(item, (dict, list, tuple)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=simple)

    def ignore_aliases(self, data: Any) -> bool:
        return True


CompactDumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value))
CompactDumper.yaml_implicit_resolvers = {**StrictLoader.yaml_implicit_resolvers}
