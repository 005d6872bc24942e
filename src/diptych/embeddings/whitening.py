"""Partial whitening of embeddings. N: embeddings, E: their width, D: of the result."""

import torch
from torch import Tensor


def partial_whitening(rows_NE: Tensor, width: int, power: float, floor: float) -> tuple[Tensor, Tensor]:
    """Mean (E,) and weight (E, D), D = width: principal components, divided by their variance to `power`.

    Few directions have most of an embedding's variance, and decide cosines; after it, others count too. power: 0 changes
    no distances, 0.5 whitens completely. floor: added to the variances, in units of their mean.
    """
    mean_E = rows_NE.mean(0)
    centred_NE = rows_NE - mean_E
    values, vectors = torch.linalg.eigh((centred_NE.T @ centred_NE / len(rows_NE)).double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    scale_D = (values[:width] + floor * values.mean() + 1e-12) ** -power
    return mean_E, (vectors[:, :width] * scale_D).float()
