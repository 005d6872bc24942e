"""CIFAR-10 and CIFAR-100 as their author publishes them (Krizhevsky 2009): python or binary batches.

The python batches are pickles, that is, programs. They are never run: `read_batch` interprets the few
instructions of the official files, which build dicts, lists, numbers, text and uint8 arrays, and refuses all
others.
"""

import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from diptych.base.errors import DataError
from diptych.data.arrays import Pixels
from diptych.data.labels import no_folders
from diptych.data.untrusted import refusing

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCH_FILE = re.compile(r"(?:data_batch_(\d+)|test_batch)(?:\.bin)?")  # CIFAR-10; CIFAR-100's are called train and test
NAMES_100 = {
    "": "meta",
    ".bin": "fine_label_names.txt",
}  # suffix of the batches -> file of the class names beside them
SHAPE = (-1, 3, 32, 32)

ARRAY, DTYPE, NDARRAY = "numpy.core.multiarray _reconstruct", "numpy dtype", "numpy ndarray"


def batches(path: Path) -> list[Path]:
    """The training batches in the folder `path`, or [path] if it is a batch; else []."""
    if path.is_file():
        beside = NAMES_100.get(path.suffix)
        is_batch = (
            BATCH_FILE.fullmatch(path.name)
            or path.stem in ("train", "test")
            and beside
            and (path.parent / beside).is_file()
        )
        return [path] if is_batch else []
    numbered = {int(match[1]): file for file in path.glob("data_batch_*")
                if (match := BATCH_FILE.fullmatch(file.name)) and file.is_file()}  # fmt: skip
    if numbered:
        return [numbered[number] for number in sorted(numbered)]
    return [file for file in (path / "train", path / "train.bin") if batches(file)][:1] if path.is_dir() else []


def open_cifar(path: str | Path, labels: str = "auto") -> Pixels:
    """The training images (32 x 32) of a folder of batches, or the images of one batch (`.../test_batch`).

    CIFAR-100 comes with its 100 fine classes. Raises DataError when a batch is damaged.
    """
    no_folders(str(path), labels)
    files = batches(Path(path))
    read = [_read_binary(file) if file.suffix == ".bin" else _read_python(file) for file in files]
    parts = [(file.name, len(pixels)) for file, (pixels, _) in zip(files, read, strict=True)]
    pixels = np.concatenate([pixels for pixels, _ in read]).reshape(SHAPE)
    if labels == "none":
        return Pixels(pixels, parts=parts)
    return Pixels(pixels, np.concatenate([numbers for _, numbers in read]), _classes(files[0]), parts)


def _read_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    labels = 1 if BATCH_FILE.fullmatch(file.name) else 2  # CIFAR-100: coarse, then fine
    data = np.fromfile(file, np.uint8)
    if data.size == 0 or data.size % (labels + 3072):
        raise DataError(f"{file} is {data.size} bytes, not a multiple of {labels + 3072}: copy it again")
    rows = data.reshape(-1, labels + 3072)
    return rows[:, labels:], rows[:, labels - 1].astype(np.int64)


def _read_python(file: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = read_batch(file)
    data, numbers = batch.get("data"), batch.get("labels", batch.get("fine_labels"))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or not isinstance(numbers, list):
        raise DataError(f"{file} is not a CIFAR batch: it has no data (N, 3072) and labels")
    return data, np.asarray(numbers, np.int64)


def _classes(file: Path) -> list[str]:
    if BATCH_FILE.fullmatch(file.name):
        return CIFAR10_CLASSES
    names = file.parent / NAMES_100[file.suffix]
    return names.read_text().split() if file.suffix else read_batch(names)["fine_label_names"]


class _Numpy:
    """One of the three numpy names that a batch may call, and the object built from it."""

    def __init__(self, name: str):
        self.name = name
        self.value: Any = None

    def call(self, arguments: tuple) -> "_Numpy":
        built = _Numpy(self.name)
        if self.name == DTYPE:
            built.value = arguments[0]
        return built

    def fill(self, state: tuple) -> None:
        if self.name == ARRAY:
            _, shape, dtype, columns_first, data = state
            if dtype.name != DTYPE or dtype.value != "u1":
                raise ValueError("an array that is not uint8")
            pixels = np.frombuffer(data.encode("latin-1"), np.uint8)  # Python 2 wrote bytes as text
            self.value = pixels.reshape(shape, order="F" if columns_first else "C")


class _Stack(list):
    """The stack of values, with the marks at which tuples, lists and dicts begin."""

    def __init__(self):
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def top(self, count: int) -> list:
        """Remove and return the last `count` values."""
        items = self[len(self) - count :]
        del self[len(self) - count :]
        return items

    def since_mark(self) -> list:
        return self.top(len(self) - self.marks.pop())

    def call(self) -> None:
        function, arguments = self.top(2)
        self.append(function.call(arguments))

    def extend_top(self, items: list) -> None:
        self[-1].extend(items)

    def set_items(self, items: list) -> None:
        self[-1].update(zip(items[::2], items[1::2], strict=True))


# The supported instructions: the change to the stack, given the argument of the instruction.
INSTRUCTIONS = {
    "PROTO": lambda stack, value: None,
    "STOP": lambda stack, value: None,
    "MARK": lambda stack, value: stack.marks.append(len(stack)),
    "EMPTY_DICT": lambda stack, value: stack.append({}),
    "EMPTY_LIST": lambda stack, value: stack.append([]),
    "TUPLE": lambda stack, value: stack.append(tuple(stack.since_mark())),
    "NEWTRUE": lambda stack, value: stack.append(True),
    "NEWFALSE": lambda stack, value: stack.append(False),
    "APPEND": lambda stack, value: stack[-2].append(stack.pop()),
    "APPENDS": lambda stack, value: stack.extend_top(stack.since_mark()),
    "SETITEM": lambda stack, value: stack.set_items(stack.top(2)),
    "SETITEMS": lambda stack, value: stack.set_items(stack.since_mark()),
    "GLOBAL": lambda stack, value: stack.append(_Numpy(value)),
    "REDUCE": lambda stack, value: stack.call(),
    "BUILD": lambda stack, value: stack[-2].fill(stack.pop()),
}
INSTRUCTIONS |= dict.fromkeys(
    ("BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING", "NONE"),
    lambda stack, value: stack.append(value),
)
INSTRUCTIONS |= dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda stack, value: stack.memo.update({value: stack[-1]}))
INSTRUCTIONS |= dict.fromkeys(("BINGET", "LONG_BINGET"), lambda stack, value: stack.append(stack.memo[value]))
INSTRUCTIONS |= {f"TUPLE{n}": lambda stack, value, n=n: stack.append(tuple(stack.top(n))) for n in (1, 2, 3)}


def read_batch(file: Path) -> dict:
    """The dict in an official python batch; the pickle is not run. Raises DataError at other instructions."""
    stack = _Stack()
    with refusing(f"{file} is not an official CIFAR batch"):
        for code, value, _ in pickletools.genops(file.read_bytes()):
            if code.name not in INSTRUCTIONS or code.name == "GLOBAL" and value not in (ARRAY, DTYPE, NDARRAY):
                raise ValueError(f"it holds the instruction {code.name} {str(value)[:60]}")
            INSTRUCTIONS[code.name](stack, value)
        (batch,) = stack
        return {key: item.value if isinstance(item, _Numpy) else item for key, item in batch.items()}
