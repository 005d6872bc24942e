"""What a command opens: the images of a SOURCE, at the size and in the way that an encoder wants them."""

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.base.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from diptych.runs.encoder import Trained

# What the user's code may end with, when its module is imported or its function called.
FAILURES = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError,
            RuntimeError, AssertionError, OSError)  # fmt: skip


def open_images(source: str, options: dict, size: int | None = None):
    """The images of SOURCE at the size of `options`, or else at `size`, which the views ask for."""
    from diptych.base.terminal import ProgressBar
    from diptych.commands.schema import call_arguments
    from diptych.data.images import images

    wanted = options | {"size": options.get("size") or size}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    with ProgressBar("read images") as progress:
        photos = images(source, **call_arguments(images, wanted), progress=progress)
        count = len(photos)
        photos.prepare()
        if bad := photos.failed:
            first = f"first: {bad[0]['key']} ({bad[0]['reason']})"
            progress.say(f"{source}: {len(bad)} of {count} images cannot be read and are left out, {first}")
    return photos


def open_encoder(folder: Path, own: str | None) -> "Trained":
    """The trained encoder of a run or encoder folder; own: `package.module:function` that makes the user's own network.

    Raises RecipeError for a network that cannot be made, CheckpointError as `load`.
    """
    from diptych.runs.encoder import load

    return load(folder, None if own is None else own_network(own))


def own_network(place: str) -> "nn.Module":
    """What `function` of `package.module` returns. Importing it and calling it runs the user's own code.

    The current directory can be imported from, as with `python -m`. Raises RecipeError, in one line, for a module that
    cannot be imported, a name that it lacks, and anything but a function without arguments that returns an nn.Module.
    """
    import torch  # for nn.Module, beside the user's own imports

    file, colon, name = place.partition(":")
    if not (file and colon and name):
        raise RecipeError(f"--encoder {place!r} names no function: write package.module:function")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(file)
    except FAILURES as error:
        raise RecipeError(f"--encoder {place}: cannot import {file} ({reason_of(error)})") from error
    function = getattr(module, name, None)
    if function is None:
        raise RecipeError(f"--encoder {place}: {file} has no {name}; give a function that returns the network")
    if not callable(function) or isinstance(function, torch.nn.Module):
        kind = type(function).__name__
        raise RecipeError(f"--encoder {place}: {name} is a {kind}; give a function that returns the network")
    try:
        network = function()
    except FAILURES as error:
        raise RecipeError(f"--encoder {place}: calling {name}() failed ({reason_of(error)})") from error
    if not isinstance(network, torch.nn.Module):
        raise RecipeError(f"--encoder {place}: {name}() returns a {type(network).__name__}, not a torch.nn.Module")
    return network


def reason_of(error: BaseException) -> str:
    """An error of the user's code in one line, with where in that code it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f", {last.filename} line {last.lineno}" if last and not last.filename.startswith("<frozen") else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}" if last else repr(error)


def image_options(trained: "Trained") -> dict:
    """How an encoder wants its images: its own size; of a run, background, fit and bad images as in training."""
    options = recipe_of(trained).get("images") or {}
    # Of that set and that machine, not of how to read. A run made in Python wrote down its size and count.
    others = ("size", "labels", "count", "resident")
    reading = {key: value for key, value in options.items() if key not in others}
    return reading | {"size": trained.preprocessing.opened}


def recipe_of(trained: "Trained") -> dict:
    """What the run of an encoder was asked for; {} for an encoder without a run."""
    from diptych.runs.run import Run, is_run

    return Run(trained.folder).recipe if trained.folder is not None and is_run(trained.folder) else {}
