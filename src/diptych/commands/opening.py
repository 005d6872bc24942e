"""What a command opens: an encoder, and the images of a SOURCE as the encoder needs them."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.base.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from diptych.runs.encoder import Trained

# The errors that the user's code may raise when its module is imported or its function called.
FAILURES = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError,
            RuntimeError, AssertionError, OSError)  # fmt: skip


def open_images(source: str, options: dict, size: int | None = None, *, fits: Callable[[int], object] | None = None):
    """The images of SOURCE at the size of `options`, or else at `size`, that of the views.

    fits: called with their number before the first is decoded; it raises where they cannot be used.
    """
    from diptych.base.terminal import ProgressBar
    from diptych.commands.schema import call_arguments
    from diptych.data.images import images

    arguments = options | {"size": options.get("size") or size}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    with ProgressBar("read images") as progress:
        photos = images(source, **call_arguments(images, arguments), progress=progress)
        count = len(photos)
        if fits is not None:
            fits(count)
        photos.prepare()
        if bad := photos.failed:
            first = f"first: {bad[0]['key']} ({bad[0]['reason']})"
            progress.say(f"{source}: {len(bad)} of {count} images cannot be read and are left out, {first}")
    return photos


def open_labelled(train: str, test: str | None, options: dict, split: float, group_by: str | None, seed: int):
    """Both sets of an evaluation: of two sources, or of one that is split.

    Raises RecipeError where both ways are given.
    """
    if test is not None:
        if group_by is not None:
            raise RecipeError("--group-by splits --train: leave it out, or leave out --test")
        return open_images(train, options), open_images(test, options)
    from diptych.data.splitting import split as split_images

    return split_images(open_images(train, options), split, group_by=group_by, seed=seed)


def open_encoder(folder: Path, own: str | None) -> "Trained":
    """The trained encoder of a run or encoder folder; own: `package.module:function` that returns the user's network.

    Raises RecipeError for a network that cannot be built, CheckpointError as `load` does.
    """
    from diptych.runs.encoder import load

    return load(folder, None if own is None else own_network(own))


def own_network(reference: str) -> "nn.Module":
    """The network that `package.module:function` returns. Importing and calling it runs the user's code.

    Modules of the current directory can be imported, as with `python -m`. Raises RecipeError for a module that cannot
    be imported, a name that it lacks, and anything but a function without arguments that returns an nn.Module.
    """
    import torch  # needed for nn.Module

    file, colon, name = reference.partition(":")
    if not (file and colon and name):
        raise RecipeError(f"--encoder {reference!r} names no function: write package.module:function")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(file)
    except FAILURES as error:
        raise RecipeError(f"--encoder {reference}: cannot import {file} ({reason_of(error)})") from error
    function = getattr(module, name, None)
    if function is None:
        raise RecipeError(f"--encoder {reference}: {file} has no {name}; give a function that returns the network")
    if not callable(function) or isinstance(function, torch.nn.Module):
        kind = type(function).__name__
        raise RecipeError(f"--encoder {reference}: {name} is a {kind}; give a function that returns the network")
    try:
        network = function()
    except FAILURES as error:
        raise RecipeError(f"--encoder {reference}: calling {name}() failed ({reason_of(error)})") from error
    if not isinstance(network, torch.nn.Module):
        raise RecipeError(f"--encoder {reference}: {name}() returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def reason_of(error: BaseException) -> str:
    """An error of the user's code in one line, with the file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f", {last.filename} line {last.lineno}" if last and not last.filename.startswith("<frozen") else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}" if last else repr(error)


def image_options(trained: "Trained") -> dict:
    """The options of `images` for an encoder: its size; for a run's encoder also its background, fit and on_bad."""
    options = section_of(trained, "images")
    # These describe the training set and its machine. A run started from Python has recorded its size and count.
    left_out = ("size", "labels", "count", "resident", "fingerprint")
    reading = {key: value for key, value in options.items() if key not in left_out}
    return reading | {"size": trained.preprocessing.opened}


def section_of(trained: "Trained", name: str) -> dict:
    """A section of the recipe of an encoder's run; {} for an encoder without a run."""
    from diptych.runs.run import Run, is_run

    return Run(trained.folder).section(name) if trained.folder is not None and is_run(trained.folder) else {}
