"""Losses. N: images of a batch, D: width of a projection, z: projection, p: prediction, c: correlation.

Functions of tensors, without state. Means over N are over the rows of all processes, in value and gradient, so each
process returns the loss of the global batch. They compute in float32 also under autocast; float64 stays float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.arithmetic import exact_product
from diptych.base.processes import gather_rows, mean_over_ranks, row_counts


def barlow_twins(
    z1_ND: Tensor, z2_ND: Tensor, off_diagonal_weight: float, eps: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """sum_i (1 - c_ii)^2 + weight * sum_{i != j} c_ij^2: Barlow Twins, Zbontar et al. 2021, eq. 1.

    z1_ND, z2_ND: (N, D) projections of two views of the same images. eps: added to the variances. Returns the loss,
    a scalar, and its two sums {"on_diagonal", "off_diagonal"} before the weight, detached. Raises ValueError when
    the shapes differ.
    """
    check_pair(z1_ND, z2_ND)
    counts = row_counts(len(z1_ND))
    if _gram_is_cheaper(sum(counts), z1_ND.shape[1]):
        z1_ND, z2_ND = standardize(z1_ND, eps), standardize(z2_ND, eps)
        c_ii = mean_of_all((z1_ND * z2_ND).sum(0), rows=len(z1_ND))
        # |z1' z2|^2 = <z1 z1', z2 z2'>, exactly: two (N, N) matrices instead of one (D, D), rows of this process by all rows
        all1_ND, all2_ND = gather_rows(z1_ND, counts), gather_rows(z2_ND, counts)
        own_squares = (matmul(z1_ND, all1_ND.T) * matmul(z2_ND, all2_ND.T)).sum()
        all_squares = mean_over_ranks(own_squares) * len(counts) / len(all1_ND) ** 2
    else:
        c_DD = cross_correlation(z1_ND, z2_ND, eps)
        c_ii = c_DD.diagonal()
        all_squares = c_DD.square().sum()
    on_diagonal = (1 - c_ii).square().sum()
    off_diagonal = all_squares - c_ii.square().sum()
    loss = on_diagonal + off_diagonal_weight * off_diagonal
    return loss, {"on_diagonal": on_diagonal.detach(), "off_diagonal": off_diagonal.detach()}


def negative_cosine(p_ND: Tensor, z_ND: Tensor) -> Tensor:
    """Minus the mean cosine of prediction and projection: SimSiam, Chen & He 2021, eq. 1.

    p_ND, z_ND: (N, D). Returns a scalar in [-1, 1]. Nothing is detached here: the method applies the stop-gradient. A row of
    zeros has the cosine 0 and a gradient of up to 1e8 / N, as in SimSiam's program. Raises ValueError when the shapes differ.
    """
    check_pair(p_ND, z_ND)
    cosine_N = F.cosine_similarity(wide(p_ND), wide(z_ND), dim=1)
    return -mean_of_all(cosine_N.sum(), rows=len(p_ND))


def cross_correlation(z1_ND: Tensor, z2_ND: Tensor, eps: float) -> Tensor:
    """(D, D) correlations of each dimension of one view with each of the other: Barlow Twins, eq. 2."""
    check_pair(z1_ND, z2_ND)
    sum_DD = matmul(standardize(z1_ND, eps).T, standardize(z2_ND, eps))
    return mean_of_all(sum_DD, rows=len(z1_ND))


def standardize(z_ND: Tensor, eps: float) -> Tensor:
    """Each dimension to mean 0 and variance 1 over the rows: (z - mean) / sqrt(variance + eps), (N, D).

    The variance is the population's, as in batch normalisation without affine parameters. A constant
    dimension becomes 0, with finite gradients as long as eps > 0.
    """
    z_ND = wide(z_ND)
    centred_ND = z_ND - mean_of_all(z_ND.sum(0), rows=len(z_ND))
    variance_D = mean_of_all(centred_ND.square().sum(0), rows=len(z_ND))
    return centred_ND * (variance_D + eps).rsqrt()


def _gram_is_cheaper(rows: int, width: int) -> bool:
    """4 n N D operations against 2 n D^2, n of the N rows of all ranks on this one; and 2 N D numbers are sent instead of D^2."""
    return 2 * rows < width


def mean_of_all(total: Tensor, rows: int) -> Tensor:
    """The mean over the rows of all ranks, from this rank's sum; ranks may have different numbers of rows."""
    return mean_over_ranks(total) / mean_over_ranks(total.new_full((), rows))


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A product in full precision: the only operation here that autocast would round to 16 bits, or a GPU to tf32."""
    with torch.autocast(a.device.type, enabled=False):
        return exact_product(a, b)


def check_pair(first: Tensor, second: Tensor) -> None:
    """Prevents broadcasting, which would return a meaningless number."""
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"expected two (N, D) of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
