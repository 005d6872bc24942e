"""Commands that make encoders, and what they train on.

Commands import torch and what needs it inside their functions, so that `--help` and a mistyped option answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from diptych.commands.arguments import (
    DeviceOption,
    OverridesArgument,
    RecipeOption,
    SeedsOption,
    SourceArgument,
    print_result,
)
from diptych.commands.opening import open_images
from diptych.commands.places import out_option, require_outside


def demo(
    out: Annotated[Path, out_option("Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of crops, weights and views.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder.")] = False,
    seeds: SeedsOption = None,
) -> None:
    """Train and evaluate an encoder on photographs from scikit-image and scikit-learn: no download, no GPU."""
    from diptych.commands.demo import run_demo, run_demos

    if seeds is not None:
        return print_result(run_demos(out, seed, seeds, overwrite))
    run_demo(out, seed, resume, overwrite)


def pretrain(
    source: SourceArgument,
    overrides: OverridesArgument = None,
    recipe: RecipeOption = "barlow-twins-small",
    out: Annotated[Path, out_option("Folder of the run.", "-o")] = Path("runs/pretrain"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run, or start a new one.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
    gpus: Annotated[int | None, typer.Option(help="Number of GPUs (or of processes on the CPU).", min=1)] = None,
    extend: Annotated[
        int | None, typer.Option(help="Continue the finished run in that folder to this number of epochs.", min=1)
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Start with the encoder of this run instead of random weights.", metavar="RUN")
    ] = None,
    seeds: SeedsOption = None,
) -> None:
    """Train an encoder on unlabelled images."""
    from diptych.commands.pretraining import run_pretraining, run_pretrainings

    if seeds is not None:
        return print_result(run_pretrainings(seeds, source, overrides or [], recipe, out, overwrite=overwrite, gpus=gpus,
                                             extend=extend, start_from=start_from))  # fmt: skip
    print_result(run_pretraining(source, overrides or [], recipe, out, resume=resume, overwrite=overwrite, gpus=gpus,
                                 extend=extend, start_from=start_from))  # fmt: skip


def quick(
    source: SourceArgument,
    out: Annotated[Path, out_option("Folder of the run.", "-o")] = Path("runs/quick"),
    size: Annotated[int, typer.Option(help="Side in pixels to which images are resized.", min=9)] = 32,
    entries: Annotated[
        int | None, typer.Option(help="Entries of the dictionary.", show_default="by the number of images")
    ] = None,
    keep: Annotated[str, typer.Option(help="codes, twins (their best linear map for Barlow Twins), or both.")] = "both",
    join: Annotated[Path | None, typer.Option(help="Run whose trained encoder is joined with the closed form.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
) -> None:
    """Compute an encoder from unlabelled images in closed form, in seconds to minutes, without training."""
    from diptych.commands.quickly import run_quick

    print_result(run_quick(source, out, size=size, entries=entries, keep=keep, join=join, seed=seed, device=device,
                           overwrite=overwrite))  # fmt: skip


def views(
    source: SourceArgument,
    overrides: OverridesArgument = None,
    recipe: RecipeOption = "barlow-twins-small",
    out: Annotated[Path, out_option("The PNG file.", "-o")] = Path("views.png"),
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=200)] = 12,
) -> None:
    """Show images and their views, the input of the network, as a PNG."""
    from diptych.commands.build import build_views
    from diptych.commands.recipe import read_recipe
    from diptych.reporting.sheet import require_free_picture, view_sheet, write_picture

    require_outside(require_free_picture(out), source)
    sections = read_recipe(recipe, overrides or [])
    views = build_views(sections["views"])
    photos = open_images(
        source, sections["images"] | {"resident": False}, views[0].size
    )  # of all images, `count` are read
    write_picture(out, view_sheet(photos, views, count, sections["pretrain"]["seed"]))
    print_result(str(out))


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Describe this method's recipes, or print this recipe.", metavar="NAME")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Describe every recipe.")] = False,
) -> None:
    """List the recipes, describe those of a method, or print one."""
    from diptych.commands.shelf import show_recipes

    print_result(show_recipes(name, every=every))


def plan(
    source: SourceArgument,
    overrides: OverridesArgument = None,
    recipe: RecipeOption = "barlow-twins-small",
    budget: Annotated[str, typer.Option(help="Training time, such as 20m or 2h.")] = "20m",
) -> None:
    """Measure the cost of a recipe on these images and this machine, and propose settings for a time budget."""
    from diptych.commands.planning import run_plan

    print_result(run_plan(source, overrides or [], recipe, budget))


def doctor(
    source: Annotated[str | None, typer.Argument(help="Also check these images.", metavar="SOURCE")] = None,
    hash: Annotated[
        Path | None, typer.Option(help="Write the images' sha256 to this file, or compare with it.")
    ] = None,
) -> None:
    """List versions, devices, threads, free space and distributed back ends; check a source for bad images."""
    from diptych.commands.doctor import examine

    print_result(examine(source, hash))
