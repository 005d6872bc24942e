"""Arguments and options that several commands share, and what prints their results."""

from pathlib import Path
from typing import Annotated

import typer

SourceArgument = Annotated[
    str, typer.Argument(help="Folder, zip, tar, Parquet, .npy/.npz, CIFAR batches, or `demo`.", metavar="SOURCE")
]
RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="Recipe: a name (see `diptych recipes`) or a file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Recipe values, such as optimizer.lr=0.3", metavar="KEY=VALUE")
]
RunArgument = Annotated[Path, typer.Argument(help="A run, or a folder of import-weights.", metavar="RUN")]
TestOption = Annotated[
    str | None, typer.Option(help="Labelled images to test on (SOURCE).", show_default="a part of --train, see --split")
]
SplitOption = Annotated[float, typer.Option(help="Fraction of each class to test on if there is no --test.")]
GroupByOption = Annotated[
    str | None,
    typer.Option(help="Images of one group stay together: folder, '(pattern)' or FILE.csv:COLUMN.", metavar="KEY"),
]
LabelsOption = Annotated[
    str, typer.Option("--labels", help="Where labels come from: auto, folder, none or FILE.csv:COLUMN.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
SeedsOption = Annotated[
    int | None,
    typer.Option(
        help="Train this many seeds into OUT/seed-0 and so on, continue unfinished ones, and compare them.", min=1
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", help="Your own network: imports the module, also from this directory, and calls the function "
                 "without arguments. This runs its code.", metavar="MODULE:FUNCTION"),
]  # fmt: skip


def print_result(text: str) -> None:
    """Print what a command has to say: standard output is for results, standard error for progress."""
    typer.echo(text)


def print_remark(text: str) -> None:
    """Print what a person should know beside the result."""
    typer.echo(f"diptych: {text}", err=True)
