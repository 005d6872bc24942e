"""Detects a collapsed encoder. N: images, E: width of an embedding, D: of a projection; z: either of them.

A collapsed encoder gives (almost) the same embedding for every image, or uses only a few of its dimensions, while
its loss is low. `spread` falls in the first case, `effective_rank` in the second.

Measured on 400 to 2,000 images of CIFAR-10, JPEG-75 copy (a residual network of width 16, E 128, D 512,
batch 256, SGD; "no stop": SimSiam without its stop-gradient, which makes it collapse). The bounds below separate
the collapsed rows from the others.

                                              embeddings                  projections
                                              spread         rank         spread         rank
    untrained, eight architectures            0.14 to 0.92   12 to 97
    Barlow Twins, steps 20 to 400             0.63 to 0.67   19 to 36     0.75 to 0.90   22 to 53
    SimSiam, steps 20 to 400, two rates       0.49 to 0.61   11 to 49     0.60 to 0.96   12 to 208
    no stop, step 150, two rates              0.42 to 0.45   4.1 to 5.2   0.19 to 0.28   1.8 to 2.5
    no stop, step 200                         0.34           3.5          0.12           1.4
    no stop, no batch norm in heads, 100      0.33           66           0.03           5.7
    one vector and 0.1 % of noise             0.001          1.3
    all variance in 3 of 512 dimensions       0.10 to 0.92   3 to 9

The projections are read because batch normalisation keeps the embeddings spread out even when all projections
have become one point.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError
from diptych.embeddings.nearest import Array

# (collapsed below, suspicious below), from the table above.
EMBEDDING_SPREAD = 0.05, 0.1  # a point has at most 0.04, an untrained encoder at least 0.14
PROJECTION_SPREAD = 0.3, 0.45  # without stop-gradient at most 0.32, with it at least 0.60
RANK = 4.0, 8.0  # a collapse ends at 3.5 or less, training with a stop-gradient had at least 11
RANK_LEFT = 0.5  # share of the untrained encoder's rank: 0.27 remained without stop-gradient, at least 0.85 with it
MOST_IMAGES = 1000  # used for rank and spread: enough to distinguish 4 from 40, in under a second

ADVICE = (
    "change the strength of the colour distortions and their probabilities",
    "change the learning rate and its schedule (a lower peak, a longer warm-up)",
    "change the architecture of the encoder and of its projection head (width, batch normalisation in it)",
)  # S. Paul's three remedies (2021)


@dataclass(frozen=True)
class Diagnosis:
    """verdict: "OK", "WARNING" or "COLLAPSED"; the readings; the reasons if it is not OK; and what to try then.

    lamps: of `embeddings.lamps.judge`, {"collapse", "learning", "worth": {"word", "text"}}; verdict is then their worst.
    """

    verdict: str
    readings: dict[str, float]
    reasons: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    lamps: dict[str, dict[str, str]] = field(default_factory=dict)


def spread(z_NE: Array) -> float:
    """Mean standard deviation of the dimensions of z / |z|, times sqrt(E): 1 is isotropic, 0 one direction.

    The measure of SimSiam (Chen and He 2021, fig. 2), scaled to be independent of the width. The scale of each
    row does not matter. It is at most sqrt(1 - |mean of z / |z||^2); rotating the axes can lower it.
    """
    return float(F.normalize(_finite_rows(z_NE).double(), dim=1).std(0, correction=0).mean() * z_NE.shape[1] ** 0.5)


def effective_rank(z_NE: Array, epsilon: float = 1e-7) -> float:
    """The number of dimensions that the rows use, 1 to min(N, E): RankMe (Garrido et al. 2023, arXiv 2210.02885).

    exp of the entropy of the singular values over their sum plus epsilon. As published, nothing is centred: a
    dominant mean counts as one dimension. Scaling or rotating z changes nothing.
    """
    z_NE = _finite_rows(z_NE).double()
    gram = z_NE @ z_NE.T if len(z_NE) < z_NE.shape[1] else z_NE.T @ z_NE
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()  # the singular values, to 1e-8 of the largest
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + epsilon
    return float(torch.exp(-(p * p.log()).sum()))


def correlation_readings(z1_ND: Array, z2_ND: Array) -> dict[str, float]:
    """How the dimensions of two views' projections, (N, D) each, correlate. Barlow Twins aims at 1 and 0.

    Returns {"on_diagonal_mean": mean of the D correlations of a dimension with itself, "off_diagonal_mean": mean
    absolute value of the others}. Chance alone leaves about 0.8 / sqrt(N) in the second.
    """
    if z1_ND.shape != z2_ND.shape:
        raise DataError(f"two views' projections must have one shape; these have {z1_ND.shape} and {z2_ND.shape}")
    z1_ND, z2_ND = _standardized(_finite_rows(z1_ND).double()), _standardized(_finite_rows(z2_ND).double())
    n, width = z1_ND.shape
    diagonal_D = (z1_ND * z2_ND).mean(0)
    blocks = z1_ND.split(1024, dim=1)  # never holds (D, D) at once
    everything = torch.stack([(block.T @ z2_ND / n).abs().sum() for block in blocks]).sum()
    off_diagonal = (everything - diagonal_D.abs().sum()) / max(1, width * (width - 1))
    return {"on_diagonal_mean": float(diagonal_D.mean()), "off_diagonal_mean": float(off_diagonal)}


def diagnose(
    embeddings: Array, projections: tuple[Array, Array] | None = None, untrained: Array | None = None
) -> Diagnosis:
    """Diagnose from the embeddings of some images whether an encoder has collapsed. Give 50 images, preferably 1,000.

    embeddings: (N, E). projections: (N, D) for each of two views; they show a collapse that the embeddings hide.
    untrained: (N, E), embeddings of the same images before training. Raises DataError for fewer than two images
    or values that are not finite.
    """
    z_NE = _thinned(embeddings)
    breadth, rank = spread(z_NE), effective_rank(z_NE)
    readings = {"images": len(z_NE), "spread": breadth, "rank": rank}  # the rank grows with the number of images
    findings = _findings("embeddings", breadth, rank, EMBEDDING_SPREAD, min(z_NE.shape))
    if untrained is not None:
        before = _thinned(untrained)
        readings |= {"untrained_spread": spread(before), "untrained_rank": effective_rank(before)}
        if rank < RANK_LEFT * readings["untrained_rank"]:
            change = f"{readings['untrained_rank']:.1f} before training, {rank:.1f} after"
            findings.append(("WARNING", f"training reduced the number of dimensions in use: effective rank {change}"))
    if projections is not None:
        z1_ND, z2_ND = map(_thinned, projections)
        breadth, rank = spread(z1_ND), effective_rank(z1_ND)
        readings |= {"projection_spread": breadth, "projection_rank": rank}
        readings |= correlation_readings(z1_ND, z2_ND)
        findings += _findings("projections", breadth, rank, PROJECTION_SPREAD, min(z1_ND.shape))
    verdicts = {verdict for verdict, _ in findings}
    verdict = "COLLAPSED" if "COLLAPSED" in verdicts else "WARNING" if verdicts else "OK"
    return Diagnosis(verdict, readings, [reason for _, reason in findings], list(ADVICE) if findings else [])


def _findings(what: str, breadth: float, rank: float, bounds: tuple[float, float], most: int) -> list[tuple[str, str]]:
    """(verdict, reason) for a low spread and for a low rank. `most`: the highest rank these images and dimensions allow."""
    findings = []
    if breadth < bounds[1]:
        verdict = "COLLAPSED" if breadth < bounds[0] else "WARNING"
        findings.append((verdict, f"the {what} are nearly the same for every image: spread {breadth:.3f}"))
    if rank < min(RANK[1], most / 2):
        verdict = "COLLAPSED" if rank < min(RANK[0], most / 4) else "WARNING"
        findings.append((verdict, f"the {what} use few dimensions: effective rank {rank:.1f} of {most}"))
    return findings


def _thinned(z_NE: Array) -> Tensor:
    """At most `MOST_IMAGES` rows, evenly spaced, because images are often sorted by class."""
    z_NE = _finite_rows(z_NE)
    if len(z_NE) < 2:
        raise DataError("a diagnosis compares images with each other; it needs at least two, preferably 1,000")
    return z_NE[:: math.ceil(len(z_NE) / MOST_IMAGES)]


def _finite_rows(z_NE: Array) -> Tensor:
    z_NE = torch.as_tensor(z_NE).detach()
    if z_NE.ndim != 2 or 0 in z_NE.shape:
        raise DataError(f"a diagnosis needs embeddings (images, width), neither 0; got {tuple(z_NE.shape)}")
    if bad := int((~z_NE.isfinite().all(1)).sum()):
        raise DataError(f"{bad} of {len(z_NE)} embeddings hold NaN or infinity; the encoder has diverged")
    return z_NE


def _standardized(z_ND: Tensor) -> Tensor:
    """Standardise over these rows alone. The losses' `standardize` communicates with other processes, and a reading may
    belong to one rank."""
    return (z_ND - z_ND.mean(0)) * (z_ND.var(0, correction=0) + 1e-5).rsqrt()
