"""`diptych download`: published weights, by name. The only file that reaches the network (timm does, where asked for its
pretrained weights)."""

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from diptych.base.errors import CheckpointError, OutputError, RecipeError
from diptych.base.files import require_free_file

TIMEOUT = 30.0  # seconds without a byte
LARGEST = 2_000_000_000  # bytes: a server that sends more is not sending these weights
PIECE = 1 << 20


class Published(NamedTuple):
    """Weights that can be had: where, under which terms, and what they are."""

    address: str
    licence: str
    what: str


PUBLISHED = {
    "barlow-twins-resnet50": Published(
        "https://dl.fbaipublicfiles.com/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth",
        "MIT (facebookresearch/barlowtwins; its revisions of before 2022: CC BY-NC 4.0)",
        "Barlow Twins, ResNet-50, 1000 epochs of ImageNet",
    ),
}


class Downloaded(NamedTuple):
    """A file that has arrived whole."""

    file: Path
    bytes: int
    sha256: str


def listed() -> str:
    """A line for each name: what it is and its licence."""
    return "\n".join(f"{name}  {one.what}; licence: {one.licence}" for name, one in PUBLISHED.items())


def download(
    name: str, out: str | Path | None = None, progress: Callable[[int, int], object] | None = None
) -> Downloaded:
    """Fetch the weights called `name` into the file `out` (default: NAME.pth here), whole or not at all.

    No sha256 was published with them, so none is compared: the one returned is for your own records. progress: called
    with the bytes so far and in all (0 where the server does not say).

    Raises RecipeError for an unknown name; CheckpointError (exit code 4) when the network or the server fails, or more
    than 2 GB come; OutputError when the file exists already or cannot be written.
    """
    if name not in PUBLISHED:
        raise RecipeError(f"no published weights are named {name!r}; there are: {', '.join(PUBLISHED)}")
    file = require_free_file(Path(f"{name}.pth" if out is None else out))
    aside, digest, done = file.with_name(f".{file.name}.tmp-{os.getpid()}"), hashlib.sha256(), 0
    try:
        with open(aside, "wb") as target:
            for piece, total in pieces(PUBLISHED[name].address):
                target.write(piece)
                digest.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
            target.flush()
            os.fsync(target.fileno())
        os.replace(aside, file)
    except OSError as error:
        raise OutputError(
            f"cannot write {file} ({(error.strerror or str(error)).lower()}); choose another --out"
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return Downloaded(file, done, digest.hexdigest())


def pieces(address: str) -> Iterator[tuple[bytes, int]]:
    """The bytes at an address and how many are to come (0: not said). Whatever the network does is a CheckpointError."""
    done = 0
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
            if response.url.split(":")[0] != address.split(":")[0]:
                raise CheckpointError(f"{address} leads to {response.url}, which is not as safe; nothing was fetched")
            total = int(response.headers.get("Content-Length") or 0)
            while (piece := response.read(PIECE)) and done <= LARGEST and total <= LARGEST:
                done += len(piece)
                yield piece, total
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(f"cannot fetch {address} ({reason}); connect, or bring the file over by hand and import it "
                              "with `diptych import-weights`") from None  # fmt: skip
    if done > LARGEST or total > LARGEST:
        raise CheckpointError(f"{address} sends {max(done, total):,} bytes, more than {LARGEST:,}; nothing was kept")
    if done < total or not done:
        raise CheckpointError(f"{address} ended after {done:,} of {total:,} bytes; try again")
