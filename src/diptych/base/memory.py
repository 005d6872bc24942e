"""How this process treats memory that it has freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next tensor, instead of giving it back to the system; False without glibc.

    A training step frees and asks for the same large tensors again and again. Given back, every page of them is cleared
    and mapped anew by the system: on two cores that was a third of a step (docs/decisions/0017). Holds for the whole
    process, which from then on stays as large as it once was. Harmless to call twice, and where another malloc is loaded.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
