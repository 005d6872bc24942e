"""Barlow Twins and SimSiam as the two Keras examples train them (A. Eranti, 2021; S. Paul, 2021 and 2023).

Their losses are those of the papers. Their layers differ, see `diptych.networks.keras`: biases, batch normalisation, initial
weights, and a predictor with ReLU before BN.
"""

from collections.abc import Sequence

from torch import nn

from diptych.base.ranges import Rate, Width, checked
from diptych.methods.barlow_twins import BarlowTwins
from diptych.methods.method import embedding_width
from diptych.methods.simsiam import SimSiam
from diptych.networks.keras import freeze_statistics, keras_predictor, keras_projector


@checked
def keras_barlow_twins(
    encoder: nn.Module,
    projector: Sequence[Width] = (5000, 5000, 5000),
    off_diagonal_weight: Rate = 0.005,
    eps: Rate = 0.0,
    width: Width | None = None,
) -> BarlowTwins:
    """Barlow Twins with the example's projector and off-diagonal weight, and variances without an epsilon.

    projector: output widths of its Linear layers, with biases, and with BN and ReLU between.
    off_diagonal_weight, eps, width: as `BarlowTwins`.
    """
    layers = keras_projector((embedding_width(encoder, width), *projector), bias=True)
    return BarlowTwins(encoder, layers, off_diagonal_weight=off_diagonal_weight, eps=eps)


@checked
def keras_simsiam(
    encoder: nn.Module,
    projector: Sequence[Width] = (2048, 2048),
    predictor: Width = 512,
    frozen_statistics: bool = False,
    width: Width | None = None,
) -> SimSiam:
    """SimSiam with the example's predictor and its projector, whose last BN has scale and shift.

    projector: output widths of its Linear layers; predictor: width of its hidden layer.
    frozen_statistics: BN normalises by its moving averages, which never change, instead of by the batch. It also applies to
    the encoder's layers, in place. The example trains like this because its train_step does not pass `training=True`.
    width: as `SimSiam`.

    Raises RecipeError for frozen statistics if the encoder has batch normalisation that is not Keras'.
    """
    if frozen_statistics:
        freeze_statistics(encoder)
    widths = (embedding_width(encoder, width), *projector)
    layers = keras_projector(widths, last_norm=True, frozen=frozen_statistics)
    return SimSiam(encoder, layers, keras_predictor(widths[-1], predictor, frozen=frozen_statistics))


KERAS_METHODS = {"keras_barlow_twins": keras_barlow_twins, "keras_simsiam": keras_simsiam}
