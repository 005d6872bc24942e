"""Versions, device, threads and commit: what one needs to run it again."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("diptych", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


def environment() -> dict:
    """Versions, device, threads and commit: what one needs to run it again."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions,
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def commit() -> str | None:
    """The commit of the checkout this package runs from, marked when the checkout was changed; None outside one."""
    here = Path(__file__).resolve().parent
    if not (here.parents[2] / "pyproject.toml").is_file():
        return None  # installed: the repository around it, if any, is somebody else's
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
