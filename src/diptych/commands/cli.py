"""The command line: verbs, not flags. A flag never mirrors a recipe's field; `optimizer.lr=0.3` sets any of them.

Everything heavy is imported inside a command, so that `--help` and a mistyped option answer at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from diptych.base.memory import keep_freed_memory
from diptych.base.terminal import open_streams
from diptych.commands.defaults import given, option_of_finetune
from diptych.commands.ending import run as run_command
from diptych.commands.opening import image_options, open_encoder, open_images, recipe_of

app = typer.Typer(
    name="diptych",
    help="Turn a folder of unlabelled images into an encoder you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[
    str,
    typer.Argument(help="Folder, zip, tar, Parquet, .npy/.npz, CIFAR batches, or `demo`.", metavar="SOURCE"),
]
Recipe = Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name (see `diptych recipes`) or file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Recipe values, as optimizer.lr=0.3", metavar="[KEY=VALUE]...")
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, made by pretrain.", metavar="RUN")]
Labels = Annotated[str, typer.Option(help="Where labels come from: auto, folder or none.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
OwnEncoder = Annotated[
    str | None,
    typer.Option("--encoder", help="A network of your own: the module is imported, from this directory too, and the function "
                 "called without arguments. This runs their code.", metavar="MODULE:FUNCTION"),
]  # fmt: skip


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed: other crops, weights and views.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that is there.")] = False,
) -> None:
    """Train and judge an encoder on photographs that ship with scikit-image and scikit-learn: no download, no GPU."""
    from diptych.commands.demo import run_demo

    run_demo(out, seed, resume, overwrite)


@app.command()
def pretrain(
    source: Source,
    overrides: Overrides = None,
    recipe: Recipe = "barlow-twins-small",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/pretrain"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where there is something to continue, else start.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    gpus: Annotated[
        int | None, typer.Option(help="Train in so many processes: one a GPU, or with pretrain.device=cpu.", min=1)
    ] = None,
) -> None:
    """Train an encoder on unlabelled images."""
    from diptych.base.processes import rank
    from diptych.commands import recipe as recipes
    from diptych.commands.build import build, build_watches
    from diptych.commands.launch import launch, launched
    from diptych.commands.schema import call_arguments
    from diptych.commands.tables import finished
    from diptych.training.pretrain import pretrain as train

    asked = recipes.read(recipe, overrides or [])
    if gpus is not None and not launched():
        sys.exit(launch(gpus, asked["pretrain"]["device"]))
    built = build(asked)
    photos = open_images(source, asked["images"], built.views[0].size)
    watch = build_watches(asked, built, photos)
    run = train(built.method, photos, built.views, built.optimizer, schedule=built.schedule, watch=watch, out=out, resume=resume,
                overwrite=overwrite, record={"recipe": recipe, "source": source, **asked},
                **call_arguments(train, asked["pretrain"]))  # fmt: skip
    if rank() == 0:
        print_result(finished(run))


@app.command()
def evaluate(
    run: RunFolder,
    train: Annotated[str, typer.Option(help="Labelled images to fit on (SOURCE).")],
    test: Annotated[str, typer.Option(help="Labelled images to judge on (SOURCE).")],
    labels: Labels = "auto",
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Of the split that chooses the probe's regularisation.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="knn, linear, linear-sgd, ... (repeat for several).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="Of the embedding: float32 or bfloat16.")] = None,
    encoder: OwnEncoder = None,
) -> None:
    """Judge an encoder: kNN and linear accuracy beside chance, raw pixels and the untrained encoder."""
    from diptych.commands.schema import call_arguments
    from diptych.downstream.evaluate import evaluate as judge

    trained = open_encoder(run, encoder)
    options = image_options(trained) | {"labels": labels}
    bank, queries = (open_images(source, options) for source in (train, test))
    settings = recipe_of(trained).get("evaluate", {}) | given(
        seed=seed, protocols=protocol or None, precision=precision
    )
    settings.pop("encoder", None)  # of runs before `--encoder`
    print_result(str(judge(trained, bank, queries, device=device, **call_arguments(judge, settings))))


@app.command()
def finetune(
    run: RunFolder,
    train: Annotated[str, typer.Option(help="Labelled images to train on (SOURCE).")],
    test: Annotated[str, typer.Option(help="Labelled images to judge on (SOURCE).")],
    labels: Annotated[
        str | None, option_of_finetune("labels", help="A share of each class, 0.01 to 1.0, or 10pc: 10 of each class.")
    ] = None,
    epochs: Annotated[int | None, option_of_finetune("epochs", min=1)] = None,
    encoder_lr: Annotated[float | None, option_of_finetune("encoder_lr", min=0.0)] = None,
    head_lr: Annotated[float | None, option_of_finetune("head_lr", min=0.0)] = None,
    seeds: Annotated[
        int | None,
        option_of_finetune("seeds", help="Repeat with other labels, crops and weights; mean and spread.", min=1),
    ] = None,
    seed: Annotated[int | None, option_of_finetune("seed", help="The first seed.")] = None,
    device: Device = "auto",
    encoder: OwnEncoder = None,
) -> None:
    """Train encoder and classifier on few labels, beside the same network from scratch on the same labels."""
    from diptych.downstream.finetune import finetune as tune

    trained = open_encoder(run, encoder)
    bank, queries = (open_images(source, image_options(trained)) for source in (train, test))
    options = given(labels=labels, epochs=epochs, encoder_lr=encoder_lr, head_lr=head_lr, seeds=seeds, seed=seed)
    print_result(str(tune(trained, bank, queries, device=device, **options)))


@app.command()
def embed(
    run: RunFolder,
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for vectors.npy, index.jsonl and meta.json.")],
    labels: Labels = "auto",
    device: Device = "auto",
    encoder: OwnEncoder = None,
) -> None:
    """Turn images into vectors: one row each, with its key and label."""
    from diptych.base.files import require_free_folder
    from diptych.downstream.embed import embed as make

    require_free_folder(out)
    trained = open_encoder(run, encoder)
    photos = open_images(source, image_options(trained) | {"labels": labels})
    rows, width = make(trained, photos, out=out, device=device).shape
    print_result(f"{out}/vectors.npy  {rows} x {width} float32, {len(photos.failed)} images failed")


@app.command()
def classify(
    run: Annotated[Path, typer.Argument(help="A run, or a folder of import-weights.", metavar="ENCODER")],
    source: Source,
    train: Annotated[str, typer.Option(help="Labelled images to fit the head on (SOURCE).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The table, .csv or .parquet.")] = Path("labels.csv"),
    labels: Labels = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the split that measures the head.")] = 0,
    encoder: OwnEncoder = None,
) -> None:
    """Label images: fit a linear head on labelled ones, write path, label and probability of every other."""
    from diptych.downstream.classify import classify as make
    from diptych.downstream.classify import require_table

    require_table(out)
    trained = open_encoder(run, encoder)
    options = image_options(trained)
    known, new = open_images(train, options | {"labels": labels}), open_images(source, options | {"labels": "none"})
    print_result(f"{out}  {make(trained, new, known, out=out, device=device, seed=seed)}")


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help="resnet50.pth, checkpoint_0099.pth.tar, a .ckpt, ...", metavar="FILE")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the encoder.")],
    size: Annotated[int | None, typer.Option(help="Pixels it sees [224; 32 for a small stem].", min=8)] = None,
    mean: Annotated[tuple[float, float, float] | None, typer.Option(help="Of its images [ImageNet's].")] = None,
    std: Annotated[tuple[float, float, float] | None, typer.Option(help="Of its images [ImageNet's].")] = None,
) -> None:
    """Make an encoder folder of a checkpoint of Barlow Twins, SimSiam, solo-learn, lightly or torchvision."""
    from diptych.runs.foreign import import_weights as make

    print_result(str(make(file, out, size, mean, std)))


@app.command()
def download(
    name: Annotated[str | None, typer.Argument(help="Which; without it, list them.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file [NAME.pth].")] = None,
) -> None:
    """Fetch published weights by name (the network is reached here, and for encoder.pretrained=true)."""
    from diptych.base.terminal import ProgressBar
    from diptych.runs.download import PUBLISHED, list_published
    from diptych.runs.download import download as fetch

    if name is None:
        return print_result(list_published())
    with ProgressBar("download (bytes)") as progress:
        got = fetch(name, out, progress)
    print_result(f"{got.file}  {got.bytes:,} bytes, sha256 {got.sha256}, licence: {PUBLISHED[name].licence}\n"
         f"next: diptych import-weights {got.file} --out {name}")  # fmt: skip


@app.command()
def views(
    source: Source,
    overrides: Overrides = None,
    recipe: Recipe = "barlow-twins-small",
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG file.")] = Path("views.png"),
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=200)] = 12,
) -> None:
    """Show what the network will see: each image beside its views, as a PNG."""
    from diptych.commands import recipe as recipes
    from diptych.commands.build import build_views
    from diptych.reporting.sheet import view_sheet

    sections = recipes.read(recipe, overrides or [])
    views = build_views(sections["views"])
    photos = open_images(source, sections["images"], views[0].size)
    save_png(view_sheet(photos, views, count, sections["pretrain"]["seed"]), out)
    print_result(str(out))


@app.command()
def report(
    run: RunFolder, out: Annotated[Path | None, typer.Option("--out", "-o", help="The HTML file.")] = None
) -> None:
    """Write report.html, one file made from the run folder alone."""
    from diptych.reporting.report import report as write

    print_result(str(write(run, out)))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None) -> None:
    """List the recipes, or print one."""
    from diptych.commands.shelf import list_recipes, print_recipe

    print_result(list_recipes() if name is None else print_recipe(name))


@app.command()
def doctor(
    source: Annotated[str | None, typer.Argument(help="Also scan these images.", metavar="[SOURCE]")] = None,
    hash: Annotated[Path | None, typer.Option(help="Note each image's content here, or compare with it.")] = None,
) -> None:
    """Tell versions, devices, threads, free space and distributed back ends, and scan a source for bad images."""
    from diptych.commands.doctor import examine

    print_result(examine(source, hash))


def save_png(picture, out: Path) -> None:
    from diptych.base.errors import OutputError

    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {out} ({error}); choose another --out ending in .png") from None


def print_result(text: str) -> None:
    """A result, on standard output, which nobody may be reading any more (`diptych recipes | head`)."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command that the shell asks for; it ends as ending.py says."""
    open_streams()
    keep_freed_memory()
    run_command(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False))


if __name__ == "__main__":
    main()
