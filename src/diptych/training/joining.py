"""Joins a closed-form encoder with a trained one: what both know, in one embedding."""

import torch
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.networks.encoders import built_with, encoder
from diptych.networks.inference import Preprocessing, embeddings
from diptych.networks.joined import Joined
from diptych.networks.patches import PatchDictionary
from diptych.runs.encoder import Trained
from diptych.training.dictionary import fill

WEIGHT = 0.6  # length of the trained network's code beside that of the dictionary, 1; 0.3 and 1 had worse neighbours
POWER = 0.35  # of the whitening
FLOOR = 1e-3  # added to the variances, in units of their mean
MOST_WIDTH = 256  # dimensions of the code
IMAGES_PER_DIMENSION = 3


def require_joinable(trained: Trained) -> None:
    """Raises RecipeError for an encoder that a folder cannot describe, and for one that is joined or closed-form."""
    name = (trained.built_with or {}).get("name")
    if name is None:
        raise RecipeError(
            "a module of your own cannot be joined: config.json could not describe it; use a named encoder"
        )
    if name in ("joined", "patch_dictionary"):
        raise RecipeError(f"the encoder to join is a {name}; give the run of a trained network")


@torch.no_grad()
def join_encoders(dictionary: PatchDictionary, trained: Trained, pixels: Tensor) -> Trained:
    """The encoder of both. pixels: a sample of the images, (N, 3, S, S) uint8 at the size that `trained` expects.

    The trained encoder's embedding is whitened partially, as the codes of the dictionary are: few of its directions have
    most of its variance, and would decide cosines alone.
    """
    require_joinable(trained)
    p = trained.preprocessing
    rows_NE = embeddings(trained.encoder, pixels, p)
    if dictionary.mirrored:
        rows_NE = (rows_NE + embeddings(trained.encoder, pixels.flip(3), p)) / 2
    width = min(MOST_WIDTH, rows_NE.shape[1], max(1, len(pixels) // IMAGES_PER_DIMENSION))
    joined = encoder("joined", size=p.size, dictionary=built_with(dictionary), trained=trained.built_with, width=width,
                     mean=p.mean, std=p.std, weight=WEIGHT)  # fmt: skip
    assert isinstance(joined, Joined)
    joined.dictionary.load_state_dict(dictionary.state_dict())
    joined.trained.load_state_dict(trained.encoder.state_dict())
    fill(joined.whiten, *partial_whitening(rows_NE, width))
    return Trained(joined.eval(), Preprocessing(p.size, resize=p.resize))


def partial_whitening(rows_NE: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean (E,) and weight (E, width): principal components, divided by their variance to `POWER`."""
    mean_E = rows_NE.mean(0)
    centred_NE = rows_NE - mean_E
    values, vectors = torch.linalg.eigh((centred_NE.T @ centred_NE / len(rows_NE)).double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    scale = (values[:width] + FLOOR * values.mean() + 1e-12) ** -POWER
    return mean_E, (vectors[:, :width] * scale).float()
