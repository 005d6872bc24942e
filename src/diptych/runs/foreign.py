"""Published checkpoints, converted to encoder folders. Only tensors are read: a file cannot run code.

The network is recognised from names and shapes, every tensor is loaded or listed, and config.json records the origin of
the weights. The layouts of the published Barlow Twins and SimSiam, of solo-learn, lightly and torchvision are supported.
"""

import hashlib
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.base.errors import CheckpointError
from diptych.base.files import require_free_folder
from diptych.networks.encoders import encoder as make_encoder
from diptych.runs.checkpoints import load_exactly
from diptych.runs.encoder import Preprocessing, require_finite, save_encoder

# Blocks per stage, whether they are bottlenecks -> name (He et al. 2016, table 1).
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
PART_BY_PREFIX = {  # first part of a tensor's name -> the part of the method that it belongs to
    "projector": "projector", "projection_head": "projector",
    "predictor": "predictor", "prediction_head": "predictor",
    "classifier": "classifier", "online_classifier": "classifier", "fc": "classifier", "linear": "classifier",
    "bn": "normalization of the projections",
}  # fmt: skip
ENCODER_NAME = re.compile(r"(conv1|bn1|layer[1-4])\.")
NUMBERED_NAME = re.compile(r"(\d+)\.")

IMAGENET_MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# pickle itself is never imported. Reading a damaged file can raise any of UNREADABLE.
Unpickling = torch.serialization.pickle.UnpicklingError
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError,
              ArithmeticError, MemoryError, struct.error)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A checkpoint by parts: `weights` under the network's names; `left_out` and `unexpected` under the file's."""

    name: str
    weights: dict[str, Tensor]
    left_out: dict[str, list[str]]
    unexpected: list[str]


@dataclass(frozen=True)
class Imported:
    """The result of `import_weights`; as text, a description of several lines."""

    folder: Path
    encoder: str
    stem: str
    preprocessing: Preprocessing
    origin: dict[str, Any]

    def __str__(self) -> str:
        origin, groups = self.origin, dict(self.origin["left_out"])
        lines = [f"{self.folder}  {self.encoder}, stem {self.stem}, {origin['tensors']} tensors (layout: {origin['layout']})",
                 f"  from {origin['file']}, {origin['bytes']:,} bytes, sha256 {origin['sha256']}",
                 f"  images: shorter side to {self.preprocessing.opened} pixels, the middle {self.preprocessing.size}, "
                 f"mean {self.preprocessing.mean}, std {self.preprocessing.std}"]  # fmt: skip
        if self.stem != "standard":
            padding = 2 if self.stem == "small-padded" else 1
            lines.append(f"  assumed, not visible in shapes: the first convolution has stride 1 and padding {padding}, "
                         "there is no max-pool, and the images were normalized as above")  # fmt: skip
        groups |= {"missing in the file": origin["missing"], "unexpected": origin["unexpected"]}
        lines += [f"  {group} ({len(keys)}): {', '.join(keys) or 'none'}" for group, keys in groups.items()]
        return "\n".join(lines)


def import_weights(
    file: str | Path,
    out: str | Path,
    size: int | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Imported:
    """Write the encoder of a published checkpoint into the folder `out`, for `load`, `embed`, `evaluate`, `classify`.

    size: pixels (default: 224, after resizing the shorter side to 256 / 224 of it; 32 without resizing if the first
    convolution is 3x3). mean, std: default ImageNet's, or CIFAR-10's if it is 3x3.

    Raises CheckpointError for a file that holds more than tensors or no ResNet, OutputError when `out` is not empty.
    """
    file, out = Path(file), require_free_folder(Path(out))
    layout = split_parts(read_torch_file(file), file)
    name, stem = recognise(layout, file)
    small = stem != "standard"
    size = size or (32 if small else 224)
    normal = CIFAR_MEAN_STD if small else IMAGENET_MEAN_STD
    expected = Preprocessing(size, mean or normal[0], std or normal[1], None if small else round(size * 256 / 224))
    require_finite(layout.weights, file)
    network = make_encoder(name, stem, size)
    # Counters of batches, which files from before 2018 lack and evaluation does not use.
    missing = [key for key in network.state_dict() if key.endswith("num_batches_tracked") and key not in layout.weights]
    load_exactly(network, layout.weights, f"{file}, read as a {name},", missing)
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    origin = {"file": str(file.resolve()), "sha256": digest, "bytes": file.stat().st_size, "layout": layout.name,
              "tensors": len(layout.weights), "missing": missing, "unexpected": layout.unexpected,
              "left_out": layout.left_out}  # fmt: skip
    save_encoder(out, network, expected, origin=origin)
    return Imported(out, name, stem, expected, origin)


def read_torch_file(file: Path) -> dict[str, Any]:
    """The dictionary in a file of torch.save, on the CPU; its tensors stay on the disk until they are needed.

    Raises CheckpointError naming the first class other than a tensor in the file; no such object is built.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is {'a folder' if file.is_dir() else 'missing'}; give a checkpoint file")
    try:
        # The zip layout (torch >= 1.6) can be mapped into memory, the older one cannot.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Unpickling as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        if match is None:
            raise CheckpointError(f"{file} is damaged, or was not written by torch.save; fetch it again") from None
        raise CheckpointError(
            f"{file} holds more than tensors: building its {match[1]!r} could run code, so nothing was read; "
            "save the tensors alone where the file comes from, torch.save(network.state_dict(), ...), and import that file"
        ) from None
    except UNREADABLE as error:
        message = " ".join(str(error).split("\n")[0].split())[:120]
        raise CheckpointError(
            f"{file} is damaged, or was not written by torch.save ({type(error).__name__}: {message}); fetch it again"
        ) from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not named tensors; save a state_dict() instead")
    return loaded


def split_parts(loaded: dict[str, Any], file: Path) -> Layout:
    """The encoder's tensors under torchvision's names (which timm shares), and the names of the others by their part."""
    inner = next((key for key in ("state_dict", "model") if isinstance(loaded.get(key), dict)), "")
    named = {str(key): value for key, value in (loaded[inner] if inner else loaded).items()}
    plain = {key.removeprefix("module."): key for key in named}
    prefix = next((start for start in ("backbone.", "encoder.") if any(key.startswith(start) for key in plain)), "")
    encoder_keys = {key.removeprefix(prefix): original for key, original in plain.items() if key.startswith(prefix)}
    names = without_numbers(encoder_keys)

    weights: dict[str, Tensor] = {}
    left_out: dict[str, list[str]] = {}
    unexpected: list[str] = []
    for key, original in plain.items():
        own = names.get(key.removeprefix(prefix), "") if key.startswith(prefix) else ""
        first = (own or key).split(".")[0]
        group = "projector" if re.match(r"fc\.\d", own) else PART_BY_PREFIX.get(first)  # SimSiam's fc is its projector
        if ENCODER_NAME.match(own) and isinstance(named[original], Tensor):
            weights[own.replace(".shortcut.", ".downsample.")] = named[original]
        elif group is not None:
            left_out.setdefault(group, []).append(original)
        else:
            unexpected.append(original)
    if not weights:
        some = ", ".join(list(named)[:3]) or "nothing"
        raise CheckpointError(f"{file} holds no ResNet under a known name, but {some} ...; export its encoder "
                              "alone, with torchvision's names")  # fmt: skip
    return Layout(layout_of(loaded, inner, prefix, list(plain), list(encoder_keys)), weights, left_out, unexpected)


def without_numbers(keys: dict[str, str]) -> dict[str, str]:
    """Map every key to torchvision's name: in nn.Sequential(*children) all layers have numbers, even without weights."""
    numbers = sorted({int(match[1]) for key in keys if (match := NUMBERED_NAME.match(key))})
    if len(numbers) != 6 or numbers[:2] != [0, 1]:
        return {key: key for key in keys}
    words = dict(zip(numbers, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"), strict=True))
    return {key: NUMBERED_NAME.sub(lambda match: f"{words[int(match[1])]}.", key, count=1) for key in keys}


def layout_of(loaded: dict[str, Any], inner: str, prefix: str, keys: list[str], encoder_keys: list[str]) -> str:
    """The name of the layout of a file."""
    starts = {key.split(".")[0] for key in keys}
    if NUMBERED_NAME.match(encoder_keys[0]):
        return "lightly, ResNetGenerator" if any(".shortcut." in key for key in encoder_keys) else "lightly, numbered"
    if not prefix:
        return "encoder alone"
    if inner == "model":
        return "Barlow Twins"
    if prefix == "encoder." and "pytorch-lightning_version" not in loaded:
        return "SimSiam"
    return "solo-learn" if starts & {"projector", "classifier"} else "lightly"


def recognise(layout: Layout, file: Path) -> tuple[str, str]:
    """The network's name and stem, from the number and kind of its blocks and its first convolution."""
    stages = [{key.split(".")[1] for key in layout.weights if key.startswith(f"layer{i}.")} for i in (1, 2, 3, 4)]
    blocks, bottleneck = tuple(map(len, stages)), "layer1.0.conv3.weight" in layout.weights
    name, first = RESNETS.get((blocks, bottleneck)), layout.weights.get("conv1.weight")
    if name is None or first is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise CheckpointError(f"{file} holds a network of {blocks} {kind} blocks{' without conv1' if first is None else ''}; "
                              f"known are {', '.join(RESNETS.values())}")  # fmt: skip
    kernel = tuple(first.shape[1:])
    if kernel == (3, 3, 3):  # of solo-learn's CIFAR networks the padding is 2, which changes every map's size
        return name, "small-padded" if layout.name == "solo-learn" else "small"
    if kernel != (3, 7, 7):
        raise CheckpointError(
            f"{file}: conv1.weight is {tuple(first.shape)}; known are (64, 3, 7, 7) and (64, 3, 3, 3)"
        )
    return name, "standard"
