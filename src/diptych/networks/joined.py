"""A closed-form encoder and a trained one as one encoder. N: images, S: their size, E: width of an embedding."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.networks.patches import PatchDictionary, even_pooling, unit

MAPS = 2  # the last feature maps of a network that are described


class Described(nn.Module):
    """What a network says of images that it takes, (N, 3, S, S) -> (N, D): its `parts` side by side.

    maps: whether feature maps are described too, see `training.joining.has_maps`. mirrored: means over the images and
    their mirror images.
    """

    def __init__(self, network: nn.Module, *, maps: bool, mirrored: bool):
        super().__init__()
        self.network, self.maps, self.mirrored = network, maps, mirrored

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self.parts(images), 1)

    def parts(self, images: Tensor) -> list[Tensor]:
        described = descriptions(self.network, images, maps=self.maps)
        if not self.mirrored:
            return described
        mirrored = descriptions(self.network, images.flip(3), maps=self.maps)
        return [(one + other) / 2 for one, other in zip(described, mirrored, strict=True)]


class Joined(nn.Module):
    """Images (N, 3, S, S) in [0, 1] -> embedding (N, E), E = `num_features`.

    dictionary: its embedding, scaled to length 1, comes first. It reads the images at its own size.
    described: a network whose input is `(images - mean) / std`. The codes of its parts come second: each part goes through
    its linear map of `whiten`, which `training.joining` makes partial whitening, and is scaled to its length of `lengths`.
    """

    def __init__(
        self,
        dictionary: PatchDictionary,
        described: Described,
        whiten: Sequence[nn.Linear],
        lengths: Sequence[float],
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        self.dictionary, self.described = dictionary, described
        self.whiten, self.lengths = nn.ModuleList(whiten), list(lengths)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.num_features = dictionary.num_features + sum(layer.out_features for layer in whiten)

    def forward(self, images: Tensor) -> Tensor:
        size = self.dictionary.size
        small = images
        if images.shape[2] != size:
            small = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return side_by_side(self.dictionary(small), self.codes((images - self.mean) / self.std))

    def codes(self, images: Tensor) -> Tensor:
        """Images as the network expects them -> the codes of all parts."""
        parts = zip(self.whiten, self.lengths, self.described.parts(images), strict=True)
        return torch.cat([length * unit(layer(vectors)) for layer, length, vectors in parts], 1)


class Codes(nn.Module):
    """The codes of a trained network alone, for a dictionary's embeddings that are known."""

    def __init__(self, joined: Joined):
        super().__init__()
        self.joined = joined

    def forward(self, images: Tensor) -> Tensor:
        return self.joined.codes(images)


def side_by_side(vectors: Tensor, codes: Tensor) -> Tensor:
    """Embeddings of a dictionary, scaled to length 1, and codes: (N, D) and (N, E) -> (N, D + E)."""
    return torch.cat([unit(vectors), codes], 1)


def descriptions(network: Any, images: Tensor, *, maps: bool) -> list[Tensor]:
    """The embedding (N, E), and with `maps` the means of the last feature maps (N, C, h, w) over quadrants, (N, 4 C) each.

    An embedding has lost where in the image something is, and what earlier layers see.
    """
    if not maps:
        return [network(images)]
    last, seen = network.forward_intermediates(images, indices=MAPS)
    return [network.forward_head(last), *(quadrants(map_) for map_ in seen if min(map_.shape[2:]) > 1)]


def quadrants(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 4 C)."""
    (rows, down), (columns, across) = (even_pooling(side, 2) for side in maps.shape[2:])
    return F.avg_pool2d(maps, (rows, columns), (down, across)).flatten(1)
