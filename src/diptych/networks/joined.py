"""A closed-form encoder and a trained one as one encoder. N: images, S: their size, E: width of an embedding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.networks.patches import PatchDictionary, unit


class Joined(nn.Module):
    """Images (N, 3, S, S) in [0, 1] -> both embeddings side by side (N, E), E = `num_features`.

    dictionary: its embedding, scaled to length 1, comes first. It reads the images at its own size.
    trained: a network whose input is `(images - mean) / std`. A linear map `whiten` of its embedding to `width` dimensions,
    scaled to length `weight`, comes second; `training.joining` makes it partial whitening.
    """

    def __init__(
        self,
        dictionary: PatchDictionary,
        trained: nn.Module,
        embedding_width: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        weight: float,
    ):
        super().__init__()
        self.dictionary, self.trained = dictionary, trained
        self.whiten = nn.Linear(embedding_width, width)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.weight = weight
        self.num_features = dictionary.num_features + width

    def forward(self, images: Tensor) -> Tensor:
        size = self.dictionary.size
        small = images
        if images.shape[2] != size:
            small = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        code = self.whiten(self.trained((images - self.mean) / self.std))
        return side_by_side(self.dictionary(small), code, self.weight)


def side_by_side(vectors: Tensor, codes: Tensor, weight: float) -> Tensor:
    """Rows of length 1 and rows of length `weight`, (N, D) and (N, E) -> (N, D + E)."""
    return torch.cat([unit(vectors), weight * unit(codes)], 1)
