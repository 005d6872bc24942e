"""EMP-SSL's loss against its formula, several views, and the small network that is trained with it."""

import math

import numpy as np
import pytest
import torch

from diptych.methods import CodingRate
from diptych.methods.coding_rate import coding_rate
from diptych.networks.encoders import encoder
from diptych.networks.small import PartialWhitening, cosine_patterns


def directions(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=rng, dtype=torch.float64), dim=1)


@pytest.mark.parametrize(("rows", "width"), [(6, 16), (40, 5), (8, 8)])
def test_the_coding_rate_is_its_formula(rows, width):
    z = directions(rows, width).numpy()
    expected = 0.5 * np.linalg.slogdet(np.eye(width) + width / (rows * 0.2) * z.T @ z)[1]
    assert float(coding_rate(torch.from_numpy(z), 0.2)) == pytest.approx(expected, rel=1e-10)


def test_the_rate_is_highest_for_directions_that_fill_the_space():
    basis, same = torch.eye(8, dtype=torch.float64), directions(1, 8).expand(8, 8)
    assert float(coding_rate(basis, 0.2)) == pytest.approx(4 * math.log(1 + 1 / 0.2))
    assert coding_rate(same, 0.2) < coding_rate(directions(8, 8), 0.2) < coding_rate(basis, 0.2)


def test_the_loss_is_minus_rate_minus_weighted_agreement():
    method = CodingRate(torch.nn.Flatten(), projector=torch.nn.Identity(), weight=3.0)
    z1, z2, z3 = (directions(6, 4, seed) for seed in range(3))
    compared = method.compare({"z1": 5 * z1, "z2": z2, "z3": 0.1 * z3}, 0.0)  # lengths do not matter
    mean = torch.nn.functional.normalize(z1 + z2 + z3, dim=1)
    agreement = sum(float((z * mean).sum(1).mean()) for z in (z1, z2, z3)) / 3
    rate = sum(float(coding_rate(z, 0.2)) for z in (z1, z2, z3)) / 3
    assert float(compared.parts["agreement"]) == pytest.approx(agreement)
    assert float(compared.loss) == pytest.approx(-rate - 3 * agreement)


def test_equal_views_agree_completely():
    method = CodingRate(torch.nn.Flatten(), projector=torch.nn.Identity())
    z = directions(6, 4)
    assert float(method.compare({f"z{i}": z for i in range(4)}, 0.0).parts["agreement"]) == pytest.approx(1.0)


def test_the_small_network_takes_views_of_two_sizes_and_learns():
    torch.manual_seed(0)
    method = CodingRate(encoder("small_convolutions", widths=(8, 12, 16)), projector=(32, 16))
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    images = torch.rand(24, 3, 32, 32)
    losses = []
    for _ in range(12):
        noisy = images + 0.05 * torch.randn_like(images)
        loss = method([noisy, noisy[..., 4:28, 4:28], images]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 5
    assert method.eval().encoder(images).shape == (24, 16)


def test_patterns_are_orthonormal_and_only_one_sees_brightness():
    patterns = cosine_patterns().flatten(1)
    assert patterns.shape == (32, 48)
    torch.testing.assert_close(patterns @ patterns.T, torch.eye(32), atol=1e-6, rtol=0)
    assert (patterns.sum(1).abs() > 1e-5).sum() == 1


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
def test_variances_are_divided_by_themselves_to_the_power(power):
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([4.0, 1.0, 0.5, 0.25])
    mixing = torch.linalg.qr(torch.randn(4, 4, generator=rng)).Q
    layer = PartialWhitening(4, power).train()
    for _ in range(400):
        layer(torch.randn(500, 4, generator=rng) * spread.sqrt() @ mixing + 3.0)
    x = layer.eval()(torch.randn(20_000, 4, generator=rng) * spread.sqrt() @ mixing + 3.0)
    variances = torch.linalg.eigvalsh(x.T.cov()).flip(0)
    expected = (spread / spread[0]) ** (1 - 2 * power)
    torch.testing.assert_close(variances / variances[0], expected, rtol=0.1, atol=0.01)
    assert x.mean(0).abs().max() < (4 if power == 0 else 0.15)


def test_training_sees_the_embedding_itself():
    x = torch.randn(10, 4)
    assert torch.equal(PartialWhitening(4, 0.35).train()(x), x)


def test_evaluation_moves_no_statistics():
    layer = PartialWhitening(4, 0.35).eval()
    layer(torch.randn(10, 4))
    assert torch.equal(layer.covariance, torch.eye(4)) and torch.equal(layer.weight, torch.eye(4))
