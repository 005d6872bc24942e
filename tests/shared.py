"""Files that lie beside the repository (golden numbers, CIFAR-10): present in CI, not at users'; tests that need them skip."""

import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("DIPTYCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(path: str) -> Path:
    """The file `path` under the shared folder; skips the calling test where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path}, which is not shipped with the repository (set DIPTYCH_SHARED)")
    return found


def wave(shape: tuple[int, ...], k: int, amp: float = 1.0, bias: float = 0.0) -> np.ndarray:
    """The formula that fills every tensor of the golden numbers, float64, flat in C order."""
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    v = np.sin(12.9898 * (i + 1) + 78.233 * (k + 1)) * 43758.5453
    return (bias + amp * (2 * (v - np.floor(v)) - 1)).reshape(shape)
