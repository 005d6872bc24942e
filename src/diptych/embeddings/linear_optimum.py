"""The linear map that minimises Barlow Twins' loss, in closed form. N: images, F: width of the vectors, D: of the projections.

Let f and f' be centred vectors of two views of an image, T (F, F) their covariance and C (F, F) the covariance between
them, both averaged over the two orders of the views, so that C is symmetric. A linear projector W (F, D) has the
projections f W, and Barlow Twins (Zbontar et al. 2021, eq. 1) measures their cross-correlation

    G = W' C W,  with the columns of W scaled to variance 1: diag(W' T W) = 1,
    loss = sum_i (1 - G_ii)^2 + weight * sum_(i != j) G_ij^2,  weight <= 1.

1. Coordinates. T^(-1/2) C T^(-1/2) = U diag(r) U' has the correlations r_1 >= r_2 >= ... of the canonical directions
   T^(-1/2) U (canonical correlation analysis; Balestriero and LeCun 2022, arXiv:2205.11508, derive the same directions for
   the family of these losses). With W = T^(-1/2) U A the loss sees A' diag(r) A, and the columns of A have length 1.
2. A bound. Let A = Q diag(sqrt p) V' be a singular value decomposition; sum_k p_k = D, because D columns have length 1.
   Write m_k = (Q' diag(r) Q)_kk and q_k = p_k m_k. Then trace G = sum q, |G|^2 >= sum q_k^2, and since weight <= 1 the
   diagonal of a given trace costs least when it is constant (convexity):
       loss >= J(q) = D - 2 sum q + (1 - weight) (sum q)^2 / D + weight * sum q^2,   with sum_k q_k / m_k = D.
   J falls until all q_k = 1, which would need sum 1 / m_k <= D. By Cauchy's interlacing the m_k are at most the D
   largest r_k (weakly majorised by them, and 1 / m is convex), so the best Q consists of those D directions.
3. The minimum of the convex J under sum q_k / r_k = D fills the directions like water: for one mu >= 0,
       q_k = max(0, (1 - (1 - weight) mean(q) - mu / r_k) / weight),   p_k = q_k / r_k.
   Directions whose correlation is too small get nothing: fewer than D can be the optimum.
4. The bound is reached by an orthogonal V whose entries are all +-1 / sqrt(D), a Hadamard matrix: then every column of A
   has length sqrt(mean p) = 1 and every G_ii is mean(q). It exists for every D that is a power of two.

So W = T^(-1/2) U_D diag(sqrt p) H / sqrt(D), with loss J(q): no gradient descent on a linear projector can go lower.
The subspace is that of canonical correlation analysis; the scales and the rotation are those of the loss. Cosines
between projections do not depend on H; with it, all columns have the same variance.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diptych.base.errors import DataError, RecipeError

RIDGE = 1e-2  # of the mean variance, added to T: directions that few images define are not blown up


class LinearOptimum(NamedTuple):
    """The map: projections are `(vectors - mean_F) @ weight_FD`. The loss that it reaches, and what it consists of."""

    mean_F: Tensor
    weight_FD: Tensor
    loss: float
    correlations_D: Tensor  # r, of the D directions with the largest, in descending order
    shares_D: Tensor  # p: the variance of the D projections that lies in each direction, times D; 0 for unused ones


def barlow_twins_optimum(
    first_NF: Tensor, second_NF: Tensor, width: int, off_diagonal_weight: float, *, ridge: float = RIDGE
) -> LinearOptimum:
    """The linear map with the lowest Barlow Twins loss on the vectors of two views of N images.

    width: D, a power of two, at most F. off_diagonal_weight: of the loss, above 0 and at most 1. ridge: added to the diagonal
    of the vectors' covariance, in units of its mean; with 0 the result is the optimum of these very vectors, which needs
    more images than F. Computed in float64. Raises RecipeError for such arguments, DataError for vectors of other shapes
    or fewer than two images.
    """
    if first_NF.shape != second_NF.shape or first_NF.ndim != 2 or len(first_NF) < 2:
        shapes = f"{tuple(first_NF.shape)} and {tuple(second_NF.shape)}"
        raise DataError(f"two views have vectors (N, F) of one shape, N at least 2; these have {shapes}")
    if width < 1 or width & (width - 1) or width > first_NF.shape[1]:
        raise RecipeError(f"width {width} must be a power of two and at most the vectors' {first_NF.shape[1]}")
    if not 0 < off_diagonal_weight <= 1:
        raise RecipeError(f"off_diagonal_weight {off_diagonal_weight} must be above 0 and at most 1")
    n = len(first_NF)
    mean_F = (first_NF.double().mean(0) + second_NF.double().mean(0)) / 2
    a_NF, b_NF = first_NF.double() - mean_F, second_NF.double() - mean_F
    within_FF = (a_NF.T @ a_NF + b_NF.T @ b_NF) / (2 * n)
    between_FF = a_NF.T @ b_NF / n
    root_FF = inverse_root(within_FF, ridge)
    whitened_FF = root_FF.T @ (between_FF + between_FF.T) @ root_FF / 2
    r_F, u_FF = torch.linalg.eigh(whitened_FF)
    r_D, u_FD = r_F.flip(0)[:width].clamp(1e-12, 1.0), u_FF.flip(1)[:, :width]
    p_D = water_filling(r_D, off_diagonal_weight)
    weight_FD = root_FF @ (u_FD * p_D.sqrt()) @ hadamard(width).to(root_FF.device)
    return LinearOptimum(mean_F, weight_FD, bound(p_D * r_D, off_diagonal_weight), r_D, p_D)


def inverse_root(covariance_FF: Tensor, ridge: float) -> Tensor:
    """R (F, F) with R' (T + ridge * mean variance) R = 1; directions without variance get zero columns."""
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    floor = ridge * values_F.clamp_min(0).mean()
    values_F = values_F.clamp_min(0) + floor
    smallest = 1e-12 * values_F.max()
    return torch.where(values_F > smallest, vectors_FF / values_F.clamp_min(1e-300).sqrt(), 0.0)


def water_filling(r_D: Tensor, weight: float) -> Tensor:
    """p (D,) of step 3, for correlations in (0, 1]: the variance of the projections in each direction. It sums to D."""
    width = len(r_D)

    def filled(mu: Tensor) -> Tensor:
        """q for a given mu. Its mean is the fixed point of a falling function: bisection finds it."""
        low, high = r_D.new_zeros(()), r_D.new_ones(())
        for _ in range(80):
            mean = (low + high) / 2
            q_D = ((1 - (1 - weight) * mean - mu / r_D) / weight).clamp_min(0)
            low, high = (mean, high) if q_D.mean() > mean else (low, mean)
        return q_D

    low, high = r_D.new_zeros(()), r_D.max()
    for _ in range(80):  # sum q / r falls with mu, from sum 1 / r >= D to 0
        mu = (low + high) / 2
        low, high = (mu, high) if (filled(mu) / r_D).sum() > width else (low, mu)
    p_D = filled((low + high) / 2) / r_D
    return p_D * (width / p_D.sum())


def bound(q_D: Tensor, weight: float) -> float:
    """J of step 2."""
    width = len(q_D)
    return float(width - 2 * q_D.sum() + (1 - weight) / width * q_D.sum() ** 2 + weight * q_D.square().sum())


def hadamard(width: int) -> Tensor:
    """An orthogonal, symmetric (width, width) matrix whose entries are all +-1 / sqrt(width) (Sylvester's construction)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / width**0.5
