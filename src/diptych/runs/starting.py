"""A run that starts with the encoder of another one."""

import hashlib
from pathlib import Path

from torch import nn

from diptych.base.errors import CheckpointError
from diptych.networks.encoders import built_with
from diptych.runs.checkpoints import load_exactly, read_tensors
from diptych.runs.encoder import encoder_folder, read_config
from diptych.runs.run import Run

OPEN = ("size", "pretrained")  # arguments of an encoder that its weights may differ in; their shapes are compared


def start_encoder(encoder: nn.Module, folder: str | Path, continued: Run | None = None) -> dict[str, str]:
    """Load the weights of a run's or an encoder folder's encoder into `encoder`, in place, for a run to start with.

    Returns what identifies them, {"folder", "sha256"}: give it to `pretrain` as `record["start_from"]`. All else of a
    method, such as its projector, stays as it is. continued: the run that goes on; it has its own copy of the weights, so
    `folder` need not exist any more.

    Raises CheckpointError when `folder` holds no encoder, or one of another architecture.
    """
    folder = Path(folder)
    recorded = None if continued is None else continued.recipe.get("start_from")
    if recorded and recorded["folder"] == str(folder) and not folder.exists():
        if (continued.folder / "untrained" / "config.json").is_file():  # pyrefly: ignore[missing-attribute]
            fill(encoder, continued.folder / "untrained")  # pyrefly: ignore[missing-attribute]
        return recorded
    return {"folder": str(folder), "sha256": fill(encoder, encoder_folder(folder))}


def fill(encoder: nn.Module, place: Path) -> str:
    """Load the weights of an encoder folder; returns their sha256."""
    config, own = read_config(place), built_with(encoder)
    theirs = config["diptych"]["encoder"]
    if own is not None and theirs is not None:
        keys = sorted((own.keys() | theirs.keys()) - {*OPEN})
        differ = [f"{key} {theirs.get(key)} there, {own.get(key)} here" for key in keys
                  if plain(theirs.get(key)) != plain(own.get(key))]  # fmt: skip
        if differ:
            raise CheckpointError(f"{place} holds another network ({'; '.join(differ)}); set the same under encoder")
    weights = place / "model.safetensors"
    load_exactly(encoder, tensors := read_tensors(weights), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if not tensors or digest != config["sha256"]:
        raise CheckpointError(f"{weights} is damaged: its hash is not the one in config.json; restore it")
    return digest


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
