"""Versions, device, threads and commit: what is needed to repeat a run."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

RECORDED_PACKAGES = ("diptych", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


def environment() -> dict:
    """Versions, device, threads and commit: what is needed to repeat a run."""
    versions = {name: version_of(name) for name in RECORDED_PACKAGES}
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


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """The commit of this package's checkout, marked if files have changed since; None if it is no checkout."""
    here = Path(__file__).resolve().parent
    if not (here.parents[2] / "pyproject.toml").is_file():
        return None  # installed: a repository around it belongs to another project
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
