"""`diptych quick`: the closed-form encoder of a source, as a run."""

import time
from pathlib import Path
from typing import Any

from diptych.base.files import require_free_folder
from diptych.commands.opening import open_images
from diptych.commands.places import require_outside
from diptych.commands.tables import last_diagnosis
from diptych.downstream.results import verdict_of
from diptych.runs.contents import require_place
from diptych.training.quick import quick


def run_quick(source: str, out: Path, *, size: int, overwrite: bool, **options: Any) -> str:
    """Compute the encoder, write its run and return the text that `diptych quick` prints. options: of `training.quick`."""
    wall, processor = time.perf_counter(), time.process_time()
    require_outside(out, source)
    require_place(out, overwrite=True) if overwrite else require_free_folder(out)
    photos = open_images(source, {"size": size, "labels": "none"})
    record = {"made_by": "diptych quick", "source": source, "images": {"size": size}}
    trained = quick(photos, out=out, record=record, overwrite=overwrite, **options)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    width, mirrored = trained.encoder.num_features, trained.encoder.mirrored
    flips = "averaged over mirror images" if mirrored else "mirror images look unlike: not averaged"
    return (f"{out}  {len(photos):,} images, embedding of {width}, {flips}, {wall:.0f} s ({processor:.0f} CPU-s)\n"
            f"{verdict_of(last_diagnosis(out)[0])}\n"
            f"next: diptych evaluate {out} --train SOURCE --test SOURCE\n"
            f"      diptych embed {out} {source} --out vectors")  # fmt: skip
