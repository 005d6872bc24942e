"""What the tests of exports share: photographs, an encoder with statistics, and a Python that has no Diptych."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diptych.networks.encoders import encoder
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained, load, save_encoder

HERE = Path(__file__).parent
WITHOUT = os.pathsep.join([str(HERE / "without_diptych"), str(HERE / "offline")])
MEAN, STD = (0.48, 0.44, 0.4), (0.26, 0.25, 0.27)
SNIPPET = re.compile(r"^### (.+?)\n(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def photographs() -> list[Image.Image]:
    """Four photographs, as they are."""
    data = pytest.importorskip("skimage.data")
    sample = pytest.importorskip("sklearn.datasets").load_sample_image
    pixels = [data.astronaut(), data.chelsea(), sample("china.jpg"), sample("flower.jpg")]
    return [Image.fromarray(array) for array in pixels]


def squares(side: int) -> np.ndarray:
    """The photographs as (4, side, side, 3) uint8."""
    return np.stack([np.asarray(photo.resize((side, side), Image.Resampling.BILINEAR)) for photo in photographs()])


def as_trained(network: nn.Module, size: int) -> nn.Module:
    """The network with statistics and scales that are not those of its beginning, as training leaves it."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.affine:
                module.weight.copy_(torch.rand(module.weight.shape, generator=rng) + 0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=rng) / 10)
        network.train()
        for _ in range(3):
            network(2 * torch.rand(8, 3, size, size, generator=rng) - 1)
    return network.eval()


def trained_encoder(folder: Path, name: str, size: int, resize: int | None = None, **options) -> Trained:
    """An encoder folder of such a network, opened."""
    torch.manual_seed(0)
    network = as_trained(encoder(name, size=size, **options), size)
    return load(save_encoder(folder, network, Preprocessing(size, MEAN, STD, resize)))


def snippets(folder: Path) -> dict[str, list[str]]:
    """The programs of a card by the first word of their heading."""
    text = (folder / "README.md").read_text("utf-8")
    return {title.split()[0]: CODE.findall(body) for title, body in SNIPPET.findall(text)}


def python_without(program: str, folder: Path, *options: str) -> str:
    """What a program prints in a process that cannot import Diptych; it must end well."""
    environment = os.environ | {"PYTHONPATH": WITHOUT, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, *options, "-c", program], cwd=folder, env=environment, capture_output=True,
                           text=True, timeout=280)  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout
