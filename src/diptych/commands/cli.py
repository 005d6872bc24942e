"""The command line: a subcommand per task. No option repeats a key of a recipe; `optimizer.lr=0.3` sets any of them."""

import sys
from typing import Annotated

import typer

from diptych.base.memory import keep_freed_memory
from diptych.base.terminal import open_streams
from diptych.commands import cli_encoders, cli_training, cli_vectors
from diptych.commands.ending import run_command

app = typer.Typer(
    name="diptych",
    help="Turn a folder of unlabelled images into an encoder you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Panel of `--help` -> its commands, named as their functions.
PANELS = {
    "Make an encoder": (cli_training.demo, cli_training.pretrain, cli_training.quick),
    "Evaluate and use it": (
        cli_encoders.evaluate,
        cli_encoders.finetune,
        cli_encoders.compare,
        cli_encoders.labels,
        cli_encoders.classify,
        cli_encoders.report,
    ),  # fmt: skip
    "Use it elsewhere": (cli_encoders.export,),
    "Embeddings": (cli_vectors.embed, cli_vectors.search, cli_vectors.audit, cli_vectors.pick),
    "Published weights": (cli_encoders.download, cli_encoders.import_weights),
    "Look before training": (cli_training.plan, cli_training.doctor, cli_training.views, cli_training.recipes),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def print_version(wanted: bool) -> None:
    if wanted:
        from diptych.runs.environment import version_of

        typer.echo(f"diptych {version_of('diptych')}")
        raise typer.Exit


@app.callback()
def general(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a folder of unlabelled images into an encoder you can trust."""


def main() -> None:
    """Run the command of sys.argv and exit with its code (see ending.py)."""
    open_streams()
    keep_freed_memory()
    run_command(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))


if __name__ == "__main__":
    main()
