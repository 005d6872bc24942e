"""Commands that are proposed to a person: with the known source and folders, quoted, and an output folder that is free."""

import itertools
import os
import shlex
from pathlib import Path
from typing import NamedTuple

from diptych.runs.contents import is_run

PLACEHOLDERS = {"SOURCE", "RUN", "BOTH"}


class Proposed(NamedTuple):
    """`diptych quick` for an encoder: of `source`, a path or name; beside `folder`, the encoder's run or folder.

    What is None stands as a placeholder in the command, as for images that are arrays in Python.
    """

    source: str | None = None
    folder: Path | None = None

    @property
    def closed_form(self) -> str:
        """The command that computes the closed form alone."""
        return f"diptych quick {word(self.source, 'SOURCE')} --out {word(self.beside('quick'), 'RUN')}"

    @property
    def joined(self) -> str:
        """The command that joins the closed form and the encoder."""
        source, run, out = word(self.source, "SOURCE"), word(self.folder, "RUN"), word(self.beside("joined"), "BOTH")
        return f"diptych quick {source} --join {run} --out {out}"

    def beside(self, ending: str) -> Path | None:
        """A folder that does not exist beside the run's: FOLDER-ending, FOLDER-ending-2, ..."""
        if self.folder is None:
            return None
        place = self.folder if self.folder.name not in ("", "..") else self.folder.resolve()
        place = place.parent if not is_run(place) and is_run(place.parent) else place  # RUN/encoder: not within the run
        names = (f"{place.name}-{ending}" + (f"-{number}" if number > 1 else "") for number in itertools.count(1))
        return next(free for name in names if not os.path.lexists(free := place.with_name(name)))


UNKNOWN = Proposed()


def word(value: str | Path | None, placeholder: str = "") -> str:
    """A value as one word of a shell command; a path that begins with - is no option."""
    if value is None:
        return placeholder
    text = str(value)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
