"""A run that starts with the encoder of another one."""

from pathlib import Path

from torch import nn

from diptych.base.errors import CheckpointError
from diptych.networks.encoders import built_with
from diptych.runs.encoder import encoder_folder, load_weights
from diptych.runs.encoder_config import read_config
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
    recorded = {} if continued is None else continued.section("start_from")
    if recorded.get("folder") == str(folder) and not folder.exists():
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
    load_weights(encoder, place, config["sha256"])
    return config["sha256"]


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
