"""Joins a closed-form encoder with a trained one: what both know, in one embedding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.embeddings.whitening import partial_whitening
from diptych.networks.encoders import built_with, encoder
from diptych.networks.inference import Preprocessing, embeddings
from diptych.networks.joined import Joined, side_by_side
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
    mean_E, weight_ED = whitening(embeddings(trained.encoder, pixels, p))
    joined = encoder("joined", size=p.size, dictionary=built_with(dictionary), trained=trained.built_with,
                     width=weight_ED.shape[1], mean=p.mean, std=p.std, weight=WEIGHT)  # fmt: skip
    assert isinstance(joined, Joined)
    joined.dictionary.load_state_dict(dictionary.state_dict())
    joined.trained.load_state_dict(trained.encoder.state_dict())
    fill(joined.whiten, mean_E, weight_ED)
    return Trained(joined.eval(), Preprocessing(p.size, resize=p.resize))


def join_embeddings(dictionary: Sequence[Tensor], trained: Sequence[Tensor]) -> list[Tensor]:
    """The embeddings that `join_encoders` would give, from those of both encoders. The first of each are fitted on."""
    mean_E, weight_ED = whitening(trained[0])
    return [side_by_side(d, (t - mean_E) @ weight_ED, WEIGHT) for d, t in zip(dictionary, trained, strict=True)]


def whitening(rows_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and weight of the map to the code."""
    width = min(MOST_WIDTH, rows_NE.shape[1], max(1, len(rows_NE) // IMAGES_PER_DIMENSION))
    return partial_whitening(rows_NE, width, POWER, FLOOR)
