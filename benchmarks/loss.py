"""What does a loss cost, forward and backward, in time and memory?

    python -m benchmarks.loss [--threads 1] [--device cuda]

Barlow Twins of (N, D) projections: ours, which needs no (D, D) matrix where N < D / 2; ours made to build it; lightly's; and
the paper's algorithm 1 written plainly. SimSiam's negative cosine beside lightly's. Values and gradients are compared first.
"""

from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.measure import Row, in_turns, missing, parser, peak_bytes, report
from diptych.base.random_at import random_at
from diptych.methods import losses

OURS, MATRIX = "Diptych", "Diptych, made to build the (D, D) matrix"
LIGHTLY, PLAIN = "lightly", "the paper's algorithm 1, plainly"
SHAPES = [(256, 2048), (512, 5000), (512, 8192)]  # solo-learn's CIFAR-10, Keras' example, the paper's width
SHAPES_CUDA = [*SHAPES, (512, 16384), (2048, 8192)]
COSINE_SHAPES = [(512, 2048)]
QUICK = [(8, 32)]
WEIGHT = 0.0051  # of the off-diagonal terms
EPS = 1e-5  # added to the variances
CLOSE = 1e-3  # relative: sums of D^2 float32 in different orders

Loss = Callable[[Tensor, Tensor], Tensor]


def plain(z1_ND: Tensor, z2_ND: Tensor) -> Tensor:
    """Standardize, correlate, weigh the distance from the identity: Zbontar et al. 2021, algorithm 1."""
    n, width = z1_ND.shape
    z1_ND, z2_ND = ((z - z.mean(0)) / (z.var(0, correction=0) + EPS).sqrt() for z in (z1_ND, z2_ND))
    distance_DD = (z1_ND.T @ z2_ND / n - torch.eye(width, device=z1_ND.device)).square()
    weight_DD = torch.full_like(distance_DD, WEIGHT).fill_diagonal_(1)
    return (distance_DD * weight_DD).sum()


def ours(z1_ND: Tensor, z2_ND: Tensor) -> Tensor:
    return losses.barlow_twins(z1_ND, z2_ND, WEIGHT, EPS)[0]


def ours_with_matrix(z1_ND: Tensor, z2_ND: Tensor) -> Tensor:
    with patch.object(losses, "_gram_is_cheaper", lambda rows, width: False):
        return ours(z1_ND, z2_ND)


def rivals(kind: str) -> tuple[dict[str, Loss], list[str]]:
    """Who can be measured here, and lines about who cannot."""
    found: dict[str, Loss] = {OURS: ours, MATRIX: ours_with_matrix, PLAIN: plain}
    if kind == "cosine":
        found = {OURS: losses.negative_cosine}
    if lost := missing("lightly"):
        return found, [f"{LIGHTLY}: {lost}"]
    from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity

    return found | {LIGHTLY: NegativeCosineSimilarity() if kind == "cosine" else BarlowTwinsLoss(WEIGHT)}, []


def projections(n: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Of two views that agree in part, as in the middle of training; leaves that want a gradient."""
    z1_ND, noise_ND = torch.randn(2, n, width, generator=random_at("benchmark", "loss", n, width))
    pair = z1_ND, z1_ND + noise_ND
    first, second = (z.to(device).requires_grad_() for z in pair)
    return first, second


def step(loss: Loss, pair: tuple[Tensor, Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        value = loss(*pair)
        return value.detach(), *torch.autograd.grad(value, pair)

    return run


def same_answer(found: dict[str, Loss], pair: tuple[Tensor, Tensor]) -> None:
    """Raises unless all return one value and one gradient, but for rounding."""
    wanted = step(found[OURS], pair)()
    for name, loss in found.items():
        for what, ours_, theirs in zip(("value", "gradient", "gradient"), wanted, step(loss, pair)(), strict=True):
            error = float((theirs - ours_).norm() / ours_.norm())
            if not error < CLOSE:
                raise AssertionError(f"{name}: the {what} is {error:.1e} away from ours")


def measure(kind: str, n: int, width: int, arguments) -> None:
    pair = projections(n, width, arguments.device)
    found, notes = rivals(kind)
    same_answer(found, pair)
    runs = {name: step(loss, pair) for name, loss in found.items()}
    peaks = {name: peak_bytes(run, arguments.device) for name, run in runs.items()}
    seconds = in_turns(runs, arguments.repeats, device=arguments.device)
    rows = [
        Row(name, seconds[name], note=f"peak {peak / 2**20:,.0f} MiB" if peak else "", extra={"peak_bytes": peak})
        for name, peak in peaks.items()
    ]
    called = {"barlow": "Barlow Twins' loss", "cosine": "SimSiam's negative cosine"}[kind]
    what = f"{called} forward and backward, {n} projections {width} wide"
    report("loss", what, rows, OURS, arguments, notes)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parser("loss").parse_args(words)
    torch.set_num_threads(arguments.threads)
    wide = QUICK if arguments.quick else SHAPES_CUDA if arguments.device == "cuda" else SHAPES
    for n, width in wide:
        measure("barlow", n, width, arguments)
    for n, width in QUICK if arguments.quick else COSINE_SHAPES:
        measure("cosine", n, width, arguments)


if __name__ == "__main__":
    main()
