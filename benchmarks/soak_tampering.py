"""Faults of benchmarks/soak.py that somebody's hand makes between two processes: in the run's folder, and in its images.

Each one is refused in one line with its exit code, nothing has changed, and all is put back. Called with the run and a
generator of its own.
"""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def put_back(path: Path, aside: Path) -> Iterator[None]:
    """A file or folder as it was, whatever the block has done to it."""
    copy = shutil.copytree if path.is_dir() else shutil.copy2
    copy(path, aside)
    yield
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.move(aside, path)


def edit_image(soak, luck: random.Random) -> int:
    """One byte of an image changes, its name and size do not."""
    image = luck.choice(sorted(soak.photos.rglob("[0-9]*.*")))
    with put_back(image, soak.work / "aside"):
        data = bytearray(image.read_bytes())
        data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
        image.write_bytes(data)
        soak.start(luck)
        return soak.ended()


def damage_log(soak, luck: random.Random) -> int:
    """A line that is no object, before the last one."""
    log = soak.run / "log.jsonl"
    with put_back(log, soak.work / "aside"):
        lines = log.read_bytes().splitlines(keepends=True)
        spoiled = b"null\n", b"5\n", b"\xff\n", b'{"event": "step"}\n', b"[" * 99 + b"\n"
        lines[luck.randrange(len(lines) - 1)] = luck.choice(spoiled)
        log.write_bytes(b"".join(lines))
        soak.start(luck)
        return soak.ended()


def take_checkpoints(soak, luck: random.Random) -> int:
    with put_back(soak.run / "checkpoints", soak.work / "aside"):
        shutil.rmtree(soak.run / "checkpoints")
        soak.start(luck)
        return soak.ended()


def pipe_for_file(soak, luck: random.Random) -> int:
    """Nobody writes into the pipe: reading it would take for ever."""
    file = soak.run / luck.choice(("recipe.yaml", "environment.json"))
    with put_back(file, soak.work / "aside"):
        file.unlink()
        os.mkfifo(file)
        soak.start(luck)
        return soak.ended()


def overwrite_with_photographs(soak, luck: random.Random) -> int:
    """`--overwrite` of a folder that also holds photographs deletes nothing, neither them nor the run."""
    shutil.copytree(soak.photos, soak.run / "photos")
    before = sorted(path for path in soak.run.rglob("*") if path.name != ".lock")
    code = soak.launch(soak.run, 0.0, "--overwrite").wait()
    if before != sorted(path for path in soak.run.rglob("*") if path.name != ".lock"):
        return -1
    shutil.rmtree(soak.run / "photos")
    return code
