"""Commands that judge and use a trained encoder.

Commands import torch and what needs it inside their functions, so that `--help` and a mistyped option answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from diptych.commands import finetune_options as of_finetune
from diptych.commands.arguments import (
    DeviceOption,
    EncoderOption,
    GroupByOption,
    LabelsOption,
    RunArgument,
    SourceArgument,
    SplitOption,
    TestOption,
    print_result,
)
from diptych.commands.defaults import given
from diptych.commands.opening import image_options, open_encoder, open_images, open_labelled, section_of
from diptych.commands.places import out_option, require_outside


def evaluate(
    run: RunArgument,
    train: Annotated[str, typer.Option(help="Labelled images to fit on (SOURCE).")],
    test: TestOption = None,
    split: SplitOption = 0.2,
    group_by: GroupByOption = None,
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int | None, typer.Option(help="Seed of the splits.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="knn, linear, linear-sgd, finetune, ...; repeat for several.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the embedding: float32, tf32 or bfloat16; by default the run's on a GPU.")
    ] = None,
    encoder: EncoderOption = None,
) -> None:
    """Evaluate an encoder and compare it with chance, raw pixels, the closed form and the untrained encoder."""
    from diptych.commands.paging import page_again
    from diptych.commands.schema import call_arguments
    from diptych.downstream.evaluate import evaluate as evaluate_encoder
    from diptych.downstream.protocols import require_names

    require_names(protocol or ())  # before images are read
    trained = open_encoder(run, encoder)
    options = image_options(trained) | {"labels": labels}
    bank, queries = open_labelled(train, test, options, split, group_by, seed or 0)
    options_given = given(seed=seed, protocols=protocol or None, precision=precision)
    settings = section_of(trained, "evaluate") | options_given
    settings.pop("encoder", None)  # a key of runs older than `--encoder`
    arguments = call_arguments(evaluate_encoder, settings)
    evaluation = evaluate_encoder(trained, bank, queries, device=device, **arguments)
    print_result("\n".join([str(evaluation), *page_again(trained)]))


def finetune(
    run: RunArgument,
    train: Annotated[str, typer.Option(help="Labelled images to train on (SOURCE).")],
    test: TestOption = None,
    split: SplitOption = 0.2,
    group_by: GroupByOption = None,
    share: of_finetune.Labels = None,
    epochs: of_finetune.Epochs = None,
    steps: of_finetune.Steps = None,
    batch_size: of_finetune.BatchSize = None,
    encoder_lr: of_finetune.EncoderRate = None,
    head_lr: of_finetune.HeadRate = None,
    scratch_lr: of_finetune.ScratchRate = None,
    published: of_finetune.Published = None,
    seeds: of_finetune.Seeds = None,
    seed: of_finetune.Seed = None,
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    encoder: EncoderOption = None,
) -> None:
    """Fine-tune on few labels, and compare with a frozen encoder and with training from scratch on the same labels."""
    from diptych.commands.paging import page_again
    from diptych.downstream.finetune import finetune as finetune_encoder

    trained = open_encoder(run, encoder)
    bank, queries = open_labelled(train, test, image_options(trained) | {"labels": labels}, split, group_by, seed or 0)
    options = given(labels=share, epochs=epochs, steps=steps, batch_size=batch_size, encoder_lr=encoder_lr,
                    head_lr=head_lr, scratch_lr=scratch_lr, published=published, seeds=seeds, seed=seed)  # fmt: skip
    evaluation = finetune_encoder(trained, bank, queries, device=device, **options)
    print_result("\n".join([str(evaluation), *page_again(trained)]))


def report(
    run: RunArgument,
    out: Annotated[Path | None, out_option("The HTML file.", "-o")] = None,
    images: Annotated[
        str | None, typer.Option(help="Map these images first; they need no labels.", metavar="SOURCE")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Write report.html from the run folder, a single file."""
    from diptych.downstream.overview import overview
    from diptych.reporting.report import report as write_report
    from diptych.runs.encoder import load

    if images is not None:
        overview(run, open_images(images, image_options(load(run))), device=device)
    print_result(str(write_report(run, out)))


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders; those that differ only in their seed are grouped.", metavar="RUN..."),
    ],
    group_by: Annotated[
        str | None,
        typer.Option(help="Groups of test images: folder, FILE.csv:COLUMN or a pattern such as '(video_[0-9]+)'."),
    ] = None,
    out: Annotated[Path, out_option("The HTML file.", "-o")] = Path("compare.html"),
) -> None:
    """Compare runs: recipes, curves, and accuracies on the same test images, with intervals of the differences."""
    from diptych.downstream.compare import compare as compare_runs

    print_result(str(compare_runs(*runs, group_by=group_by, out=out)))


def labels(
    run: RunArgument,
    train: Annotated[str, typer.Option(help="Labelled images to fit on (SOURCE).")],
    test: TestOption = None,
    split: SplitOption = 0.2,
    group_by: GroupByOption = None,
    draws: Annotated[int, typer.Option(help="Random draws for each number of labels, at least 5.")] = 5,
    scratch: Annotated[
        bool, typer.Option(help="Also train the network from scratch, which takes most of the time.")
    ] = True,
    target: Annotated[float | None, typer.Option(help="Estimate the labels needed for this accuracy, as 0.9.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws and of the split.")] = 0,
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    out: Annotated[Path, out_option("The HTML file.", "-o")] = Path("labels.html"),
    encoder: EncoderOption = None,
) -> None:
    """Measure accuracy as a function of the number of labels, and forecast it for more labels."""
    from diptych.downstream.label_curve import labels as label_curves
    from diptych.reporting.gallery import require_page

    require_outside(require_page(out), train, *filter(None, [test]))
    trained = open_encoder(run, encoder)
    bank, queries = open_labelled(train, test, image_options(trained) | {"labels": labels}, split, group_by, seed)
    options = {"draws": draws, "scratch": scratch, "target": target, "seed": seed, "device": device, "out": out}
    print_result(str(label_curves(trained, bank, queries, **options)))


def classify(
    run: Annotated[Path, typer.Argument(help="A run, or a folder of import-weights.", metavar="ENCODER")],
    source: SourceArgument,
    train: Annotated[str, typer.Option(help="Labelled images to fit the head on (SOURCE).")],
    out: Annotated[Path, out_option("The table, .csv or .parquet.", "-o")] = Path("labels.csv"),
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the split on which the head is evaluated.")] = 0,
    encoder: EncoderOption = None,
) -> None:
    """Label images: fit a linear head to labelled images, and write path, label and probability of all others."""
    from diptych.downstream.classify import classify as classify_images
    from diptych.downstream.spreadsheet import require_table

    require_outside(require_table(out), source, train)
    trained = open_encoder(run, encoder)
    options = image_options(trained)
    known, new = open_images(train, options | {"labels": labels}), open_images(source, options | {"labels": "none"})
    print_result(f"{out}  {classify_images(trained, new, known, out=out, device=device, seed=seed)}")


def export(
    run: RunArgument,
    to: Annotated[
        list[str], typer.Option(help="timm, transformers, torchvision, onnx or torch-export (repeat for several).")
    ],
    out: Annotated[Path, out_option("Folder for the files and for README.md, which explains how to open them.", "-o")],
    licence: Annotated[str, typer.Option(help="Of the weights, such as apache-2.0; other: not stated.")] = "other",
    images: Annotated[
        str | None, typer.Option(help="Images (SOURCE) for checking the files against the encoder.")
    ] = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option("--with-preprocessing", help="Add an ONNX file that takes uint8 squares and normalises them."),
    ] = False,
    encoder: EncoderOption = None,
) -> None:
    """Write the encoder for programs without Diptych, check the files against it, and add a model card."""
    from diptych.base.files import require_free_folder
    from diptych.data.images import images as open_source
    from diptych.downstream.export import export as export_encoder

    require_outside(require_free_folder(out), *([] if images is None else [images]))
    trained = open_encoder(run, encoder)
    photos = None
    if images is not None:  # a few of which are read, whatever their number
        photos = open_source(images, **image_options(trained) | {"labels": "none", "resident": False})
    options = {"licence": licence, "images": photos, "with_preprocessing": with_preprocessing}
    print_result(str(export_encoder(trained, to, out=out, **options)))


def import_weights(
    file: Annotated[Path, typer.Argument(help="resnet50.pth, checkpoint_0099.pth.tar, a .ckpt, ...", metavar="FILE")],
    out: Annotated[Path, out_option("Folder of the encoder.", "-o")],
    size: Annotated[
        int | None, typer.Option(help="Side of its input in pixels.", min=8, show_default="224; 32 for a small stem")
    ] = None,
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Mean of its training images.", show_default="ImageNet's")
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Their standard deviation.", show_default="ImageNet's")
    ] = None,
) -> None:
    """Make an encoder folder from a checkpoint of Barlow Twins, SimSiam, solo-learn, lightly or torchvision."""
    from diptych.runs.foreign import import_weights as import_file

    print_result(str(import_file(file, out, size, mean, std)))


def download(
    name: Annotated[
        str | None, typer.Argument(help="Name of the weights; omit it to list them.", metavar="NAME")
    ] = None,
    out: Annotated[Path | None, out_option("The file.", "-o", show_default="NAME.pth")] = None,
) -> None:
    """Download published weights by name. Only this and encoder.pretrained=true use the network."""
    from diptych.base.terminal import ProgressBar
    from diptych.runs.download import PUBLISHED, list_published
    from diptych.runs.download import download as download_weights

    if name is None:
        return print_result(list_published())
    with ProgressBar("download (bytes)") as progress:
        file = download_weights(name, out, progress)
    print_result(f"{file.file}  {file.bytes:,} bytes, sha256 {file.sha256}, licence: {PUBLISHED[name].licence}\n"
         f"next: diptych import-weights {file.file} --out {name}")  # fmt: skip
