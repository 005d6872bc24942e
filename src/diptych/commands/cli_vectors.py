"""Commands that make embeddings and work on them.

Commands import torch and what needs it inside their functions, so that `--help` and a mistyped option answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from diptych.commands.arguments import (
    DeviceOption,
    EncoderOption,
    LabelsOption,
    RunArgument,
    SourceArgument,
    print_result,
)
from diptych.commands.opening import image_options, open_encoder, open_images
from diptych.commands.places import out_option, require_outside


def embed(
    run: RunArgument,
    source: SourceArgument,
    out: Annotated[Path, out_option("Folder for vectors.npy, index.jsonl and meta.json.", "-o")],
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    encoder: EncoderOption = None,
) -> None:
    """Turn images into vectors: a row per image, with its key and label."""
    from diptych.base.files import require_free_folder
    from diptych.downstream.embed import embed as embed_images
    from diptych.downstream.embed import summary

    require_outside(require_free_folder(out), source)
    trained = open_encoder(run, encoder)
    photos = open_images(source, image_options(trained) | {"labels": labels})
    embed_images(trained, photos, out=out, device=device)
    print_result(summary(out))


def audit(
    source: Annotated[
        str | None, typer.Argument(help="The images; or give --train and --test.", metavar="[SOURCE]")
    ] = None,
    out: Annotated[Path, out_option("Folder for index.html and the table.", "-o")] = Path("audit"),
    train: Annotated[str | None, typer.Option(help="Training images (SOURCE): lists what leaks into --test.")] = None,
    test: Annotated[str | None, typer.Option(help="Test images (SOURCE).")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run or encoder to compare by [the closed form of the images].")
    ] = None,
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the closed form and of the folds.")] = 0,
    encoder: EncoderOption = None,
) -> None:
    """Audit images: duplicates, leaks from training to test, outliers, suspected labels, blank and unreadable files."""
    from diptych.commands.auditing import run_audit

    print_result(run_audit(source, train, test, out, run=run, labels=labels, device=device, seed=seed, own=encoder))


def pick(
    vectors: Annotated[Path, typer.Argument(help="A folder of `diptych embed`.", metavar="VECTORS")],
    budget: Annotated[int, typer.Option(help="How many images to label.", min=1)] = 500,
    out: Annotated[Path, out_option("The table, .csv or .parquet.", "-o")] = Path("picked.csv"),
    seed: Annotated[int, typer.Option(help="Seed of the first centre.")] = 0,
) -> None:
    """Pick the images to label next: typical ones that cover all others, without near duplicates."""
    from diptych.commands.auditing import run_pick

    print_result(run_pick(vectors, budget, out, seed))
