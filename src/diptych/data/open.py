"""`open_source`: the Source for a path (folder, archive, file) or a name."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

from diptych.base.errors import DataError
from diptych.data.archives import TAR_ENDINGS, open_tar, open_zip
from diptych.data.arrays import open_arrays
from diptych.data.cifar import batches, open_cifar
from diptych.data.folder import OUTSIDE, nearest_with_images, open_folder
from diptych.data.formats import EXTENSIONS
from diptych.data.labels import check_label_option
from diptych.data.parquet import open_parquet, parquet_files
from diptych.data.photographs import demo_source
from diptych.data.source import Source, is_image_name
from diptych.data.unreadable import reasons_in_words
from diptych.data.untrusted import NO_FILE, refusing

# Sources that have a name instead of a path.
NAMED: dict[str, Callable[[], Source]] = {"demo": demo_source, "demo-test": lambda: demo_source("test")}
KINDS = "a folder, .zip, .tar, .tar.gz, .tgz, .parquet, .npz, .npy or a CIFAR batch"


def open_source(path_or_name: str | os.PathLike, labels: str = "auto", follow_symlinks: bool = False) -> Source:
    """The images at a path, or of a name in NAMED; nothing is decoded and nothing is written.

    labels: "auto" (a label column, or first-level folders if every image is in one of two or more), "folder"
    (first-level folders, required), "none". follow_symlinks: follow links that lead out of a folder.
    Raises DataError (missing, empty, damaged) and RecipeError (labels).
    """
    check_label_option(labels)
    if path_or_name in NAMED:
        return NAMED[path_or_name]()
    path = Path(path_or_name).expanduser()
    with refusing(f"{path} cannot be read"):  # each kind has its own message; this one is for what they did not expect
        return _open(path, labels, follow_symlinks)


def _open(path: Path, labels: str, follow_symlinks: bool) -> Source:
    name = path.name.lower()
    if name.endswith(".parquet") and (path.exists() or any(path.parent.glob(path.name))):
        return open_parquet(path, labels)
    if not path.exists():
        raise DataError(_missing(path))
    if not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is {NO_FILE}: it must be {KINDS}")
    if batches(path):
        return open_cifar(path, labels)
    if path.is_dir():
        return _folder(path, labels, follow_symlinks)
    if name.endswith((".npz", ".npy")):
        return open_arrays(path, labels)
    if name.endswith(".zip") or name.endswith(TAR_ENDINGS):
        source = open_zip(path, labels) if name.endswith(".zip") else open_tar(path, labels)
        if not len(source):
            refused = f", but {reasons_in_words(source.skipped)}" if source.skipped else ""
            raise DataError(f"{path} holds no images ({_searched()}){refused}")
        return source
    if is_image_name(os.fsencode(name)):
        raise DataError(f"{path} is one image: name its folder")
    raise DataError(f"{path} is not a source of images: it must be {KINDS}")


def _folder(path: Path, labels: str, follow_symlinks: bool) -> Source:
    source = open_folder(path, labels, follow_symlinks)
    if len(source):
        return source
    if parquet_files(path):
        return open_parquet(path, labels)
    message = f"{path} holds no images ({_searched()})"
    if outside := sum(entry["reason"] == OUTSIDE for entry in source.skipped):
        raise DataError(f"{message}, but {outside} links out of it: follow_symlinks=True reads them")
    if source.skipped:
        raise DataError(f"{message}, but {reasons_in_words(source.skipped)}")
    near = nearest_with_images(path)
    raise DataError(f"{message}; the nearest folder with images is {near}" if near else message)


def _searched() -> str:
    return f"searched for {' '.join(EXTENSIONS)}"


def may_be_source(path: Path) -> bool:
    """Whether a path is a folder, or a file whose name is one of a source."""
    endings = (".zip", *TAR_ENDINGS, ".parquet", ".npz", ".npy")
    return path.is_dir() or path.name.lower().endswith(endings) or path.name.startswith(("data_batch", "test_batch"))


def _missing(path: Path) -> str:
    """The message for a missing path: its deepest existing parent, and similar names in it."""
    parent = next(above for above in path.parents if above.exists() or above == above.parent or above == Path("."))
    missing = path.relative_to(parent).parts[0]
    beside = [name for name in sorted(os.listdir(parent)) if may_be_source(parent / name)] if parent.is_dir() else []
    near = difflib.get_close_matches(missing, [*beside, *NAMED], n=3, cutoff=0.5)
    where = "this folder" if parent == Path(".") else parent
    if near:
        return f"{path} does not exist; in {where} there is {' or '.join(near)}"
    return f"{path} does not exist; {where} has no {missing}" + f" ({' and '.join(NAMED)} need no folder)"
