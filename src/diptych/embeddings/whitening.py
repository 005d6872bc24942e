"""Partial whitening of embeddings. N: embeddings, E: their width, D: of the result."""

import torch
from torch import Tensor

from diptych.base.random_at import random_at

WIDE, SPARE, PASSES = 2048, 64, 6  # dimensions; directions beside those that are wanted; of subspace iteration


def partial_whitening(rows_NE: Tensor, width: int, power: float, floor: float) -> tuple[Tensor, Tensor]:
    """Mean (E,) and weight (E, D), D = width: principal components, divided by their variance to `power`.

    Few directions have most of an embedding's variance, and decide cosines; after it, others count too. power: 0 changes
    no distances, 0.5 whitens completely. floor: added to the variances, in units of their mean.
    """
    mean_E = rows_NE.mean(0)
    centred_NE = rows_NE - mean_E
    mean_variance = centred_NE.square().mean().double()
    values, vectors = principal_components(centred_NE, width)
    scale_D = (values + floor * mean_variance + 1e-12) ** -power
    return mean_E, (vectors * scale_D).float()


def principal_components(centred_NE: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest variances (D,) and their directions (E, D), float64.

    Above `WIDE` dimensions by subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4), which reads the rows
    `PASSES` times: an eigendecomposition of (E, E) would take minutes.
    """
    n, e = centred_NE.shape
    if e <= WIDE or width + SPARE >= e:
        values, vectors = torch.linalg.eigh((centred_NE.T @ centred_NE / n).double())
    else:
        random = torch.randn(e, width + SPARE, generator=random_at(0, "principal components")).to(centred_NE)
        basis = torch.linalg.qr(random).Q
        for _ in range(PASSES):
            basis = torch.linalg.qr(centred_NE.T @ (centred_NE @ basis)).Q
        values, turned = torch.linalg.eigh((centred_NE @ basis).double().T @ (centred_NE @ basis).double() / n)
        vectors = basis.double() @ turned
    return values.flip(0)[:width].clamp_min(0), vectors.flip(1)[:, :width]
