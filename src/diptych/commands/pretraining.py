"""`diptych pretrain`: a recipe and a source become a run."""

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.base.errors import RecipeError
from diptych.base.placement import place
from diptych.base.processes import barrier, rank
from diptych.base.random_at import random_at
from diptych.base.terminal import ProgressBar
from diptych.commands.build import Built, build, build_watches
from diptych.commands.launch import launch, launched
from diptych.commands.opening import open_images
from diptych.commands.paging import page_watch, write_page
from diptych.commands.places import require_outside
from diptych.commands.recipe import read_recipe
from diptych.commands.schema import call_arguments
from diptych.commands.seeds import run_seeds
from diptych.commands.tables import run_summary
from diptych.data.images import Images
from diptych.networks.encoders import built_with
from diptych.runs.contents import is_run, require_place
from diptych.runs.run import Run
from diptych.runs.starting import start_encoder
from diptych.training.advice import advise
from diptych.training.budget import steps_of
from diptych.training.enough import require_images
from diptych.training.extend import extend as extend_run
from diptych.training.pretrain import pretrain
from diptych.views.flips import MOST_IMAGES, flips_look_alike


def run_pretraining(source: str, overrides: Sequence[str], recipe: str, out: Path, *, resume: bool, overwrite: bool,
                    gpus: int | None, extend: int | None, start_from: Path | None) -> str:  # fmt: skip
    """Train and return the text that `diptych pretrain` prints; "" on all processes but the first."""
    if extend is not None:
        if overwrite:
            raise RecipeError("--extend continues a run and --overwrite deletes it: leave one of them out")
        overrides = [*overrides, f"pretrain.epochs={extend}"]
    changes: list[str] = []
    sections = read_recipe(recipe, overrides, changes.append)
    here = place(os.environ)  # the processes do not know each other yet
    first = here is None or here["RANK"] == "0"
    require_outside(out, source)
    if first:  # for the others, the first may have begun to write
        require_place(out, resume or extend is not None, overwrite)
    if gpus is not None and not launched():
        sys.exit(launch(gpus, sections["pretrain"]["device"]))
    with ProgressBar("pretrain", show=first) as progress:
        for line in changes:
            progress.say(line)
        continued, started = is_run(out) and (resume or extend is not None), {}
        begin = partial(start_from_encoder, start_from, started, Run(out) if continued else None)
        built = build(sections, begin)
        record = {"recipe": recipe, "source": source, **with_stem(sections, built), **started}
        fits = partial(require_images, batch_size=sections["pretrain"]["batch_size"])
        photos = open_images(source, sections["images"], built.views[0].size, fits=fits)
        record["images"] = sections["images"] | {"gray_range": list(photos.squares.gray_range)}
        if extend is not None and first:
            extend_run(out, extend, photos, record)
        if first and not continued:
            untrained = start_from is None and not sections["encoder"]["pretrained"]
            worth = advice_on_worth(sections, len(photos)) if untrained else None
            for advice in filter(None, (worth, advice_on_flips(sections["views"], photos))):
                progress.say(advice)
    was_finished = first and continued and Run(out).finished
    watch = [*build_watches(sections, built, photos), page_watch(out)]
    run = pretrain(built.method, photos, built.views, built.optimizer, schedule=built.schedule, watch=watch, out=out,
                   resume=resume or extend is not None, overwrite=overwrite, record=record,
                   **call_arguments(pretrain, sections["pretrain"]))  # fmt: skip
    lines = [f"{out} had finished: nothing was trained"] if was_finished else []
    if rank() == 0:
        lines.append(run_summary(run))
        if not was_finished:  # its page may show an evaluation
            lines.append(
                write_page(run, photos, seed=sections["pretrain"]["seed"], device=sections["pretrain"]["device"])
            )
    barrier()  # a process that ends is a lost one to those that still work
    return "\n".join(lines) if rank() == 0 else ""


def start_from_encoder(folder: Path | None, record: dict, continued: Run | None, encoder: nn.Module) -> None:
    """Load the weights of `folder` into a recipe's encoder, if there is one, and say so in `record`."""
    if folder is not None:
        record["start_from"] = start_encoder(encoder, folder, continued)


def run_pretrainings(count: int, source: str, overrides: Sequence[str], recipe: str, out: Path, *, overwrite: bool,
                     extend: int | None, **options: Any) -> str:  # fmt: skip
    """`run_pretraining` with `count` seeds from that of the recipe on, in folders of `out`; returns their table.

    options: gpus and start_from.
    """
    first = read_recipe(recipe, overrides)["pretrain"]["seed"]

    def one(seed: int, folder: Path) -> None:
        run_pretraining(source, [*overrides, f"pretrain.seed={seed}"], recipe, folder, resume=not overwrite,
                        overwrite=overwrite, extend=None, **options)  # fmt: skip

    require_outside(out, source)
    return run_seeds(count, first, out, one, extend=extend)


def with_stem(sections: dict, built: Built) -> dict:
    """The recipe with the stem that "auto" took."""
    arguments = built_with(built.method.encoder) or {}
    encoder = sections["encoder"] | {key: arguments[key] for key in ("stem",) if key in arguments}
    return sections | {"encoder": encoder}


def advice_on_worth(sections: Mapping[str, Any], images: int) -> str | None:
    """A line where the closed form was measured to be better than such a training."""
    settings = sections["pretrain"]
    epochs, budget = settings["epochs"], settings["budget"]
    if budget is not None and (steps := steps_of(budget)) is not None:
        epochs, budget = steps * settings["batch_size"] / images, None
    return advise(images, method=sections["method"]["name"], epochs=epochs, budget=budget, device=settings["device"])


def advice_on_flips(views: Sequence[Mapping[str, Any]], photos: Images) -> str:
    """One line where a recipe flips images whose mirror images look unlike them, with the overrides that stop it; else ""."""
    flips = [f"views.{i}.do.{j}.horizontal_flip.p" for i, entry in enumerate(views)
             for j, operation in enumerate(entry["do"]) if operation.get("horizontal_flip", {}).get("p", 0) > 0]  # fmt: skip
    if not flips:
        return ""
    chosen = torch.randperm(len(photos), generator=random_at(0, "flips"))[:MOST_IMAGES]
    flipped = flips_look_alike(next(photos.read(chosen, len(chosen), replace=(0, 0)))[1])
    if flipped.alike:
        return ""
    without = " ".join(f"{key}=0" for key in flips)
    return (f"left and right matter in these images: for {100 * flipped.farther:.0f} % of them, the mirror image is farther from "
            f"the other images than the image itself, but this recipe flips; to train without flips, add {without}")  # fmt: skip
