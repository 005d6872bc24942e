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
import shutil
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from diptych.base import strict_yaml
from diptych.base.errors import CheckpointError, DataError, OutputError
from diptych.base.files import disk_error, read_json_lines, write_file
from diptych.runs.environment import environment

# What may change between a run and its continuation: none of it changes what is computed.
HISTORY = ("extended", "start_from")  # what has happened to a run; a continuation need not repeat it
FREE = ("source", "images.resident", "pretrain.device", "pretrain.log_steps", "pretrain.checkpoint_minutes",
        "evaluate.k")  # fmt: skip


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

        Raises OutputError when the folder is not empty and neither `resume` nor `overwrite` is set, or when another
        process is writing to it; CheckpointError when the run in it has other settings than `record`.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the folder {folder} ({(error.strerror or '').lower()}); choose another --out"
            ) from None
        contents = [path for path in folder.iterdir() if path.name != ".lock"]
        if contents and not is_run(folder):
            raise OutputError(f"{folder} is not empty and not a run; choose another --out")
        if contents and not (resume or overwrite):
            raise OutputError(
                f"{folder} already holds a run: add --resume to continue it, --overwrite to replace it, or choose another --out"
            )
        with contextlib.ExitStack() as undo:
            lock = undo.enter_context(take_lock(folder))
            for stray in folder.rglob(".*.tmp-*"):  # incomplete, left by a process that was killed
                if stray.is_file():
                    stray.unlink()
            if contents and overwrite and not resume:
                for path in contents:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if (folder / "recipe.yaml").exists():
                compare_records(folder, record)
                old = strict_yaml.read(folder / "recipe.yaml")
                record = record | {key: old[key] for key in HISTORY if key in old}
            undo.pop_all()
        write_file(folder / "recipe.yaml", strict_yaml.write(record).encode())
        write_file(folder / "environment.json", json.dumps(environment(), indent=1).encode())
        (folder / "log.jsonl").touch()
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
        """The lines of log.jsonl, of one event or all; a last line cut short by a kill is left out."""
        return [line for line in read_json_lines(self.folder / "log.jsonl") if event in (None, line.get("event"))]

    def rewind(self, step: int) -> None:
        """Remove the lines after `step`: those steps will be run again, identically."""
        lines = [line for line in self.lines() if line.get("step", 0) <= step and line.get("event") != "end"]
        write_file(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())

    def append(self, name: str, lines: list[dict]) -> None:
        """Append lines to a JSON-lines file of the folder. Raises OutputError when it cannot be written."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        try:
            with open(self.folder / name, "a") as file:
                file.write(text)
        except OSError as error:
            raise disk_error(self.folder / name, len(text), error) from None

    @property
    def recipe(self) -> dict:
        """The settings of the run."""
        return strict_yaml.read(self.folder / "recipe.yaml")

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return bool(self.lines("end"))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder."""
    return (folder / "log.jsonl").is_file() or (folder / "recipe.yaml").is_file()


def take_lock(folder: Path) -> IO[str]:
    """The open, locked file; the system releases the lock when the process ends, even by a kill."""
    try:
        file = open(folder / ".lock", "a+")  # noqa: SIM115  (it must stay open)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder} ({(error.strerror or '').lower()}); choose another --out"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown process"
        file.close()
        raise OutputError(
            f"another run is writing to {folder} ({holder}); wait for it, or choose another --out"
        ) from None
    except OSError as error:  # some network file systems do not support locks
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): start no second run there", stacklevel=2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def compare_records(folder: Path, record: dict) -> None:
    """Raise CheckpointError naming the first keys whose values in the run folder and in `record` differ."""
    was, becomes = strict_yaml.read(folder / "recipe.yaml"), json.loads(json.dumps(record))
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
