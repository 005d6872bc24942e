"""Whether mirrored images keep their class, judged on the labelled training images alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.data.images import Images
from diptych.downstream.classifier import IMAGES_PER_BATCH
from diptych.embeddings.paired import paired_difference

MOST_IMAGES = 2000  # that are compared with each other
SIDE = 32  # pixels; larger images are shrunk to it


def flips_keep_classes(images: Images, classes_N: Tensor) -> bool:
    """False when a mirrored image is a worse neighbour than the image itself: of digits, letters, right hands.

    The class of each image is predicted by its nearest neighbour among the other images, and among the other images
    mirrored, by the cosine of their pixels. Where classes look the same in a mirror, both are right equally often. True
    unless the paired difference is significant, also where pixels predict nothing: then flips are only usual. Encoders do
    not serve here, because they are trained to ignore flips.
    """
    rows = torch.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).long()
    pairs = [(read, shrunk(pixels)) for read, pixels in images.read(rows, IMAGES_PER_BATCH)]
    y_N, x_NCHW = classes_N[torch.cat([read for read, _ in pairs])], torch.cat([x for _, x in pairs])
    x_NCHW = x_NCHW - x_NCHW.mean((0, 2, 3), keepdim=True)
    upright_NP = F.normalize(x_NCHW.flatten(1), dim=1)
    mirrored_NP = F.normalize(x_NCHW.flip(3).flatten(1), dim=1)
    correct, of_mirrored = (y_N[nearest_other(upright_NP, bank)] == y_N for bank in (upright_NP, mirrored_NP))
    pair = paired_difference(correct, of_mirrored)
    return not (pair.significant and pair.difference > 0)


def shrunk(pixels: Tensor) -> Tensor:
    """(n, 3, S, S) uint8 -> float32 of at most SIDE pixels."""
    size = min(SIDE, pixels.shape[-1])
    return F.interpolate(pixels.float(), (size, size), mode="area") if size < pixels.shape[-1] else pixels.float()


def nearest_other(x_NP: Tensor, bank_NP: Tensor) -> Tensor:
    """(N,) the row of the bank that is most similar to each row of x, except its own."""
    s_NN = x_NP @ bank_NP.T
    return s_NN.fill_diagonal_(-torch.inf).argmax(1)
