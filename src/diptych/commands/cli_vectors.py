"""Commands that make embeddings and work on them.

Commands import torch and what needs it inside their functions, so that `--help` and a mistyped option answer at once.
"""

from pathlib import Path
from typing import Annotated

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
