"""Computes the weights of a `PatchDictionary` from images: whitening, spherical k-means, principal components. No gradients.

N: images, P: patches or positions, F: their width, K: entries of a dictionary.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError
from diptych.base.random_at import random_at
from diptych.networks.patches import CONTRAST, ROWS_PER_BLOCK, PatchDictionary, unit

PATCHES_PER_ENTRY, POSITIONS_PER_ENTRY = 200, 40  # sampled for the dictionary of the first and of the second layer
LAYER_IMAGES = 4_000  # whose positions the second layer samples
ROUNDS = 10  # of k-means
THRESHOLD = 0.25  # in standard deviations of the similarities
PATCH_FLOOR = 0.1  # added to the variances of contrast-normalised patches, whose mean is 1 / 108
POSITION_FLOOR = 0.01  # in units of the mean variance
ITERATIONS, SPARE = 4, 64  # of the subspace iteration, and dimensions beyond the ones wanted


class Components(NamedTuple):
    """Principal components of standardised rows: `((x - mean_F) / scale_F) @ vectors_FD` has the variances `values_D`."""

    mean_F: Tensor
    scale_F: Tensor
    vectors_FD: Tensor
    values_D: Tensor


@torch.no_grad()
def learn_layers(network: PatchDictionary, pixels: Tensor, seed: int) -> None:
    """Fill both layers of `network` from images (N, 3, S, S) uint8. Raises DataError when they hold no structure."""
    learn_first_layer(network, pixels, random_at(seed, "quick", "first layer"))
    learn_second_layer(network, pixels, random_at(seed, "quick", "second layer"))


def learn_first_layer(network: PatchDictionary, pixels: Tensor, rng: torch.Generator) -> None:
    """Whitening of contrast-normalised patches, and the dictionary of what remains."""
    patches_PF = sample_patches(pixels, network.patch, PATCHES_PER_ENTRY * network.dictionary.out_channels, rng)
    patches_PF = patches_PF - patches_PF.mean(1, keepdim=True)
    patches_PF = patches_PF * torch.rsqrt(patches_PF.square().mean(1, keepdim=True) + CONTRAST)
    if not patches_PF.square().mean() > 1e-3:
        raise DataError("each image has a single colour, so there are no patches to learn from; check the source")
    mean_F, weight_FD = whitening(patches_PF, network.whiten.out_channels, PATCH_FLOOR)
    z_PD = unit((patches_PF - mean_F) @ weight_FD)
    network.whiten.weight.copy_((weight_FD - weight_FD.mean(0)).T.reshape(network.whiten.weight.shape))
    network.offset.copy_((-mean_F @ weight_FD)[:, None, None])
    learn_dictionary(network.dictionary, z_PD, rng)


def learn_second_layer(network: PatchDictionary, pixels: Tensor, rng: torch.Generator) -> None:
    """Whitening of pooled positions and of their 3x3 neighbourhoods, and the dictionary of the latter."""
    chosen = pixels[torch.randperm(len(pixels), generator=rng)[:LAYER_IMAGES]]
    pooled = torch.cat([network.pool_positions(network.responses(block)) for block in blocks(chosen)])
    positions_PF = pooled.permute(0, 2, 3, 1).flatten(0, 2)
    count = POSITIONS_PER_ENTRY * network.second_dictionary.out_channels
    fill(network.reduce, *whitening(some(positions_PF, count, rng), network.reduce.out_channels))
    reduced = torch.cat([unit(network.reduce(block)) for block in pooled.split(64)])
    del pooled, positions_PF
    around_PF = some(F.unfold(reduced, 3).transpose(1, 2).flatten(0, 1), count, rng)
    mean_F, weight_FD = whitening(around_PF, network.gather.out_channels)
    fill(network.gather, mean_F, weight_FD)
    learn_dictionary(network.second_dictionary, unit((around_PF - mean_F) @ weight_FD), rng)


def sample_patches(pixels: Tensor, side: int, count: int, rng: torch.Generator) -> Tensor:
    """(count, 3 * side * side) float32 in [0, 1], of random images and positions."""
    rows = torch.randint(len(pixels), (count,), generator=rng)
    corners = torch.randint(pixels.shape[2] - side + 1, (count, 2), generator=rng)
    offset = torch.arange(side)
    across = corners[:, :1, None] + offset[:, None], corners[:, 1:, None] + offset[None, :]
    patches = pixels[rows[:, None, None], :, across[0], across[1]]  # (P, side, side, 3)
    return patches.permute(0, 3, 1, 2).flatten(1).float() / 255


def whitening(rows_PF: Tensor, width: int, floor: float | None = None) -> tuple[Tensor, Tensor]:
    """Mean (F,) and weight (F, width): components over the root of their variance plus `floor`.

    floor: None for `POSITION_FLOOR` of the mean variance of the components.
    """
    mean_F = rows_PF.mean(0)
    centred_PF = rows_PF - mean_F
    values_F, vectors_FF = torch.linalg.eigh((centred_PF.T @ centred_PF / len(rows_PF)).double())
    values, vectors = values_F.flip(0)[:width].clamp_min(0), vectors_FF.flip(1)[:, :width]
    added = POSITION_FLOOR * values.mean() + 1e-12 if floor is None else floor
    return mean_F, (vectors / (values + added).sqrt()).float()


def learn_dictionary(layer: torch.nn.Conv2d, z_PD: Tensor, rng: torch.Generator) -> None:
    """Entries by spherical k-means (`ROUNDS` rounds from random rows), and the soft threshold as a negative bias."""
    entries_KD = z_PD[torch.randint(len(z_PD), (layer.out_channels,), generator=rng)].clone()
    for _ in range(ROUNDS):
        sums_KD = torch.zeros_like(entries_KD)
        for block_PD in z_PD.split(8192):
            similarity_P, nearest_P = (block_PD @ entries_KD.T).max(1)
            sums_KD.index_add_(0, nearest_P, block_PD * similarity_P[:, None])
        used_K = sums_KD.norm(dim=1, keepdim=True) > 1e-6
        entries_KD = torch.where(used_K, unit(sums_KD), entries_KD)
    similarities = z_PD[:20_000] @ entries_KD.T
    layer.weight.copy_(entries_KD.reshape(layer.weight.shape))
    assert layer.bias is not None
    layer.bias.fill_(-THRESHOLD * similarities.std())


def components(rows_NF: Tensor, width: int, rng: torch.Generator) -> Components:
    """The first principal components of standardised rows, by subspace iteration: `ITERATIONS` products with the Gram."""
    mean_F, deviation_F = rows_NF.mean(0), rows_NF.std(0, correction=0)
    scale_F = deviation_F.clamp_min(0.05 * float(deviation_F.mean()) + 1e-8)  # rare entries are not blown up
    x_NF = (rows_NF - mean_F) / scale_F
    basis_FD = torch.randn(x_NF.shape[1], min(width + SPARE, *x_NF.shape), generator=rng).to(x_NF.device)
    for _ in range(ITERATIONS):
        basis_FD = torch.linalg.qr(x_NF.T @ (x_NF @ basis_FD)).Q
    y_ND = x_NF @ basis_FD
    values, vectors = torch.linalg.eigh((y_ND.T @ y_ND / len(y_ND)).double())
    values, vectors = values.flip(0)[:width].clamp_min(0).float(), vectors.flip(1)[:, :width].float()
    return Components(mean_F, scale_F, basis_FD @ vectors, values)


def blocks(pixels: Tensor) -> Iterator[Tensor]:
    """Images (uint8, or float in [0, 1]) as the network takes them, a few at a time."""
    for block in pixels.split(ROWS_PER_BLOCK):
        block = block if block.is_floating_point() else block.float() / 255
        yield block.contiguous(memory_format=torch.channels_last)


def some(rows_PF: Tensor, count: int, rng: torch.Generator) -> Tensor:
    return rows_PF[torch.randperm(len(rows_PF), generator=rng)[:count]]


def fill(layer: torch.nn.Conv2d | torch.nn.Linear, mean_F: Tensor, weight_FD: Tensor) -> None:
    """Make a layer compute `(x - mean_F) @ weight_FD`."""
    assert layer.bias is not None
    layer.weight.copy_(weight_FD.T.reshape(layer.weight.shape))
    layer.bias.copy_(-mean_F @ weight_FD)
