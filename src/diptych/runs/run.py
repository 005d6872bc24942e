"""The run folder: settings, log and results of a training run, readable without this program.

recipe.yaml         the settings, every default written out          log.jsonl           the events, one per line
environment.json    versions, device, threads, commit                checkpoints/        the states to resume from
encoder/            the result: weights and preprocessing            untrained/          the same encoder before step 0
pictures/           arrays for the report                            evaluations.jsonl   accuracies and the diagnosis
bad_files.jsonl     files of the source that are not used, and why; absent if there are none
"""

import contextlib
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from diptych.base import strict_yaml
from diptych.base.errors import CheckpointError, DataError, OutputError
from diptych.base.files import append_lines, make_folder, read_json_lines, write_file
from diptych.runs.contents import (
    LOCK,
    LOG_KINDS,
    is_run,
    read_recipe,
    remove_run,
    require_place,
    sweep,
)
from diptych.runs.environment import environment

LOCK_TEXT = "process "
# What may change between a run and its continuation: none of it changes what is computed.
HISTORY = ("extended", "start_from")  # what has happened to a run; a continuation need not repeat it
FREE = ("source", "images.resident", "pretrain.device", "pretrain.log_steps", "pretrain.checkpoint_minutes",
        "evaluate.k", "evaluate.precision")  # fmt: skip


class Run:
    """A run folder. `Run(folder)` opens an existing one; `Run.start(...)` creates or continues one."""

    def __init__(self, folder: str | Path, lock: IO[str] | None = None):
        """lock: the open file that keeps other writers out; closed by `release`."""
        self.folder = Path(folder)
        self.mirrors: list[Callable[[str, dict], None]] = []  # called with every logged line
        self._lock = lock
        if not is_run(self.folder):
            raise DataError(
                f"{folder} is not a run folder (it has no log.jsonl); `diptych pretrain SOURCE --out {folder}` creates one"
            )

    @classmethod
    def start(cls, folder: str | Path, record: dict, resume: bool = False, overwrite: bool = False) -> "Run":
        """Create the folder, or continue the run in it; lock it against a second writer.

        overwrite: delete the run in it, and nothing else. Raises OutputError when the folder is not empty and neither `resume`
        nor `overwrite` is set, when something else than a run would be deleted, or when another process is writing to it;
        CheckpointError when the run in it is damaged or has other settings than `record`.
        """
        folder = make_folder(Path(folder))
        require_place(folder, resume, overwrite)
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context(take_lock(folder))
            require_place(folder, resume, overwrite)  # again, as another process may have finished in between
            sweep(folder)
            if overwrite and not resume:
                remove_run(folder)
            if (folder / "recipe.yaml").exists():
                compare_records(folder, record)
                old = read_recipe(folder)
                record = record | {key: old[key] for key in HISTORY if key in old}
            append_lines(folder / "log.jsonl", [])  # first: it makes the folder a run
            write_file(folder / "recipe.yaml", strict_yaml.write(record).encode())
            write_file(folder / "environment.json", json.dumps(environment(), indent=1).encode())
            undo.pop_all()
        return cls(folder, lock)

    def release(self) -> None:
        """Release the lock, so that another process can write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to log.jsonl immediately."""
        self.append("log.jsonl", [{"event": event, **fields}])
        for mirror in self.mirrors:
            mirror(event, fields)

    def flush(self) -> None:
        """Flush the log to the disk; before a checkpoint, so that a power cut cannot lose lines of steps it contains."""
        with open(self.folder / "log.jsonl", "rb") as file:
            os.fsync(file.fileno())

    def lines(self, event: str | None = None) -> list[dict]:
        """The lines of log.jsonl, of one event or all; a last line cut short by a kill is left out.

        Raises CheckpointError for a damaged log.
        """
        lines = read_json_lines(self.folder / "log.jsonl", LOG_KINDS)
        return [line for line in lines if event in (None, line["event"])]

    def rewind(self, step: int) -> None:
        """Remove the lines after `step`: those steps will be run again, identically."""
        lines = [line for line in self.lines() if line["step"] <= step and line["event"] != "end"]
        write_file(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())

    def append(self, name: str, lines: list[dict]) -> None:
        """Append lines to a JSON-lines file of the folder. Raises OutputError when it cannot be written."""
        append_lines(self.folder / name, lines)

    @property
    def recipe(self) -> dict:
        """The settings of the run. Raises CheckpointError when recipe.yaml is missing or damaged."""
        return read_recipe(self.folder)

    def section(self, name: str) -> dict:
        """A section of the settings, {} where there is none. Raises CheckpointError for anything but a map."""
        options = self.recipe.get(name)
        if not isinstance(options, dict | None):
            raise CheckpointError(f"{self.folder}/recipe.yaml: {name} is not a section of settings; restore it")
        return options or {}

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return bool(self.lines("end"))


def take_lock(folder: Path) -> IO[str]:
    """The open, locked file; the system releases the lock when the process ends, even by a kill."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        file = open(handle, "r+", errors="replace")  # noqa: SIM115  (it must stay open)
        holder = file.read(200).strip()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write to {folder} ({reason}); choose another --out") from None
    if holder and not holder.startswith(LOCK_TEXT):
        file.close()
        raise OutputError(f"{folder}/{LOCK} was not written by diptych; choose another --out, or remove it")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OutputError(
            f"another run is writing to {folder} ({holder or 'unknown process'}); wait for it, or choose another --out"
        ) from None
    except OSError as error:  # some network file systems do not support locks
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): do not start a second run there", stacklevel=2)
    file.seek(0)
    file.truncate()
    file.write(f"{LOCK_TEXT}{os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def compare_records(folder: Path, record: dict) -> None:
    """Raise CheckpointError naming the first keys whose values in the run folder and in `record` differ."""
    was, becomes = read_recipe(folder), json.loads(json.dumps(record))
    was = {key: value for key, value in was.items() if key not in HISTORY or key in becomes}
    old, new = flatten(was), flatten(becomes)
    for settings in (old, new):  # a run of an older version lacks newer switches, which are off by default
        settings.update({key: None for key, value in settings.items() if value is False})
    changed = [
        f"{key}: {short(old.get(key))} -> {short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE
    ]
    if changed:
        differences = "; ".join(changed[:3])
        raise CheckpointError(
            f"{folder} was made with another recipe ({differences}); use the same, or choose another --out"
        )


def short(value: Any) -> str:
    return text if len(text := str(value)) <= 40 else text[:37] + "..."


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    if isinstance(value, dict):
        return {
            k: v
            for key, inner in value.items()
            for k, v in flatten(inner, f"{name}.{key}" if name else str(key)).items()
        }
    if isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        return {k: v for i, inner in enumerate(value) for k, v in flatten(inner, f"{name}.{i}").items()}
    return {name: value}
