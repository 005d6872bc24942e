"""What `--help`, the messages, the page and the documents say about commands: help is shown complete, and commands parse."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
from test_cli import diptych
from test_documents import NAMES, ROOT, blocks

from diptych.commands import cli

COMMANDS = typer.main.get_command(cli.app).commands  # pyrefly: ignore[missing-attribute]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
# History, and notes on what was chosen at a time.
TODAY = [name for name in NAMES if name not in ("CHANGELOG.md", "LOG.md") and "decisions" not in name]


def problem_of(command: str) -> str | None:
    """What is wrong with `diptych NAME ...`: an unknown command or option, or a value of a wrong kind. Missing ones are not."""
    words = shlex.split(re.split(r" \\?[|] | && ", command)[0], comments=True)
    if words[1] not in COMMANDS:
        return f"there is no command {words[1]}"
    try:
        context = COMMANDS[words[1]].make_context(words[1], words[2:])
    except Exception as error:
        kind = type(error).__name__
        return None if kind == "MissingParameter" or "requires an argument" in str(error) else f"{kind}: {error}"
    wrong = [f"{option.opts[0]} is {value!r}" for option in context.command.params
             if option.metavar == "MODULE:FUNCTION" and (value := context.params[option.name]) and ":" not in value]  # fmt: skip
    return "; ".join(wrong) or None


def in_document(name: str) -> list[str]:
    """The commands of its `bash` blocks and between backquotes."""
    lines = [line for language, text, _ in blocks(name) if language == "bash" for line in text.splitlines()]
    inline = re.findall(r"`(diptych [a-z][^`\n]*)`", (ROOT / name).read_text("utf-8"))
    return [line for line in lines if line.startswith("diptych ")] + inline


def in_program(file: Path) -> list[str]:
    """The commands in its texts: texts that begin with one, and what stands between backquotes."""
    shown = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        begins = re.fullmatch(rf"diptych ({'|'.join(COMMANDS)}) [^`\n]*", text)
        shown += [text] if begins else re.findall(r"`(diptych [a-z][^`\n]*)`", text)
    return shown


def test_help_is_shown_complete(capsys, monkeypatch):
    """rich takes `[words]` for a style and drops them."""
    monkeypatch.setenv("COLUMNS", "400")
    for name, command in COMMANDS.items():
        _, out, _ = diptych(capsys, name, "--help")
        lost = [option.help for option in command.params if option.help and option.help not in out]
        assert not lost, f"diptych {name} --help does not show: {lost}"
        assert "[[" not in out, f"diptych {name} --help has doubled brackets"


@pytest.mark.parametrize("document", TODAY)
def test_commands_of_documents_parse(document):
    problems = {command: problem for command in in_document(document) if (problem := problem_of(command))}
    assert not problems


def test_commands_in_messages_and_pages_parse():
    shown = {command: file.name for file in SOURCES for command in in_program(file)}
    assert len(shown) > 30
    assert not {(shown[command], command): problem for command in shown if (problem := problem_of(command))}
