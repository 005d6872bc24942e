"""What remains of a run: an encoder's weights and the preprocessing they expect, in one folder, in timm's layout.

encoder/model.safetensors    the weights            encoder/config.json    architecture, preprocessing, how it was built
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from torch import nn

from diptych.base.errors import CheckpointError
from diptych.base.files import write_file
from diptych.networks.encoders import encoder as make_encoder
from diptych.networks.encoders import without_weights
from diptych.runs.checkpoints import load_exactly, plain, read_tensors


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder expects: square RGB images of `size` pixels in [0, 1], minus `mean`, over `std` (per channel).

    resize: pixels of the shorter side before the middle `size` are cut out, as 256 for 224; None: `size` itself.
    """

    size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None

    @property
    def opened(self) -> int:
        """At which size, in pixels, the squares are best read: everything after is then a crop."""
        return self.resize or self.size


def save_encoder(
    folder: Path, encoder: nn.Module, preprocessing: Preprocessing, name: str = "model", origin: dict | None = None
) -> Path:
    """Write `encoder` to `folder`; timm's `local-dir:` reads the folder where the architecture is timm's own.

    origin: any JSON about where the weights come from, kept in config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save(plain(encoder.state_dict()), metadata={"format": "pt"})
    write_file(folder / f"{name}.safetensors", data)
    built = getattr(encoder, "built_with", None)
    channels = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    size = [3, preprocessing.size, preprocessing.size]
    config = {
        "architecture": built["name"] if built else type(encoder).__name__,
        "num_classes": 0,
        "num_features": getattr(encoder, "num_features", None),
        "pretrained_cfg": {
            "input_size": size,
            **channels,
            "interpolation": "bilinear",
            "crop_pct": preprocessing.size / preprocessing.opened,
            "num_classes": 0,
        },
        "diptych": {"encoder": built, "preprocessing": asdict(preprocessing)} | ({"origin": origin} if origin else {}),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_file(folder / "config.json", json.dumps(config, indent=1).encode())
    return folder


def load(folder: str | Path, encoder: nn.Module | None = None) -> nn.Module:
    """The encoder of a run or of an encoder folder, in evaluation mode, with `.preprocessing`.

    `encoder` is a network of the same architecture, needed only where the trained one was the user's own module.
    Raises CheckpointError when the folder holds no encoder, or weights that were damaged or do not fit.
    """
    folder = encoder_folder(folder)
    config = read_config(folder)
    own = config["diptych"]
    if encoder is None and own["encoder"] is None:
        raise CheckpointError(
            f"{folder} holds a custom {config['architecture']}: pass the module, load({str(folder)!r}, encoder=...)"
        )
    if encoder is None:
        encoder = make_encoder(**without_weights(own["encoder"]))  # they lie beside it: nothing else is read or fetched
    weights = folder / "model.safetensors"
    if weights.exists() and hashlib.sha256(weights.read_bytes()).hexdigest() != config["sha256"]:
        raise CheckpointError(
            f"{weights} is damaged: its hash is not the one in config.json; restore or train it again"
        )
    load_exactly(encoder, read_tensors(weights), weights)
    encoder.preprocessing = preprocessing_of(own)  # pyrefly: ignore
    return encoder.eval()


def read_config(folder: Path) -> dict:
    """config.json of an encoder folder. Raises CheckpointError when it is missing or not as `save_encoder` writes it."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        preprocessing_of(config["diptych"])
        if not (isinstance(config["sha256"], str) and isinstance(config["diptych"]["encoder"], dict | None)):
            raise ValueError("an entry of another kind")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}/config.json is missing or damaged ({type(error).__name__}: {error}); bring it back, or "
                              "make the folder again") from None  # fmt: skip
    return config


def preprocessing_of(own: dict) -> Preprocessing:
    """From config.json's part "diptych"; folders of before `resize` was known have none."""
    told = own["preprocessing"]
    return Preprocessing(told["size"], tuple(told["mean"]), tuple(told["std"]), told.get("resize"))


def encoder_folder(folder: str | Path) -> Path:
    """`folder` itself, or the `encoder/` in it when it is a run."""
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file; `diptych import-weights {folder} --out FOLDER` makes an encoder folder of it"
        )
    if (folder / "encoder" / "config.json").is_file():
        return folder / "encoder"
    if not (folder / "config.json").is_file():
        unfinished = (folder / "log.jsonl").is_file()
        told = (
            "its training has not finished: continue it with `diptych pretrain ... --resume`"
            if unfinished
            else "no config.json; point to a run, or to a folder that import-weights has made"
        )
        raise CheckpointError(f"{folder} holds no encoder ({told})")
    return folder
