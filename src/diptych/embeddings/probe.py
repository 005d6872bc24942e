"""The linear probe's softmax regression. N: embeddings, E: their width, K: classes; z: embedding, x: z
standardized, w: weights, b: bias, y: class.

The objective is that of scikit-learn's `LogisticRegression` with C = 1 / (N penalty): mean cross-entropy +
penalty / 2 |w|^2, without a penalty on the bias. Full-batch L-BFGS with a strong Wolfe line search; the only random
choice is the split that selects the penalty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
HELD_OUT = 0.2  # share of each class of the training set on which the penalty is chosen
DOUBLE = 2**22  # images x width up to which float64 costs little (10,000 x 256 are 2.6 million)
LOGITS_PER_BLOCK = 2**24  # logits in memory at a time
LEAST_TOLERANCE = 1e-8
NEAR = 1e-3  # it has converged when the objective is at most this share above its minimum
BIAS_STEPS = 5  # of Newton's method for the bias, at most


class Effort(NamedTuple):
    """When L-BFGS stops: where no entry of the preconditioned gradient is above `tolerance`, if the objective is then at most
    the share `near` above its minimum (else it goes on to a smaller tolerance), or after `iterations`."""

    tolerance: float
    near: float
    iterations: int


EXACT = Effort(1e-5, NEAR, 1000)
# To choose the penalty: an objective 1 % above its minimum changes the held-out accuracy by 0.3 points or less, which is a
# quarter of its standard error with 1,000 held-out images. With float32 this takes half of the time, or less.
ROUGH = Effort(1e-4, 1e-2, 300)


class Solution(NamedTuple):
    """The minimum of the objective; the logits are `x @ weight_EK + bias_K`."""

    weight_EK: Tensor
    bias_K: Tensor
    gradient_norm: float  # its largest absolute entry, over w and b
    iterations: int
    excess: float  # how far the objective is above its minimum at most, as a share of the minimum

    @property
    def converged(self) -> bool:
        return self.excess <= NEAR

    def to(self, dtype: torch.dtype) -> "Solution":
        return self._replace(weight_EK=self.weight_EK.to(dtype), bias_K=self.bias_K.to(dtype))


@dataclass(frozen=True)
class Probe:
    """A linear classifier of embeddings, and how its penalty was chosen."""

    mean_E: Tensor
    scale_E: Tensor
    solution: Solution
    penalty: float
    tried: list[dict[str, float]]  # {"penalty", "accuracy" on the held-out part}, in the order of trying

    def scores(self, z_NE: Tensor) -> Tensor:
        """Logits (N, K) of embeddings (N, E)."""
        blocks = (standardized(z, self.mean_E, self.scale_E) for z in z_NE.split(4096))
        return torch.cat([x @ self.solution.weight_EK + self.solution.bias_K for x in blocks])


def fit_probe(z_NE: Tensor, y_N: Tensor, classes: int, penalties: Sequence[float] = PENALTIES, seed: int = 0) -> Probe:
    """Fit on (N, E) embeddings of classes 0 to classes - 1; the penalty is chosen on a held-out part of them.

    Penalties are tried from the strongest to the weakest, and each fit starts from the previous one; these fits are ROUGH.
    The search stops after two weaker penalties in a row without improvement. Among equally good ones the strongest is
    chosen. Then the probe is fitted on all embeddings. With one image per class nothing can be held out: the middle penalty
    is used and `tried` is empty. Raises RecipeError for a penalty <= 0.
    """
    path = sorted(penalties, reverse=True)
    if not path or not all(0 < penalty < math.inf for penalty in path):
        raise RecipeError(f"penalties are numbers above 0, such as {PENALTIES}; got {tuple(penalties)}")
    mean_E, scale_E = location_and_scale(z_NE)
    x_NE = standardized(z_NE, mean_E, scale_E)
    fitted, held = split(y_N, seed)
    x_fitted, y_fitted, x_held = x_NE[fitted].float(), y_N[fitted], x_NE[held].float()
    wide = len(x_fitted) < x_fitted.shape[1]
    gram_EE = None if wide else x_fitted.T @ x_fitted / len(x_fitted)
    solutions, tried, best = [], [], len(path) // 2
    for penalty in path if len(held) else ():
        start = solutions[-1] if solutions else None
        solution = softmax_regression(x_fitted, y_fitted, classes, penalty, start, gram_EE, ROUGH)
        right = (x_held @ solution.weight_EK + solution.bias_K).argmax(1) == y_N[held]
        solutions.append(solution)
        tried.append({"penalty": penalty, "accuracy": right.double().mean().item()})
        best = max(range(len(tried)), key=lambda i: tried[i]["accuracy"])
        if len(tried) - 1 - best == 2:
            break
    last = softmax_regression(x_NE, y_N, classes, path[best], solutions[best].to(x_NE.dtype) if solutions else None)
    return Probe(mean_E, scale_E, last, path[best], tried)


def softmax_regression(
    x_NE: Tensor,
    y_N: Tensor,
    classes: int,
    penalty: float,
    start: Solution | None = None,
    gram_EE: Tensor | None = None,
    effort: Effort = EXACT,
) -> Solution:
    """The minimum of mean cross-entropy(x w + b, y) + penalty / 2 |w|^2, in the precision and on the device of x_NE.

    Embeddings are strongly correlated, so that plain L-BFGS takes hundreds of iterations. Here it runs on v = L' w with
    L L' = x'x / (N K) + penalty. The Hessian at w = 0 is (1 - 11'/K) / K (x) x'x / N + penalty, so in v it is close to
    the identity (and bounded everywhere, with 1/2 for 1/K: Boehning 1992). The minimum is the same. x_NE should be
    centred. start: a solution nearby. gram_EE: x'x / N, if already computed.

    With fewer embeddings than columns, w lies in the span of the embeddings: it is found in N coordinates of an
    orthonormal basis of them, which costs N^3 instead of E^3 (150 labelled images of 3,072 pixel values: 1/100).
    """
    if len(x_NE) < x_NE.shape[1]:
        basis_EN, triangle_NN = torch.linalg.qr(x_NE.T)
        inner = None if start is None else start._replace(weight_EK=basis_EN.T @ start.weight_EK)
        solution = softmax_regression(triangle_NN.T.contiguous(), y_N, classes, penalty, inner, None, effort)
        return solution._replace(weight_EK=basis_EN @ solution.weight_EK)
    curvature_EE = (x_NE.T @ x_NE / len(x_NE) if gram_EE is None else gram_EE) / classes
    # The small share of the trace keeps float32 rounding of duplicate or constant columns positive definite.
    curvature_EE.diagonal().add_(penalty + 1e-6 * curvature_EE.trace())
    root_EE = torch.linalg.cholesky(curvature_EE)
    v_EK, c_K = x_NE.new_zeros(x_NE.shape[1], classes), x_NE.new_zeros(classes)
    if start is not None:
        v_EK, c_K = root_EE.T @ start.weight_EK, start.bias_K / classes**0.5
    lbfgs = torch.optim.LBFGS(
        [v_EK, c_K],
        max_iter=effort.iterations,
        tolerance_grad=effort.tolerance,
        tolerance_change=1e-11,
        line_search_fn="strong_wolfe",
    )

    def weights() -> tuple[Tensor, Tensor]:
        return torch.linalg.solve_triangular(root_EE.T, v_EK, upper=True), c_K * classes**0.5

    def objective() -> Tensor:
        loss, slope_EK, slope_K = value_and_gradient(x_NE, y_N, *weights(), penalty)
        v_EK.grad = torch.linalg.solve_triangular(root_EE, slope_EK, upper=False).contiguous()
        c_K.grad = slope_K * classes**0.5
        return loss

    state = lbfgs.state[v_EK]
    while True:
        lbfgs.step(objective)  # waits for the device several times an iteration
        solution = assessed(x_NE, y_N, *weights(), penalty, state["n_iter"])
        options = lbfgs.param_groups[0]
        spent = state["n_iter"] >= effort.iterations or options["tolerance_grad"] < LEAST_TOLERANCE
        if solution.excess <= effort.near or spent:
            return solution
        options["tolerance_grad"] /= 4
        options["max_iter"] = effort.iterations - state["n_iter"]


def assessed(x_NE: Tensor, y_N: Tensor, w_EK: Tensor, b_K: Tensor, penalty: float, iterations: int) -> Solution:
    """w with its best bias, and how far that is above the minimum.

    With the best bias, the objective is strongly convex in w: it exceeds its minimum by at most |gradient|^2 / (2 penalty).
    """
    b_K = best_bias(x_NE, y_N, w_EK, b_K)
    value, slope_EK, slope_K = value_and_gradient(x_NE, y_N, w_EK, b_K, penalty)
    gap = float(slope_EK.square().sum(dtype=torch.float64)) / (2 * penalty)
    least = float(value) - gap
    largest = max(slope_EK.abs().max().item(), slope_K.abs().max().item())
    return Solution(w_EK, b_K, largest, iterations, gap / least if least > 0 else math.inf)


def best_bias(x_NE: Tensor, y_N: Tensor, w_EK: Tensor, b_K: Tensor) -> Tensor:
    """The bias with the lowest objective for given weights, by Newton's method from a bias that is near it."""
    classes, n = len(b_K), len(x_NE)
    share_K = torch.bincount(y_N, minlength=classes).double() / n
    for _ in range(BIAS_STEPS):
        sum_K, products_KK = share_K.new_zeros(classes), share_K.new_zeros(classes, classes)
        for x in x_NE.split(max(1, LOGITS_PER_BLOCK // classes)):
            p = torch.addmm(b_K, x, w_EK).softmax(1)
            sum_K += p.sum(0, dtype=torch.float64)
            products_KK += p.T @ p
        curvature_KK = (sum_K.diag() - products_KK) / n
        # Equal changes of all biases change nothing: their curvature, 0, is replaced by 1.
        step_K = torch.linalg.solve(curvature_KK + 1 / classes, sum_K / n - share_K)
        b_K = b_K - (step_K / step_K.abs().max().clamp_min(1)).to(b_K.dtype)
        if step_K.abs().max() < 1e-4:  # the next step would be about its square
            break
    return b_K


def value_and_gradient(
    x_NE: Tensor, y_N: Tensor, w_EK: Tensor, b_K: Tensor, penalty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective and its gradients in w and b, in blocks of rows of at most `LOGITS_PER_BLOCK` logits."""
    n, classes = len(x_NE), len(b_K)
    # The line search compares losses whose difference is below the precision of float32.
    loss = penalty / 2 * w_EK.square().sum(dtype=torch.float64)
    slope_EK, slope_K = penalty * w_EK, torch.zeros_like(b_K)
    rows = max(1, LOGITS_PER_BLOCK // classes)
    for x, y in zip(x_NE.split(rows), y_N.split(rows), strict=True):
        log_p = torch.addmm(b_K, x, w_EK).log_softmax(1)
        loss = loss - log_p.gather(1, y[:, None]).sum(dtype=torch.float64) / n
        error = log_p.exp_()
        error.scatter_add_(1, y[:, None], error.new_full((len(y), 1), -1.0))
        slope_EK.addmm_(x.T, error, alpha=1 / n)
        slope_K += error.sum(0) / n
    return loss, slope_EK, slope_K


def split(y_N: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows held out: `HELD_OUT` of each class, at least one, but not the only row of a class."""
    order = torch.randperm(len(y_N), generator=random_at(seed, "probe", "split"))
    order = order[y_N.cpu()[order].argsort(stable=True)]  # class by class, shuffled within
    fitted, held = [], []
    for members in order.split(torch.bincount(y_N.cpu()).tolist()):
        count = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        held.append(members[:count])
        fitted.append(members[count:])
    return torch.cat(fitted).to(y_N.device), torch.cat(held).to(y_N.device)


def location_and_scale(z_NE: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, in float64 for a small set; a constant column has scale 1.

    A column that varies only by rounding counts as constant: division would turn rounding into a signal.
    """
    z_NE = z_NE.to(torch.float64 if z_NE.numel() <= DOUBLE else torch.float32)
    std_E, mean_E = torch.std_mean(z_NE, dim=0, correction=0)
    return mean_E, torch.where(std_E <= 1e-6 * mean_E.abs(), 1.0, std_E)


def standardized(z_NE: Tensor, mean_E: Tensor, scale_E: Tensor) -> Tensor:
    return (z_NE.to(mean_E.dtype) - mean_E) / scale_E
