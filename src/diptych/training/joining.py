"""Joins a closed-form encoder with a trained one: what both know, in one embedding."""

import torch
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.embeddings.whitening import partial_whitening
from diptych.networks.encoders import REFUSALS, built_with, encoder
from diptych.networks.inference import Preprocessing, embeddings, evaluating, prepare
from diptych.networks.joined import Described, Joined, descriptions
from diptych.networks.patches import PatchDictionary
from diptych.runs.encoder import Trained
from diptych.training.dictionary import fill

EMBEDDING, MAP = 0.6, 0.3  # lengths of the codes of embedding and feature maps beside the dictionary's, 1
POWER = 0.35  # of the whitening
FLOOR = 1e-3  # added to the variances, in units of their mean
UNTRAINABLE = ("joined", "patch_dictionary")
MOST_WIDTH = 256  # dimensions of a code
IMAGES_PER_DIMENSION = 3


def require_joinable(trained: Trained) -> None:
    """Raises RecipeError for an encoder that a folder cannot describe, and for one that is joined or closed-form."""
    name = (trained.built_with or {}).get("name")
    if name is None:
        raise RecipeError(
            "a module of your own cannot be joined: config.json could not describe it; use a named encoder"
        )
    if name in UNTRAINABLE:
        raise RecipeError(f"the encoder to join is a {name}; give the run of a trained network")


def joinable(trained: Trained) -> bool:
    """Whether `require_joinable` lets it pass."""
    return (trained.built_with or {}).get("name") not in (None, *UNTRAINABLE)


def join_encoders(dictionary: PatchDictionary, trained: Trained, pixels: Tensor) -> Trained:
    """The encoder of both, which a folder can describe. pixels: as of `join_networks`."""
    require_joinable(trained)
    network, p = join_networks(dictionary, trained, pixels), trained.preprocessing
    parts = [
        [layer.in_features, layer.out_features, length]
        for layer, length in zip(network.whiten, network.lengths, strict=True)
    ]
    joined = encoder("joined", size=p.size, dictionary=built_with(dictionary), trained=trained.built_with, parts=parts,
                     maps=network.described.maps, mirrored=network.described.mirrored, mean=p.mean, std=p.std)  # fmt: skip
    joined.load_state_dict(network.state_dict())
    return Trained(joined.eval(), Preprocessing(p.size, resize=p.resize))


@torch.no_grad()
def join_networks(dictionary: PatchDictionary, trained: Trained, pixels: Tensor) -> Joined:
    """Both networks, not copied, with the maps of their codes. pixels: a sample of the images, (N, 3, S, S) uint8 at the
    size that `trained` expects.

    What the trained encoder says is whitened partially, as the codes of the dictionary are: few of its directions have
    most of its variance, and would decide cosines alone. Mirror images are averaged where the dictionary averages them.
    """
    p, network = trained.preprocessing, trained.encoder
    few = prepare(pixels[:2], p.mean, p.std, p.size, p.resize).to(next(network.parameters(), pixels).device)
    with evaluating(network):
        described = Described(network, maps=has_maps(network, few), mirrored=dictionary.mirrored)
        widths = [part.shape[1] for part in described.parts(few)]
    layers = [whitening(vectors) for vectors in embeddings(described, pixels, p).split(widths, 1)]
    return Joined(dictionary, described, layers, [EMBEDDING, *[MAP] * (len(layers) - 1)], p.mean, p.std)


@torch.no_grad()
def has_maps(network: nn.Module, images: Tensor) -> bool:
    """Whether `descriptions` has feature maps of `network`: its embedding must be `forward_head` of its last maps, as in most
    of timm's networks. It is tried, as only that shows it; a network without maps of two sides raises what it likes."""
    try:
        described = descriptions(network, images, maps=True)
    except REFUSALS:
        return False
    return len(described) > 1 and torch.allclose(described[0], network(images), rtol=1e-3, atol=1e-4)


def whitening(rows_NE: Tensor) -> nn.Linear:
    """The partial whitening of rows, (E,) -> a code of at most MOST_WIDTH dimensions."""
    width = min(MOST_WIDTH, rows_NE.shape[1], max(1, len(rows_NE) // IMAGES_PER_DIMENSION))
    layer = nn.Linear(rows_NE.shape[1], width)
    fill(layer, *partial_whitening(rows_NE, width, POWER, FLOOR))
    return layer
