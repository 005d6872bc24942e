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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a stopped command has left off; else begin.")
    ] = False,
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    encoder: EncoderOption = None,
) -> None:
    """Turn images into vectors: a row per image, with its key and label."""
    from diptych.downstream.embed import embed as embed_images
    from diptych.downstream.embed import summary
    from diptych.embeddings.writer import require_place

    require_outside(require_place(out, resume), source)
    trained = open_encoder(run, encoder)
    # Each image is needed once: none is kept in memory.
    photos = open_images(source, image_options(trained) | {"labels": labels, "resident": False})
    embed_images(trained, photos, out=out, resume=resume, source=source, device=device)
    print_result(summary(out))
