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
    print_remark,
    print_result,
)
from diptych.commands.opening import image_options, open_encoder, open_images
from diptych.commands.places import out_option, require_outside


def embed(
    run: RunArgument,
    source: SourceArgument,
    out: Annotated[Path, out_option("Folder for vectors.npy, index.jsonl and meta.json; or one FILE.parquet.", "-o")],
    to: Annotated[
        str | None,
        typer.Option(help="npy, or parquet in addition to the folder's files.", show_default="by the ending of --out"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted command, or start a new one.")
    ] = False,
    thumbnails: Annotated[int, typer.Option(help="Parquet: side of its thumbnails in pixels, 0 for none.", min=0)] = 96,
    neighbors: Annotated[int, typer.Option(help="Parquet: neighbours per image, 0 for none.", min=0)] = 10,
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    encoder: EncoderOption = None,
) -> None:
    """Turn images into vectors, one row per image, with keys and labels."""
    from diptych.downstream.embed import embed as embed_images
    from diptych.downstream.embed import embed_table, require_format, summary
    from diptych.downstream.table import TableOptions

    options = TableOptions(thumbnails, neighbors)
    file = require_format(out, to, resume)
    require_outside(out, source)
    trained = open_encoder(run, encoder)
    # Each image is needed once, so none is kept in memory; with thumbnails twice, and then those that fit are.
    memory = {} if file is not None and thumbnails else {"resident": False}
    photos = open_images(source, image_options(trained) | {"labels": labels} | memory)
    if file is None:
        embed_images(trained, photos, out=out, resume=resume, source=source, device=device)
        return print_result(summary(out))
    vectors = embed_table(trained, photos, out, resume=resume, source=source, device=device, options=options)
    print_result(f"{file}  {len(vectors)} x {vectors.shape[1]} float32")


def search(
    vectors: Annotated[Path, typer.Argument(help="A folder or Parquet file written by embed.", metavar="VECTORS")],
    query: Annotated[
        str, typer.Argument(help="An image, a folder of images, a row number, or a key.", metavar="QUERY")
    ],
    top: Annotated[int, typer.Option(help="How many neighbours.")] = 20,
    out: Annotated[Path | None, out_option("A page of pictures, .html.", "-o")] = None,
    images: Annotated[
        str | None, typer.Option(help="Where the embedded images are.", show_default="as recorded")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The encoder that made the vectors.", show_default="as recorded")
    ] = None,
    index: Annotated[str, typer.Option(help="exact, or faiss (approximate, for many queries).")] = "exact",
    device: DeviceOption = "auto",
    encoder: EncoderOption = None,
) -> None:
    """Find the most similar images: a table, and a page of pictures."""
    from diptych.commands.searching import Search, answers_to, as_text, write_answers
    from diptych.downstream.search import check_options
    from diptych.downstream.vectors import open_bank
    from diptych.reporting.gallery import require_page

    options = Search(vectors, top=top, images=images, run=run, encoder=encoder, index=index, device=device)
    check_options(top, index)
    if out is not None:
        require_outside(require_page(out), query, *([images] if images else []))
    bank = open_bank(vectors)
    answers, photos = answers_to(query, bank, options)
    if out is not None:
        for remark in write_answers(out, bank, answers, photos, options):
            print_remark(remark)
    print_result(as_text(answers) + (f"\n{out}" if out is not None else ""))


def audit(
    source: Annotated[
        str | None, typer.Argument(help="The images; or give --train and --test.", metavar="SOURCE")
    ] = None,
    out: Annotated[Path, out_option("Folder for index.html and the table.", "-o")] = Path("audit"),
    train: Annotated[str | None, typer.Option(help="Training images (SOURCE), to find leaks into --test.")] = None,
    test: Annotated[str | None, typer.Option(help="Test images (SOURCE).")] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Run or encoder whose embeddings are compared.", show_default="the closed form of the images"
        ),
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
    vectors: Annotated[Path, typer.Argument(help="A folder or Parquet file written by embed.", metavar="VECTORS")],
    budget: Annotated[int, typer.Option(help="How many images to label.", min=1)] = 500,
    out: Annotated[Path, out_option("The table, .csv or .parquet.", "-o")] = Path("picked.csv"),
    seed: Annotated[int, typer.Option(help="Seed of the first centre.")] = 0,
) -> None:
    """Pick the images to label next: typical ones that cover the set, without near duplicates."""
    from diptych.commands.auditing import run_pick

    print_result(run_pick(vectors, budget, out, seed))
