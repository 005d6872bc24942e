"""`diptych download`: published weights, by name. The only file that uses the network (timm does too, for
`pretrained=True`)."""

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
MAX_DOWNLOAD_BYTES = 2_000_000_000  # a server that sends more does not send these weights
CHUNK_BYTES = 1 << 20


class Published(NamedTuple):
    """Published weights: their address, licence and description."""

    address: str
    licence: str
    description: str


PUBLISHED = {
    "barlow-twins-resnet50": Published(
        "https://dl.fbaipublicfiles.com/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth",
        "MIT (facebookresearch/barlowtwins; its revisions of before 2022: CC BY-NC 4.0)",
        "Barlow Twins, ResNet-50, 1000 epochs of ImageNet",
    ),
}


class Downloaded(NamedTuple):
    """A complete downloaded file."""

    file: Path
    bytes: int
    sha256: str


def list_published() -> str:
    """One line per name: description and licence."""
    return "\n".join(
        f"{name}  {weights.description}; licence: {weights.licence}" for name, weights in PUBLISHED.items()
    )


def download(
    name: str, out: str | Path | None = None, progress: Callable[[int, int], object] | None = None
) -> Downloaded:
    """Fetch the weights called `name` into the file `out` (default: NAME.pth), completely or not at all.

    No sha256 was published with them, so none is compared: the one returned is for your own records. progress: called
    with (bytes so far, bytes in all, 0 if unknown).

    Raises RecipeError for an unknown name; CheckpointError (exit code 4) when the network or the server fails or
    sends more than 2 GB; OutputError when the file exists already or cannot be written.
    """
    if name not in PUBLISHED:
        raise RecipeError(f"no published weights are named {name!r}; available: {', '.join(PUBLISHED)}")
    file = require_free_file(Path(f"{name}.pth" if out is None else out))
    temporary, digest, done = file.with_name(f".{file.name}.tmp-{os.getpid()}"), hashlib.sha256(), 0
    try:
        with open(temporary, "wb") as target:
            for chunk, total in fetch_chunks(PUBLISHED[name].address):
                target.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise OutputError(
            f"cannot write {file} ({(error.strerror or str(error)).lower()}); choose another --out"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return Downloaded(file, done, digest.hexdigest())


def fetch_chunks(address: str) -> Iterator[tuple[bytes, int]]:
    """Yield (some bytes, bytes in all or 0 if unknown) of an address. Raises CheckpointError for any network failure."""
    done = 0
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
            if response.url.split(":")[0] != address.split(":")[0]:
                raise CheckpointError(f"{address} leads to {response.url}, which is not as safe; nothing was fetched")
            total = int(response.headers.get("Content-Length") or 0)
            while (chunk := response.read(CHUNK_BYTES)) and done <= MAX_DOWNLOAD_BYTES and total <= MAX_DOWNLOAD_BYTES:
                done += len(chunk)
                yield chunk, total
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(f"cannot fetch {address} ({reason}); connect, or copy the file here and import it "
                              "with `diptych import-weights`") from None  # fmt: skip
    if done > MAX_DOWNLOAD_BYTES or total > MAX_DOWNLOAD_BYTES:
        raise CheckpointError(
            f"{address} sends {max(done, total):,} bytes, more than {MAX_DOWNLOAD_BYTES:,}; nothing was kept"
        )
    if done < total or not done:
        raise CheckpointError(f"{address} ended after {done:,} of {total:,} bytes; try again")
