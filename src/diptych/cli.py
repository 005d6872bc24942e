"""The command line: verbs, not flags. A flag never mirrors a recipe's field; `optimizer.lr=0.3` sets any of them.

Everything heavy is imported inside a command, so that `--help` and a mistyped option answer at once.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from diptych.errors import DiptychError

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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed: other crops, weights and views.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that is there.")] = False,
) -> None:
    """Train and judge an encoder on photographs that ship with scikit-image and scikit-learn: no download, no GPU."""
    from diptych.demo import run_demo

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
) -> None:
    """Train an encoder on unlabelled images."""
    from diptych import recipe as recipes
    from diptych.build import build, build_watches
    from diptych.pretrain import pretrain as train

    asked = recipes.read(recipe, overrides or [])
    built = build(asked)
    photos = open_images(source, asked["images"], built.views[0].size)
    watch = build_watches(asked, built, photos)
    run = train(built.method, photos, built.views, built.optimizer, schedule=built.schedule, watch=watch, out=out, resume=resume,
                overwrite=overwrite, record={"recipe": recipe, "source": source, **asked}, **asked["pretrain"])  # fmt: skip
    tell(
        f"{run.folder}  (next: diptych evaluate {run.folder} --train SOURCE --test SOURCE; diptych report {run.folder})"
    )


@app.command()
def evaluate(
    run: RunFolder,
    train: Annotated[str, typer.Option(help="Labelled images to fit on (SOURCE).")],
    test: Annotated[str, typer.Option(help="Labelled images to judge on (SOURCE).")],
    labels: Labels = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the split that chooses the probe's regularisation.")] = 0,
) -> None:
    """Judge an encoder: kNN and linear accuracy beside chance, raw pixels and the untrained encoder."""
    from diptych.judge import evaluate as judge
    from diptych.judge import table
    from diptych.run import Run, is_run

    recipe = Run(run).recipe if is_run(run) else {}
    size, options = image_options(run, recipe)
    bank, queries = (open_images(source, options | {"labels": labels}, size) for source in (train, test))
    lines = judge(run, bank, queries, device=device, **(recipe.get("evaluate", {}) | {"seed": seed}))
    tell(table(lines))


@app.command()
def embed(
    run: RunFolder,
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for vectors.npy, index.jsonl and meta.json.")],
    labels: Labels = "auto",
    device: Device = "auto",
) -> None:
    """Turn images into vectors: one row each, with its key and label."""
    from diptych.judge import embed as make
    from diptych.run import Run, is_run

    size, options = image_options(run, Run(run).recipe if is_run(run) else {})
    photos = open_images(source, options | {"labels": labels}, size)
    made = make(run, photos, out=out, device=device)
    tell(f"{out}/vectors.npy  {made.shape[0]} x {made.shape[1]} float32, {len(photos.failed)} images failed")


@app.command()
def views(
    source: Source,
    overrides: Overrides = None,
    recipe: Recipe = "barlow-twins-small",
    out: Annotated[Path, typer.Option("--out", "-o", help="The PNG file.")] = Path("views.png"),
    count: Annotated[int, typer.Option(help="How many images.", min=1, max=200)] = 12,
) -> None:
    """Show what the network will see: each image beside its two views, as a PNG."""
    from diptych import recipe as recipes
    from diptych.build import build_views
    from diptych.judge import view_sheet

    asked = recipes.read(recipe, overrides or [])
    made = build_views(asked["views"])
    photos = open_images(source, asked["images"], made[0].size)
    sheet = view_sheet(photos, made, count, asked["pretrain"]["seed"])
    save_png(sheet, out)
    tell(str(out))


@app.command()
def report(
    run: RunFolder, out: Annotated[Path | None, typer.Option("--out", "-o", help="The HTML file.")] = None
) -> None:
    """Write report.html, one file made from the run folder alone."""
    from diptych.report import report as write

    tell(str(write(run, out)))


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None) -> None:
    """List the recipes, or print one."""
    from diptych.doctor import list_recipes, print_recipe

    tell(list_recipes() if name is None else print_recipe(name))


@app.command()
def doctor(
    source: Annotated[str | None, typer.Argument(help="Also scan these images.", metavar="[SOURCE]")] = None,
) -> None:
    """Tell versions, devices, threads, free space and distributed back ends, and scan a source for bad images."""
    from diptych.doctor import examine

    tell(examine(source))


def open_images(source: str, options: dict, size: int | None):
    """The images of SOURCE at the recipe's size, or at the size that the views ask for."""
    from diptych.images import RESIDENT_BYTES, images
    from diptych.progress import Progress

    wanted = options | {"size": options.get("size") or size}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    with Progress("read images") as progress:
        photos = images(source, **wanted, progress=progress)
        if photos.bytes_in_memory <= RESIDENT_BYTES:
            photos.pixels()
    return photos


def image_options(run: Path, recipe: dict) -> tuple[int, dict]:
    """How a run's encoder wants its images: its own size; background, fit and bad images as in training."""
    import json

    from diptych.weights import encoder_folder

    config = json.loads((encoder_folder(run) / "config.json").read_bytes())
    asked = recipe.get("images") or {}
    return config["diptych"]["preprocessing"]["size"], {k: v for k, v in asked.items() if k not in ("size", "labels")}


def save_png(picture, out: Path) -> None:
    from diptych.errors import OutputError

    try:
        picture.save(out)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {out} ({error}); choose another --out ending in .png") from None


def tell(text: str) -> None:
    """A result, on standard output."""
    typer.echo(text)


def stop(message: str, code: int) -> NoReturn:
    print(f"diptych: {message}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run a command; turn what a user can cause into one line and its exit code."""
    from diptych.signals import INTERRUPTED, Preempted

    warnings.showwarning = lambda message, *rest, **more: print(f"diptych: {message}", file=sys.stderr)
    try:
        app()
    except DiptychError as error:
        stop(str(error), error.exit_code)
    except Preempted as request:
        stop(request.message, 75)
    except KeyboardInterrupt:
        stop("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `diptych recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
