"""Do mirror images look like the images? N: images, S: side in pixels; s, m: similarity to other images. No label is used."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.random_at import random_at

MOST_IMAGES = 1000
SIDE, SHIFT, NEIGHBOUR = 16, 2, 5  # pixels of the shrunken images; shifts tried in pixels; which neighbour is compared
# Of `Flips.effect`. Measured on 1,000 images: digits 1.47, Latin letters 0.49, crops of photographs that overlap 0.16 to
# 0.20, CIFAR-10 -0.05.
UNLIKE = 0.25


@dataclass(frozen=True)
class Flips:
    """Whether a horizontal flip turns images into images of the same kind.

    alike: False if mirror images are clearly farther from the other images than the images themselves are.
    effect: how much farther, in standard deviations of the paired differences over images. margin: half of its 95 %
    interval. farther: the share of images whose mirror image is farther. images: how many were compared.
    """

    alike: bool
    effect: float
    margin: float
    farther: float
    images: int


@torch.no_grad()
def flips_look_alike(images: Tensor, seed: int = 0) -> Flips:
    """Compare images (N, 3, H, W), uint8 or float, and their mirror images with the other images; up to 1,000 of them.

    s is the similarity of an image to its fifth nearest of the other images, m that of its mirror image to its own fifth
    nearest: the correlation of their grey pixels at 16 x 16, the best over shifts of up to 2 pixels. A flip is harmful where
    m is clearly below s, as for letters, digits, and objects that all face one way. The fifth rather than the nearest,
    because crops of one photograph and frames of one film overlap, and an overlap has no mirror image.

    Takes 0.3 CPU-seconds. With few images only a large difference counts; fewer than 7 are always "alike".
    """
    chosen = torch.randperm(len(images), generator=random_at(seed, "flips"))[:MOST_IMAGES]
    count = len(chosen)
    if count < NEIGHBOUR + 2:
        return Flips(alike=True, effect=0.0, margin=float("inf"), farther=0.0, images=count)
    gray = images[chosen.to(images.device)].float().mean(1, keepdim=True)
    small = F.interpolate(gray, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    bank = contrast_normalised(small)
    d_N = nearness(small, bank) - nearness(small.flip(-1), bank)  # s - m
    deviation = float(d_N.std())
    effect, margin = float(d_N.mean()) / deviation if deviation > 0 else 0.0, 1.96 / count**0.5
    return Flips(effect - margin <= UNLIKE, effect, margin, float((d_N > 0).float().mean()), count)


def nearness(small: Tensor, bank: Tensor) -> Tensor:
    """(N,): the similarity of each image (N, 1, S, S) to its fifth nearest row of `bank` (N, S * S), its own left out."""
    padded = F.pad(small, (SHIFT,) * 4, mode="replicate")
    similarity = small.new_full((len(small), len(bank)), -1.0)
    for top in range(2 * SHIFT + 1):
        for left in range(2 * SHIFT + 1):
            shifted = contrast_normalised(padded[..., top : top + SIDE, left : left + SIDE])
            similarity = torch.maximum(similarity, shifted @ bank.T)
    return similarity.fill_diagonal_(-1.0).topk(NEIGHBOUR, dim=1).values[:, -1]


def contrast_normalised(small: Tensor) -> Tensor:
    """(N, 1, S, S) as rows (N, S * S) of mean 0 and length 1; a plain image is a row of zeros."""
    rows = small.flatten(1)
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
