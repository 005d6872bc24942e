"""Tables that people open in other programs: .csv and .parquet."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from diptych.base.errors import OutputError
from diptych.base.files import require_free_file

ENDINGS = (".csv", ".parquet")


def require_table(file: Path) -> Path:
    """Return `file` if a table can be written there. Raises OutputError, before hours of work rather than after them."""
    if file.suffix not in ENDINGS:
        raise OutputError(f"{file} ends in neither {' nor '.join(ENDINGS)}; choose another --out")
    if file.suffix == ".parquet":
        pyarrow()
    return require_free_file(file)


def as_csv(columns: Sequence[str], rows: Iterable[Sequence], digits: int = 4) -> bytes:
    """RFC 4180, UTF-8, with a header; a float has `digits` decimals, None is empty. Text that starts with = + - or @ gets a '
    in front, as a spreadsheet would execute it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"{cell:.{digits}f}" if isinstance(cell, float) else harmless(cell) for cell in row])
    return text.getvalue().encode("utf-8", "backslashreplace")


def harmless(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return f"'{text}" if isinstance(cell, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def as_parquet(columns: Sequence[str], rows: Sequence[Sequence], kinds: Sequence[str]) -> bytes:
    """The same columns, with null for empty cells; kinds: names of Arrow's types. Text is unchanged, because no program
    executes a Parquet cell. Raises OutputError without pyarrow."""
    library = pyarrow()
    cells = zip(*rows, strict=True) if rows else [()] * len(columns)
    arrays = [library.array(values, kind) for values, kind in zip(cells, kinds, strict=True)]
    sink = library.BufferOutputStream()
    library.parquet.write_table(library.table(arrays, names=list(columns)), sink)
    return sink.getvalue().to_pybytes()


def pyarrow(instead: str = "use .csv"):
    """The library. Raises OutputError where it is not installed; instead: what works without it."""
    try:
        import pyarrow.parquet  # an optional dependency that is slow to import
    except ImportError as error:
        raise OutputError(f'Parquet needs pyarrow: pip install "diptych[parquet]", or {instead}') from error
    return pyarrow
