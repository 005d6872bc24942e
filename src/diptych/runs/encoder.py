"""Trained encoders: weights and the preprocessing they expect, in one folder with timm's layout.

encoder/model.safetensors    the weights            encoder/config.json    architecture, preprocessing, how it was built
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from diptych.base.arithmetic import choose_precision
from diptych.base.errors import CheckpointError, DiptychError
from diptych.base.files import write_file
from diptych.data.untrusted import FAULTS, NO_FILE, reason_of
from diptych.networks.encoders import built_with, copy_of, not_taken, without_weights
from diptych.networks.encoders import encoder as make_encoder
from diptych.networks.inference import PRECISIONS, Preprocessing, embeddings, require_precision
from diptych.runs.checkpoints import load_exactly, plain, read_tensors
from diptych.runs.encoder_config import damaged, preprocessing_of, read_config, timm_part
from diptych.runs.run import Run, is_run

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained encoder and all that its use requires; from `load`, or `Trained(module, Preprocessing(...))`.

    built_with: arguments of `diptych.encoder` that build the network again; None for a module of another origin.
    folder: the run or encoder folder that it was read from; None if it was not read from a folder.

    Calling it, `embed`, `evaluate` and `classify` move the encoder to the device of the computation and leave it there.
    They do not change its weights, and `finetune` trains a copy.
    """

    encoder: nn.Module
    preprocessing: Preprocessing
    built_with: dict | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.built_with is None:
            object.__setattr__(self, "built_with", built_with(self.encoder))

    def __call__(
        self,
        images: Tensor | np.ndarray | Iterable[Tensor],
        *,
        batch_size: int = 512,
        device: torch.device | str | None = None,
        output_device: torch.device | str = "cpu",
        precision: str = "float32",
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """The embeddings (N, E) float32 of uint8 images (N, 3, H, W), a tensor or an array, or an iterable of such batches.

        Images of another size than the encoder expects are resized and cropped in the middle; images of one batch have
        one size. The other arguments and the errors are those of `networks.inference.embeddings`.
        """
        pixels = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        return embeddings(self.encoder, pixels, self.preprocessing, batch_size=batch_size, device=device,
                          output_device=output_device, precision=precision, progress=progress)  # fmt: skip

    def untrained(self) -> "Trained | None":
        """The network before training, if the run has saved it; else None, as for a run that started with a trained one."""
        if self.folder is None or not (self.folder / "untrained" / "config.json").is_file():
            return None
        if is_run(self.folder) and Run(self.folder).recipe.get("start_from"):
            return None
        return load(self.folder / "untrained", None if self.built_with else self.encoder)


def save_encoder(
    folder: Path, encoder: nn.Module, preprocessing: Preprocessing, origin: dict | None = None, fit: str = "crop"
) -> Path:
    """Write `encoder` to `folder`, which timm's `local-dir:` reads if timm can build the network (not with a small stem).

    origin: any JSON about the origin of the weights, saved in config.json. fit: how images became squares, for timm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save(plain(encoder.state_dict()), metadata={"format": "pt"})
    write_file(folder / WEIGHTS, data)
    built = built_with(encoder)
    width = getattr(encoder, "num_features", None)
    config = {
        **timm_part(built, type(encoder).__name__, width, preprocessing, fit),
        "diptych": {"encoder": built, "preprocessing": asdict(preprocessing)} | ({"origin": origin} if origin else {}),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_file(folder / "config.json", json.dumps(config, indent=1).encode())
    return folder


def weights_sha256(trained: Trained) -> str:
    """The sha256 of an encoder's weights: of the file that it was read from, or of the one that `save_encoder` would write."""
    if trained.folder is not None:
        return read_config(encoder_folder(trained.folder))["sha256"]
    data = safetensors.torch.save(plain(trained.encoder.state_dict()), metadata={"format": "pt"})
    return hashlib.sha256(data).hexdigest()


def load(folder: Run | str | Path, encoder: nn.Module | None = None) -> Trained:
    """The encoder of a run or of an encoder folder, in evaluation mode, on the CPU.

    encoder: a network of the same architecture, needed only if the trained one was the user's own module. A copy of it
    gets the weights.
    Raises CheckpointError when the folder holds no encoder, or its weights are damaged or do not fit.
    """
    folder = folder.folder if isinstance(folder, Run) else Path(folder)
    place = encoder_folder(folder)
    config = read_config(place)
    own, tensors = config["diptych"], read_weights(place, config["sha256"])
    if encoder is not None:
        network = copy_of(encoder).cpu()
    elif own["encoder"] is not None:  # the weights are read from this folder, not fetched
        network = build_described(without_weights(own["encoder"]), place, tensors)
    else:
        raise CheckpointError(
            f"{place} holds a custom {config['architecture']}: pass the module, load({str(folder)!r}, encoder=...), or "
            "--encoder MODULE:FUNCTION"
        )
    load_exactly(network, tensors, place / WEIGHTS)
    arguments = own["encoder"] if encoder is not None else built_with(network)
    return Trained(network.eval(), preprocessing_of(own), arguments, folder)


def load_weights(network: nn.Module, place: Path, sha256: str) -> None:
    """Load the weights of an encoder folder strictly; sha256: their hash in config.json.

    Raises CheckpointError when they are damaged or do not fit.
    """
    load_exactly(network, read_weights(place, sha256), place / WEIGHTS)


def read_weights(place: Path, sha256: str) -> dict[str, Tensor]:
    """The named weights of an encoder folder. Raises CheckpointError when they are damaged or not finite."""
    weights = place / WEIGHTS
    if weights.exists() and not weights.is_file():
        raise CheckpointError(f"{weights} is {NO_FILE}; restore the encoder folder")
    if weights.exists() and hashlib.sha256(weights.read_bytes()).hexdigest() != sha256:
        raise CheckpointError(
            f"{weights} is damaged: its hash is not the one in config.json; restore or train it again"
        )
    tensors = read_tensors(weights)
    require_finite(tensors, weights)
    return tensors


def require_finite(tensors: dict[str, Tensor], file: Path) -> None:
    """Raise CheckpointError naming the first tensor of a file that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := tensor.float().isfinite()).all():  # float8 has no isfinite
            count = f"{int((~finite).sum()):,} of {tensor.numel():,} numbers"
            raise CheckpointError(f"{file}: {count} of {name} are NaN or infinite; restore or train it again")


def build_described(arguments: dict, place: Path, tensors: dict[str, Tensor]) -> nn.Module:
    """The network that config.json describes, if `tensors` fit it. Raises CheckpointError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about layers of no channels, which are refused anyway
            if (outline := outline_of(arguments)) is not None:
                shapes = {name: tensor.shape for name, tensor in outline.state_dict().items()}
                if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
                    load_exactly(outline, tensors, place / WEIGHTS)  # raises: it names what differs
            return build_again(arguments)
    except CheckpointError:
        raise
    except (*FAULTS, ImportError, DiptychError) as error:
        raise damaged(place / "config.json", f"diptych.encoder: {reason_of(error)}") from error


def outline_of(arguments: dict) -> nn.Module | None:
    """The network without memory for its weights, of which a description may ask for any number; None where torch cannot."""
    try:
        with torch.device("meta"):
            return build_again(arguments)
    except FAULTS:
        return None


def build_again(arguments: dict) -> nn.Module:
    """The network that config.json describes. Old folders say stem "auto", which was the small one up to 64 pixels."""
    if arguments.get("stem") == "auto":
        is_small = (arguments.get("size") or 65) <= 64 and not not_taken(arguments["name"], {"stem": "small"})
        arguments = arguments | {"stem": "small" if is_small else "standard"}
    return make_encoder(**arguments)


def as_trained(encoder: Trained | Run | str | Path) -> Trained:
    """The encoder that `embed`, `evaluate`, `classify` and `finetune` use: a `Trained` itself, or what `load` reads."""
    return encoder if isinstance(encoder, Trained) else load(encoder)


def precision_for(wanted: str, trained: Trained, device: torch.device) -> str:
    """The precision in which to embed: `wanted`, or for "auto" on a GPU that of the run that trained the encoder, else float32.

    Raises RecipeError for an unknown one.
    """
    if wanted != "auto":
        require_precision(wanted)
        return wanted
    if device.type == "cpu" or trained.folder is None or not is_run(trained.folder):
        return "float32"
    of_run = Run(trained.folder).section("pretrain").get("precision", "float32")
    return of_run if of_run in PRECISIONS else choose_precision(of_run, device) if of_run == "auto" else "float32"


def encoder_folder(folder: str | Path) -> Path:
    """`folder` itself, or the `encoder/` in it when it is a run."""
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is a file; `diptych import-weights {folder} --out FOLDER` turns it into an encoder folder"
        )
    if (folder / "encoder" / "config.json").is_file():
        return folder / "encoder"
    if not (folder / "config.json").is_file():
        reason = "no config.json; point to a run, or to a folder that import-weights has written"
        if (folder / "log.jsonl").is_file():
            reason = "its training has not finished: continue it with `diptych pretrain ... --resume`"
        elif (folder / "vectors.npy").is_file():
            reason = "it holds vectors; name the run that they were made with"
        raise CheckpointError(f"{folder} holds no encoder ({reason})")
    return folder
