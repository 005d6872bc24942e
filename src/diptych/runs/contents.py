"""What lies in a run folder: the names that Diptych writes there, which alone it deletes, and whether they can be read."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from diptych.base import strict_yaml
from diptych.base.errors import CheckpointError, OutputError, RecipeError
from diptych.base.files import read_json_lines, read_plain
from diptych.runs.pictures import FIGURES, PICTURES

# Paths within a run folder; tests/faults/test_overwrite.py compares them with what runs of every kind leave behind.
WEIGHTS = r"model\.safetensors|config\.json"
CHECKPOINT = r"(model|optimizer|best)\.safetensors|(state|manifest)\.json"
FILES = re.compile(
    r"log\.jsonl|recipe\.yaml|environment\.json|bad_files\.jsonl|evaluations(_\d+_epochs)?\.jsonl|report\.html"
    rf"|(encoder|untrained)/({WEIGHTS})|checkpoints/(last|step_\d+/({CHECKPOINT}))|crash/step_\d+_rank_\d+\.json"
    rf"|pictures/({'|'.join(PICTURES)})\.npz|figures/({'|'.join(FIGURES)})\.png"
    r"|tensorboard/events\.out\.tfevents\.[^/]+"
)
FOLDERS = re.compile(r"encoder|untrained|checkpoints(/step_\d+)?|crash|pictures|figures|tensorboard")
TEMPORARY = re.compile(r"\.(.+)\.tmp-\d+(-old)?")  # of a file or a checkpoint that is being written
LOCK = ".lock"

# What each line of a file must have.
LOG_KINDS = {"event": str, "step": int}
BAD_FILE_KINDS = {"key": str}


class Contents(NamedTuple):
    """The paths in a run folder."""

    files: list[Path]  # of Diptych
    folders: list[Path]  # of Diptych, each before those in it
    strangers: list[Path]  # all else: other names, links, pipes; not what is in a strange folder
    misfits: list[Path]  # names of Diptych's files that are none, and of its folders that are none


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder: only its log makes it one."""
    return os.path.lexists(folder / "log.jsonl")


def list_contents(folder: Path) -> Contents:
    """The paths in a run folder, without its lock. No link is followed. Raises OutputError where it cannot be listed."""
    listed = Contents([], [], [], [])
    waiting = [folder]
    try:
        for place in waiting:
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
                path = Path(entry.path)
                parts = [TEMPORARY.sub(r"\1", part) for part in path.relative_to(folder).parts]
                name = "/".join(parts)
                folder_name, file_name = FOLDERS.fullmatch(name), FILES.fullmatch(name)
                if name == LOCK:
                    continue
                if (folder_name and not entry.is_dir()) or (file_name and not entry.is_file()):
                    listed.misfits.append(path)
                if folder_name and entry.is_dir(follow_symlinks=False):
                    listed.folders.append(path)
                    waiting.append(path)
                elif file_name and entry.is_file(follow_symlinks=False):
                    listed.files.append(path)
                else:
                    listed.strangers.append(path)
    except OSError as error:
        raise OutputError(f"{folder} cannot be listed ({(error.strerror or '').lower()})") from None
    return listed


def sweep(folder: Path) -> None:
    """Delete the incomplete files of Diptych's that a process has left which was killed while writing them."""
    for path in list_contents(folder).files:
        if TEMPORARY.fullmatch(path.name):
            path.unlink()


def require_own(folder: Path) -> Contents:
    """The contents of a run that may be deleted. Raises OutputError where it holds anything that Diptych does not write."""
    listed = list_contents(folder)
    if listed.strangers:
        first = listed.strangers[0]
        kind = "is a link" if first.is_symlink() else "was not written by diptych"
        more = f", nor were {len(listed.strangers) - 1} more" if len(listed.strangers) > 1 else ""
        raise OutputError(
            f"{first} {kind}{more}: nothing has been deleted; move it out of {folder}, or choose another --out"
        )
    return listed


def remove_run(folder: Path) -> None:
    """Delete all that is in a run folder but its lock; nothing if it holds anything else than a run. Raises OutputError."""
    listed = require_own(folder)
    files = sorted(listed.files, key=lambda path: path.name == "log.jsonl")  # last: until then, it is a run
    try:
        for path in files:
            path.unlink()
        for path in reversed(listed.folders):
            path.rmdir()
    except OSError as error:
        raise OutputError(f"cannot delete {error.filename} ({(error.strerror or '').lower()})") from None


def require_place(folder: Path, resume: bool = False, overwrite: bool = False) -> None:
    """Raise the error of a folder where no run may start, or that cannot be continued. Nothing is changed.

    OutputError: it holds a run and neither flag is set, or with `overwrite` something else than a run. CheckpointError: the
    run to be continued is damaged.
    """
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise OutputError(f"{folder} is a file; choose another --out")
    try:
        names = set(os.listdir(folder)) - {LOCK} if os.path.isdir(folder) else set()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be listed ({(error.strerror or '').lower()}); choose another --out"
        ) from None
    if not names:
        return
    if not is_run(folder):
        if resume and "checkpoints" in names:
            raise CheckpointError(f"{folder}/log.jsonl is missing: restore it, or choose another --out")
        raise OutputError(f"{folder} is not empty and not a run (it has no log.jsonl); choose another --out")
    if resume:
        require_readable(folder)
    elif overwrite:
        require_own(folder)
    else:
        raise OutputError(
            f"{folder} already holds a run: add --resume to continue it, --overwrite to replace it, or choose another --out"
        )


def require_readable(folder: Path) -> None:
    """Raise CheckpointError, in one line, for any damage of a run's files that would stop it later."""
    # Damage within a checkpoint is no misfit: an older one may be intact.
    if misfits := [path for path in list_contents(folder).misfits if len(path.relative_to(folder).parts) < 3]:
        raise CheckpointError(f"{misfits[0]} is not what diptych writes under that name (file or folder); restore it, or "
                              "choose another --out")  # fmt: skip
    started = read_json_lines(folder / "log.jsonl", LOG_KINDS)
    read_json_lines(folder / "bad_files.jsonl", BAD_FILE_KINDS)
    read_json_lines(folder / "evaluations.jsonl")
    if started or (folder / "recipe.yaml").exists():
        read_recipe(folder)


def read_recipe(folder: Path) -> dict:
    """The settings in a run's recipe.yaml. Raises CheckpointError when it is missing or damaged."""
    path = folder / "recipe.yaml"
    try:
        recipe = strict_yaml.parse(read_plain(path), str(path))
    except RecipeError as error:
        raise CheckpointError(f"{error}; restore it") from None
    if not isinstance(recipe, dict):
        raise CheckpointError(f"{path} holds no settings; restore it")
    return recipe
