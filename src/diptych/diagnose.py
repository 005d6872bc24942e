"""Is the encoder collapsing? N: images, E: width of an embedding, D: of a projection; z: either of them.

TABLE
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import DataError

Array = Tensor | np.ndarray

SPREAD_COLLAPSED, SPREAD_LOW = 0.05, 0.1  # between a point (0.04 and less) and the untrained (0.14 and more)
RANK_COLLAPSED, RANK_LOW = 4.0, 8.0  # between collapse (3.5 and less) and SimSiam that learns (11 and more)
RANK_LOST = 0.5  # of the untrained encoder's rank: without stop-gradient 0.27 was left, with it 0.85 or more
LOSS_AT_MINIMUM = -0.97  # negative cosine: without stop-gradient -0.97 at step 100, with it never below -0.8
MOST_IMAGES = 1000  # rank and spread are read from this many: enough to tell 4 from 40, and it costs a second

ADVICE = (
    "change the strength of the colour distortions and their probabilities",
    "change the learning rate and its schedule (a lower peak, a longer warm-up)",
    "change the architecture of the encoder and of its projection head (width, batch normalisation in it)",
)  # the three remedies of the Keras SimSiam example


@dataclass(frozen=True)
class Diagnosis:
    """verdict: "OK", "WARNING" or "COLLAPSED"; what was read; why the verdict is not OK; what to try."""

    verdict: str
    readings: dict[str, float]
    reasons: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


def spread(z_NE: Array) -> float:
    """Mean standard deviation of the dimensions of z / |z|, times sqrt(E): 1 is isotropic, 0 one direction
    for all.

    The reading of SimSiam (Chen and He 2021, fig. 2), scaled so that the width drops out. The scale of each
    row does not matter; turning the axes can only lower it below sqrt(1 - |mean of z / |z||^2).
    """
    return float(F.normalize(_checked(z_NE), dim=1).std(0, correction=0).mean() * z_NE.shape[1] ** 0.5)


def effective_rank(z_NE: Array, epsilon: float = 1e-7) -> float:
    """RankMe (Garrido et al. 2023, arXiv 2210.02885, eq. 2): how many dimensions the rows use, 1 to min(N,
    E).

    exp of the entropy of the singular values over their sum plus epsilon. As published, nothing is centred: a
    mean that dominates counts as the one dimension that it is. Scaling or turning z changes nothing.
    """
    z_NE = _checked(z_NE)
    gram = z_NE @ z_NE.T if len(z_NE) < z_NE.shape[1] else z_NE.T @ z_NE
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()  # the singular values, to 1e-8 of the largest
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + epsilon
    return float(torch.exp(-(p * p.log()).sum()))


def correlation_readings(z1_ND: Array, z2_ND: Array) -> dict[str, float]:
    """Mean of the diagonal and mean absolute value off the diagonal of two views' correlations, (N, D) each.

    Barlow Twins wants 1 and 0. N images that have nothing in common still show about 0.8 / sqrt(N) off the
    diagonal.
    """
    if z1_ND.shape != z2_ND.shape:
        raise DataError(f"two views' projections have one shape; these have {z1_ND.shape} and {z2_ND.shape}")
    z1_ND, z2_ND = _standardized(_checked(z1_ND)), _standardized(_checked(z2_ND))
    n, width = z1_ND.shape
    diagonal_D = (z1_ND * z2_ND).mean(0)
    everything = sum(
        (rows.T @ z2_ND / n).abs().sum() for rows in z1_ND.split(1024, dim=1)
    )  # never (D, D) at once
    off_diagonal = (everything - diagonal_D.abs().sum()) / max(1, width * (width - 1))
    return {"on_diagonal_mean": float(diagonal_D.mean()), "off_diagonal_mean": float(off_diagonal)}


def diagnose(
    embeddings: Array,
    projections: tuple[Array, Array] | None = None,
    loss: float | None = None,
    untrained: Array | None = None,
) -> Diagnosis:
    """Whether an encoder collapsed, from what it says about some images: 50 or more, better 1,000.

    embeddings: (N, E). projections: the two views' (N, D); they show a collapse that the embeddings hide.
    loss: the last one; a negative cosine close to -1 is a sign. untrained: (N, E) of the same images before
    training. Raises DataError for fewer than two images or values that are not finite.
    """
    z_NE = _some(embeddings)
    readings: dict[str, float] = {"spread": spread(z_NE), "rank": effective_rank(z_NE)}
    found = _judge("embeddings", readings["spread"], readings["rank"], min(z_NE.shape))
    if untrained is not None:
        before = _some(untrained)
        readings |= {"untrained_spread": spread(before), "untrained_rank": effective_rank(before)}
        if readings["rank"] < RANK_LOST * readings["untrained_rank"]:
            lost = f"{readings['rank']:.1f}, then {readings['untrained_rank']:.1f}"
            found.append(
                ("WARNING", f"the embeddings use fewer dimensions than before training: rank {lost}")
            )
    if projections is not None:
        z1_ND, z2_ND = map(_some, projections)
        readings |= {"projection_spread": spread(z1_ND), "projection_rank": effective_rank(z1_ND)}
        readings |= correlation_readings(z1_ND, z2_ND)
        found += _judge(
            "projections", readings["projection_spread"], readings["projection_rank"], min(z1_ND.shape)
        )
    if loss is not None:
        readings["loss"] = loss
        if not math.isfinite(loss):
            found.append(("WARNING", f"the loss is {loss}: training diverged"))
        elif loss < LOSS_AT_MINIMUM:
            found.append(
                ("WARNING", f"the loss {loss:.3f} is next to -1, as when every image has the same answer")
            )
    verdicts = {verdict for verdict, _ in found}
    verdict = "COLLAPSED" if "COLLAPSED" in verdicts else "WARNING" if verdicts else "OK"
    return Diagnosis(verdict, readings, [reason for _, reason in found], list(ADVICE) if found else [])


def _judge(what: str, spread_read: float, rank_read: float, most: int) -> list[tuple[str, str]]:
    """(verdict, reason) for spread and rank; where few images or dimensions allow only `most`, the bounds
    shrink."""
    found = []
    if spread_read < SPREAD_LOW:
        verdict = "COLLAPSED" if spread_read < SPREAD_COLLAPSED else "WARNING"
        found.append((verdict, f"the {what} are nearly the same for every image: spread {spread_read:.3f}"))
    if rank_read < min(RANK_LOW, most / 2):
        verdict = "COLLAPSED" if rank_read < min(RANK_COLLAPSED, most / 4) else "WARNING"
        found.append((verdict, f"the {what} use few dimensions: effective rank {rank_read:.1f} of {most}"))
    return found


def _some(z_NE: Array) -> Tensor:
    """At most `MOST_IMAGES` rows, evenly spaced: images often come class by class."""
    z_NE = _checked(z_NE)
    if len(z_NE) < 2:
        raise DataError("a diagnosis compares images with each other; it needs two or more, better 1,000")
    return z_NE[:: math.ceil(len(z_NE) / MOST_IMAGES)]


def _checked(z_NE: Array) -> Tensor:
    z_NE = torch.as_tensor(z_NE).detach().double()
    if z_NE.ndim != 2 or 0 in z_NE.shape:
        raise DataError(
            f"embeddings to diagnose are (images, width), neither 0; these are {tuple(z_NE.shape)}"
        )
    if bad := int((~z_NE.isfinite().all(1)).sum()):
        raise DataError(f"{bad} of {len(z_NE)} embeddings hold NaN or infinity; the encoder has diverged")
    return z_NE


def _standardized(z_ND: Tensor) -> Tensor:
    """Of these rows alone; the losses' `standardize` speaks to other processes, and a reading may be one
    rank's."""
    return (z_ND - z_ND.mean(0)) * (z_ND.var(0, correction=0) + 1e-5).rsqrt()
