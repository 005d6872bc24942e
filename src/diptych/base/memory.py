"""What the allocator does with memory that this process has freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next tensor instead of returning it to the system; False without glibc.

    A training step frees and allocates the same large tensors again and again. Once it is returned, the system has to
    clear and map every page again: on two cores that took a third of a step (docs/decisions/0017). The setting holds for
    the process, whose size never shrinks from then on. Calling it twice, or under another malloc, is harmless.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
