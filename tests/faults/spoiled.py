"""What the tests of faults spoil: photographs and the ways to damage them, made anew each time; a command with its exit code."""

import contextlib
import io
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.commands import cli

PHOTO = np.add.outer(np.arange(48), 2 * np.arange(64))[..., None] + np.array([0, 40, 80])
PHOTO = np.clip(PHOTO, 0, 255).astype(np.uint8)  # (48, 64, 3), smooth, so that JPEG keeps it well
SMALL = ["--recipe", "demo", "encoder.channels=[8,8,8,8]", "method.projector=[16,16]", "pretrain.batch_size=8",
         "pretrain.epochs=1", "pretrain.precision=float32"]  # fmt: skip


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(colour: tuple[int, int, int] = (128, 128, 128), seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).normal(colour, 50, (40, 48, 3))
    return encoded(np.clip(pixels, 0, 255).astype(np.uint8), "JPEG")


def png_bomb(width: int, height: int) -> bytes:
    """A 1-bit PNG of this size in a few kB, whole: whoever decodes it has width x height pixels to keep."""
    rows = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def photographs(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 12) -> Path:
    """root/CLASS/00.jpg ..., each class of its own colour."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            colour = ((200, 120, 60), (60, 120, 200))[k % 2]
            (root / name / f"{i:02d}.jpg").write_bytes(jpeg(colour, 1000 * k + i))
    return root


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def diptych(*words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command, run in this process."""
    out, err, before, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["diptych", *map(str, words)]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            warnings.simplefilter("always")  # as for a user: told, not raised
            cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def refusal(err: str) -> str:
    """The one line that a refused command ends with."""
    assert "Traceback" not in err, err
    (line,) = [line for line in err.splitlines() if line.startswith("diptych: ")]
    return line
