"""The command line: a subcommand per task. No option repeats a key of a recipe; `optimizer.lr=0.3` sets any of them.

Commands import torch and what needs it inside their functions, so that `--help` and a mistyped option answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from diptych.base.memory import keep_freed_memory
from diptych.base.terminal import open_streams
from diptych.commands import finetune_options as of_finetune
from diptych.commands.defaults import given
from diptych.commands.ending import run_command
from diptych.commands.opening import image_options, open_encoder, open_images, section_of
from diptych.commands.places import out_option, require_outside

app = typer.Typer(
    name="diptych",
    help="Turn a folder of unlabelled images into an encoder you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SourceArgument = Annotated[
    str, typer.Argument(help="Folder, zip, tar, Parquet, .npy/.npz, CIFAR batches, or `demo`.", metavar="SOURCE")
]
RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="Recipe: a name (see `diptych recipes`) or a file.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Recipe values, as optimizer.lr=0.3", metavar="[KEY=VALUE]...")
]
RunArgument = Annotated[Path, typer.Argument(help="A run folder, made by pretrain.", metavar="RUN")]
LabelsOption = Annotated[str, typer.Option(help="Where labels come from: auto, folder or none.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
EncoderOption = Annotated[
    str | None,
    typer.Option("--encoder", help="Your own network: the module is imported, from this directory too, and the function "
                 "is called without arguments. This runs their code.", metavar="MODULE:FUNCTION"),
]  # fmt: skip


@app.command()
def demo(
    out: Annotated[Path, out_option("Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of crops, weights and views.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in that folder.")] = False,
) -> None:
    """Train and evaluate an encoder on photographs of scikit-image and scikit-learn: no download, no GPU."""
    from diptych.commands.demo import run_demo

    run_demo(out, seed, resume, overwrite)


@app.command()
def pretrain(
    source: SourceArgument,
    overrides: OverridesArgument = None,
    recipe: RecipeOption = "barlow-twins-small",
    out: Annotated[Path, out_option("Folder of the run.", "-o")] = Path("runs/pretrain"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped, else start.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
    gpus: Annotated[int | None, typer.Option(help="Number of GPUs (or of processes on the CPU).", min=1)] = None,
    extend: Annotated[
        int | None, typer.Option(help="Train the finished run in that folder on, to this number of epochs.", min=1)
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Start with the encoder of this run instead of random weights.", metavar="RUN")
    ] = None,
) -> None:
    """Train an encoder on unlabelled images."""
    from diptych.commands.pretraining import run_pretraining

    print_result(run_pretraining(source, overrides or [], recipe, out, resume=resume, overwrite=overwrite, gpus=gpus,
                                 extend=extend, start_from=start_from))  # fmt: skip


@app.command()
def quick(
    source: SourceArgument,
    out: Annotated[Path, out_option("Folder of the run.", "-o")] = Path("runs/quick"),
    size: Annotated[int, typer.Option(help="Pixels to which images are shrunk.", min=9)] = 32,
    entries: Annotated[int | None, typer.Option(help="Entries of the dictionary [by the number of images].")] = None,
    keep: Annotated[str, typer.Option(help="codes, twins (Barlow Twins' best linear map of them), or both.")] = "both",
    join: Annotated[Path | None, typer.Option(help="Run of a trained encoder to join with it.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
) -> None:
    """Compute an encoder from unlabelled images in closed form, in seconds to minutes, without training."""
    from diptych.commands.quickly import run_quick

    print_result(run_quick(source, out, size=size, entries=entries, keep=keep, join=join, seed=seed, device=device,
                           overwrite=overwrite))  # fmt: skip


@app.command()
def evaluate(
    run: RunArgument,
    train: Annotated[str, typer.Option(help="Labelled images to fit on (SOURCE).")],
    test: Annotated[str, typer.Option(help="Labelled images to test on (SOURCE).")],
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int | None, typer.Option(help="Seed of the split that chooses the probe's regularisation.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="knn, linear, ... (repeat for several).")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the embedding: float32 or bfloat16.")] = None,
    encoder: EncoderOption = None,
) -> None:
    """Evaluate an encoder beside chance, raw pixels, the closed form and the untrained encoder."""
    from diptych.commands.schema import call_arguments
    from diptych.downstream.evaluate import evaluate as evaluate_encoder

    trained = open_encoder(run, encoder)
    options = image_options(trained) | {"labels": labels}
    bank, queries = (open_images(source, options) for source in (train, test))
    options_given = given(seed=seed, protocols=protocol or None, precision=precision)
    settings = section_of(trained, "evaluate") | options_given
    settings.pop("encoder", None)  # a key of runs older than `--encoder`
    arguments = call_arguments(evaluate_encoder, settings)
    print_result(str(evaluate_encoder(trained, bank, queries, device=device, **arguments)))


@app.command()
def finetune(
    run: RunArgument,
    train: Annotated[str, typer.Option(help="Labelled images to train on (SOURCE).")],
    test: Annotated[str, typer.Option(help="Labelled images to test on (SOURCE).")],
    labels: of_finetune.Labels = None,
    epochs: of_finetune.Epochs = None,
    steps: of_finetune.Steps = None,
    batch_size: of_finetune.BatchSize = None,
    encoder_lr: of_finetune.EncoderRate = None,
    head_lr: of_finetune.HeadRate = None,
    scratch_lr: of_finetune.ScratchRate = None,
    published: of_finetune.Published = None,
    seeds: of_finetune.Seeds = None,
    seed: of_finetune.Seed = None,
    device: DeviceOption = "auto",
    encoder: EncoderOption = None,
) -> None:
    """Train encoder and classifier on few labels, beside a frozen encoder and training from scratch on the same labels."""
    from diptych.downstream.finetune import finetune as finetune_encoder

    trained = open_encoder(run, encoder)
    bank, queries = (open_images(source, image_options(trained)) for source in (train, test))
    options = given(labels=labels, epochs=epochs, steps=steps, batch_size=batch_size, encoder_lr=encoder_lr,
                    head_lr=head_lr, scratch_lr=scratch_lr, published=published, seeds=seeds, seed=seed)  # fmt: skip
    print_result(str(finetune_encoder(trained, bank, queries, device=device, **options)))


@app.command()
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


@app.command()
def classify(
    run: Annotated[Path, typer.Argument(help="A run, or a folder of import-weights.", metavar="ENCODER")],
    source: SourceArgument,
    train: Annotated[str, typer.Option(help="Labelled images to fit the head on (SOURCE).")],
    out: Annotated[Path, out_option("The table, .csv or .parquet.", "-o")] = Path("labels.csv"),
    labels: LabelsOption = "auto",
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the split that measures the head.")] = 0,
    encoder: EncoderOption = None,
) -> None:
    """Label images: fit a linear head on labelled ones, write path, label and probability of all others."""
    from diptych.downstream.classify import classify as classify_images
    from diptych.downstream.classify import require_table

    require_outside(require_table(out), source, train)
    trained = open_encoder(run, encoder)
    options = image_options(trained)
    known, new = open_images(train, options | {"labels": labels}), open_images(source, options | {"labels": "none"})
    print_result(f"{out}  {classify_images(trained, new, known, out=out, device=device, seed=seed)}")


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help="resnet50.pth, checkpoint_0099.pth.tar, a .ckpt, ...", metavar="FILE")],
    out: Annotated[Path, out_option("Folder of the encoder.", "-o")],
    size: Annotated[
        int | None, typer.Option(help="Side of its input in pixels [224; 32 for a small stem].", min=8)
    ] = None,
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Of its training images [ImageNet's].")
    ] = None,
    std: Annotated[tuple[float, float, float] | None, typer.Option(help="Of its training images [ImageNet's].")] = None,
) -> None:
    """Make an encoder folder from a checkpoint of Barlow Twins, SimSiam, solo-learn, lightly or torchvision."""
    from diptych.runs.foreign import import_weights as import_file

    print_result(str(import_file(file, out, size, mean, std)))


@app.command()
def download(
    name: Annotated[str | None, typer.Argument(help="Name of the weights; without it, list them.")] = None,
    out: Annotated[Path | None, out_option("The file [NAME.pth].", "-o")] = None,
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


@app.command()
def views(
    source: SourceArgument,
    overrides: OverridesArgument = None,
    recipe: RecipeOption = "barlow-twins-small",
    out: Annotated[Path, out_option("The PNG file.", "-o")] = Path("views.png"),
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=200)] = 12,
) -> None:
    """Show the network's input: images beside their views, as a PNG."""
    from diptych.commands.build import build_views
    from diptych.commands.recipe import read_recipe
    from diptych.reporting.sheet import require_free_picture, view_sheet, write_picture

    require_outside(require_free_picture(out), source)
    sections = read_recipe(recipe, overrides or [])
    views = build_views(sections["views"])
    photos = open_images(source, sections["images"], views[0].size)
    write_picture(out, view_sheet(photos, views, count, sections["pretrain"]["seed"]))
    print_result(str(out))


@app.command()
def report(run: RunArgument, out: Annotated[Path | None, out_option("The HTML file.", "-o")] = None) -> None:
    """Write report.html, one file made from the run folder alone."""
    from diptych.reporting.report import report as write_report

    print_result(str(write_report(run, out)))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None) -> None:
    """List the recipes, or print one."""
    from diptych.commands.shelf import list_recipes, print_recipe

    print_result(list_recipes() if name is None else print_recipe(name))


@app.command()
def doctor(
    source: Annotated[str | None, typer.Argument(help="Also check these images.", metavar="[SOURCE]")] = None,
    hash: Annotated[
        Path | None, typer.Option(help="Write the images' sha256 to this file, or compare with it.")
    ] = None,
) -> None:
    """List versions, devices, threads, free space and distributed back ends; check a source for bad images."""
    from diptych.commands.doctor import examine

    print_result(examine(source, hash))


def print_result(text: str) -> None:
    """Print what a command has to say: standard output is for results, standard error for progress."""
    typer.echo(text)


def main() -> None:
    """Run the command of sys.argv and exit with its code (see ending.py)."""
    open_streams()
    keep_freed_memory()
    run_command(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))


if __name__ == "__main__":
    main()
