"""Errors a user can cause. A message is one line that names cause and fix; the command line exits with its code."""


class DiptychError(Exception):
    """Base of all errors a user can cause. `exit_code` is what the command line returns for it."""

    exit_code = 1


class RecipeError(DiptychError):
    """A recipe, an argument, an option or a variable of the environment is wrong (exit code 2)."""

    exit_code = 2


class DataError(DiptychError):
    """Images or labels are missing, broken or do not fit (exit code 3)."""

    exit_code = 3


class CheckpointError(DiptychError):
    """A checkpoint or a file of weights cannot be used (exit code 4)."""

    exit_code = 4


class DivergedError(DiptychError):
    """Training has diverged: its loss or weights are not finite (exit code 5)."""

    exit_code = 5


class OutputError(DiptychError):
    """The output folder or the disk cannot be written to (exit code 6)."""

    exit_code = 6
