"""`diptych quick`: the closed-form encoder of a source, as a run."""

import time
from pathlib import Path
from typing import Any

from diptych.base.errors import OutputError
from diptych.commands.opening import open_images
from diptych.commands.paging import write_page
from diptych.commands.places import require_outside
from diptych.commands.tables import last_diagnosis, next_step
from diptych.downstream.results import verdict_of
from diptych.runs.contents import is_run, require_place
from diptych.runs.encoder import load
from diptych.runs.proposed import word
from diptych.runs.run import Run
from diptych.training.quick import quick


def run_quick(source: str, out: Path, *, size: int, join: Path | None, overwrite: bool, **options: Any) -> str:
    """Compute the encoder, write its run and return the text that `diptych quick` prints. options: of `training.quick`."""
    wall, processor = time.perf_counter(), time.process_time()
    require_outside(out, source)
    if is_run(out) and not overwrite:
        raise OutputError(f"{out} already holds a run: add --overwrite to replace it, or choose another --out")
    require_place(out, overwrite=overwrite)
    beside = None if join is None else load(join)
    if join is not None and out.exists() and out.samefile(join):
        raise OutputError(f"{out} is the run to join, which would be replaced; choose another --out")
    opened = size if beside is None else beside.preprocessing.opened
    photos = open_images(source, {"size": opened, "labels": "none"})
    record = {
        "made_by": "diptych quick",
        "source": source,
        "images": {"size": opened, "gray_range": list(photos.squares.gray_range)},
    }
    trained = quick(photos, out=out, size=size, join=beside, record=record, overwrite=overwrite, **options)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    page = write_page(Run(out), photos, seed=options["seed"], device=options["device"])
    network: Any = trained.encoder
    width, mirrored = network.num_features, (network if beside is None else network.dictionary).mirrored
    flips = "averaged over mirror images" if mirrored else "mirror images look different: not averaged"
    return (f"{out}  {len(photos):,} images, embedding of {width}, {flips}, {wall:.0f} s ({processor:.0f} CPU-s)\n"
            f"{verdict_of(last_diagnosis(out)[0])}\n"
            f"{next_step(out)}\n"
            f"      diptych embed {word(out)} {word(source)} --out vectors\n{page}")  # fmt: skip
