"""Barlow Twins: its equation against a witness written out by hand, its invariances, its defaults."""

import math

import pytest
import torch
from small import make, views
from torch import nn

from diptych.methods import BarlowTwins


def test_it_is_the_paper_s_equation():
    """Eqs. 1 and 2 by loops; weight, eps and scale differ, so that none can take another's place."""
    weight, eps, scale = 0.3, 0.02, 1.7
    method = make(BarlowTwins, projector=(10, 7), off_diagonal_weight=weight, eps=eps, scale=scale).double()
    projections = method.project(views(dtype=torch.float64), {})
    loss, parts, _ = method.compare(projections, 0.0)

    standard = []
    for z in (projections["z1"], projections["z2"]):
        columns = []
        for column in z.detach().T.tolist():
            mean = sum(column) / len(column)
            variance = sum((value - mean) ** 2 for value in column) / len(column)
            columns.append([(value - mean) / math.sqrt(variance + eps) for value in column])
        standard.append(columns)
    on = off = 0.0
    for i, first in enumerate(standard[0]):
        for j, second in enumerate(standard[1]):
            c = sum(a * b for a, b in zip(first, second, strict=True)) / len(first)
            on, off = (on + (1 - c) ** 2, off) if i == j else (on, off + c**2)
    assert parts["on_diagonal"].item() == pytest.approx(on, rel=1e-10)
    assert parts["off_diagonal"].item() == pytest.approx(off, rel=1e-10)
    assert loss.item() == pytest.approx(scale * (on + weight * off), rel=1e-10)


def test_the_projector_may_be_a_module_of_your_own():
    projector = nn.Linear(5, 4)
    method = BarlowTwins(nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 5)), projector)  # without a width, too
    assert method.projector is projector
    assert torch.equal(method.project(views(), {})["z2"], projector(method.encoder(views()[1])))


def test_the_published_network_is_the_default():
    with torch.device("meta"):  # shapes without memory
        method = BarlowTwins(nn.Identity(), width=1)
    layers = [layer for layer in method.projector if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == [8192, 8192, 8192] and method.projector[-1] is layers[-1]
    assert not any(layer.bias is not None for layer in layers)
    assert (method.off_diagonal_weight, method.eps, method.scale) == (0.0051, 1e-5, 1.0)
