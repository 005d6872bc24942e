"""The report's page while a run trains and when it has ended."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from diptych.base.errors import DiptychError
from diptych.data.images import Images
from diptych.downstream.overview import FEWEST, overview
from diptych.reporting.report import report
from diptych.runs.contents import is_run
from diptych.runs.encoder import Trained
from diptych.runs.run import Run
from diptych.training.watch import Watch

MAPPED = 2000  # images, where nobody has asked for a map; `diptych report --images` takes more
SECONDS = 20  # between two pages of a run that trains: one takes up to half a second


def page_watch(out: Path) -> Watch:
    """A watch that reads nothing and writes the run's page, which then reloads itself; at most every SECONDS."""
    last = time.monotonic()

    def watch(step: int, encoder: nn.Module) -> Mapping[str, float]:
        nonlocal last
        if step > 0 and time.monotonic() - last > SECONDS:
            last = time.monotonic()
            with contextlib.suppress(DiptychError):  # `write_page` tells it at the end; no page is worth a run
                report(out, live=True)
        return {}

    return watch


def page_again(trained: Trained) -> list[str]:
    """Write the page of an encoder's run anew, with what was measured last, and return a line about it.

    [] for an encoder without a run. The measured numbers stay whatever goes wrong here: then the line tells it.
    """
    if trained.folder is None or not is_run(trained.folder):
        return []
    try:
        return [f"report: {report(trained.folder)}"]
    except DiptychError as error:
        return [f"no report: {error}; `diptych report {trained.folder}` makes it"]


def write_page(run: Run, photos: Images, *, seed: int = 0, device: str = "auto") -> str:
    """Keep the overview of a run's own images, write its page and return a line about it.

    A run that has ended stays so whatever goes wrong here: then the line tells it.
    """
    try:
        if len(photos) >= FEWEST:
            overview(run, photos, most=MAPPED, seed=seed, device=device)
        return f"report: {report(run)}"
    except DiptychError as error:
        return f"no report: {error}; `diptych report {run.folder} --images SOURCE` makes it"
