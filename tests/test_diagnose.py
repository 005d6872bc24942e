"""Collapse is recognised, health is left alone, and the readings have the invariances that they are said to
have."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diptych.embeddings.diagnose as diagnose_file
from diptych.base.errors import DataError
from diptych.embeddings.diagnose import correlation_readings, diagnose, effective_rank, spread
from diptych.methods.losses import cross_correlation

REMEDIES = ("colour distortions", "probabilities", "learning rate", "schedule", "encoder", "projection head")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(width, seed=5):
    return torch.linalg.qr(normal(width, width, seed=seed))[0]


# --- spread -------------------------------------------------------------------------------------------------


def test_spread_of_directions_in_all_and_in_none():
    assert spread(normal(2000, 64)) == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(50, 64)) == pytest.approx(0, abs=1e-12)
    assert spread(normal(50, 1).abs() * normal(1, 64, seed=1)) == pytest.approx(0, abs=1e-12)  # lengths do not count
    assert spread(torch.zeros(50, 64)) == 0


def test_spread_by_loops():
    z = normal(20, 5) + 1
    rows = [[float(v) / math.sqrt(sum(float(u) ** 2 for u in row)) for v in row] for row in z]
    columns = [[row[j] for row in rows] for j in range(5)]
    stds = [math.sqrt(sum((v - sum(c) / 20) ** 2 for v in c) / 20) for c in columns]
    assert spread(z) == pytest.approx(sum(stds) / 5 * math.sqrt(5))


def test_spread_does_not_depend_on_scale_order_or_precision():
    z = normal(200, 16) + 0.5
    stretched = z * torch.rand(200, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    assert spread(stretched) == pytest.approx(spread(z))
    assert spread(z.flip(0).flip(1)) == pytest.approx(spread(z))
    assert spread(z.float().numpy()) == pytest.approx(spread(z), abs=1e-6)


def test_turning_keeps_spread_under_its_bound():
    """The sum of the variances is 1 - |mean direction|^2 in any axes; the mean of the roots is largest when
    they are equal."""
    z = normal(300, 8) * torch.logspace(0, -2, 8) + 0.3
    bound = math.sqrt(1 - float(F.normalize(z, dim=1).mean(0).square().sum()))
    turned = [spread(z @ turn(8, seed)) for seed in range(5)]
    assert max(turned) <= bound + 1e-9
    assert max(turned) - spread(z) > 0.05  # so a turn does show: not an invariant


# --- effective rank -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "rank"), [(200, 1), (200, 3), (200, 12), (8, 5)])
def test_rank_of_equal_singular_values(rows, rank):
    left, right = (torch.linalg.qr(normal(n, rank, seed=n))[0] for n in (rows, 40))
    assert effective_rank(left @ right.T) == pytest.approx(rank, rel=1e-3)


def test_rank_is_rankmes():
    """arXiv 2210.02885, eq. 2 and 3, from singular values that another library finds."""
    for shape in ((60, 20), (20, 60), (7, 7)):
        z = normal(*shape) * torch.logspace(0, -3, shape[1])
        values = np.linalg.svd(z.numpy(), compute_uv=False)
        p = values / np.abs(values).sum() + 1e-7
        assert effective_rank(z) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_rank_survives_scale_and_turns_but_not_a_shift():
    z = normal(100, 16) * torch.logspace(0, -2, 16)
    for changed in (z * 1e6, z * 1e-6, z @ turn(16), turn(100) @ z, z.flip(0)):
        assert effective_rank(changed) == pytest.approx(effective_rank(z), rel=1e-6)
    assert effective_rank(z + 100) < 1.1 < effective_rank(z)  # as published: a mean that dominates counts
    assert effective_rank(torch.zeros(30, 16)) == pytest.approx(1, abs=1e-3)


# --- correlation of two views -------------------------------------------------------------------------------


def test_correlation_readings_are_the_losses_matrix(monkeypatch):
    z1, z2 = normal(80, 30), normal(80, 30, seed=1)
    z2 = 0.6 * z1 + 0.4 * z2
    c = cross_correlation(z1, z2, 1e-5)
    off = c.abs()[~torch.eye(30, dtype=torch.bool)]
    readings = correlation_readings(z1, z2)
    assert readings == pytest.approx(
        {"on_diagonal_mean": c.diagonal().mean().item(), "off_diagonal_mean": off.mean().item()}
    )
    assert readings["on_diagonal_mean"] > 0.7 > 0.2 > readings["off_diagonal_mean"] > 0.02
    wide = correlation_readings(
        torch.cat([z1] * 50, 1), torch.cat([z1] * 50, 1)
    )  # 1,500: more than one block of columns
    c = cross_correlation(torch.cat([z1] * 50, 1), torch.cat([z1] * 50, 1), 1e-5)
    assert wide["off_diagonal_mean"] == pytest.approx((c.abs().sum() - c.diagonal().abs().sum()).item() / 1500 / 1499)


def test_correlation_of_what_has_nothing_in_common():
    readings = correlation_readings(normal(400, 60), normal(400, 60, seed=1))
    assert abs(readings["on_diagonal_mean"]) < 0.03
    assert readings["off_diagonal_mean"] == pytest.approx(math.sqrt(2 / math.pi / 400), rel=0.05)


def test_correlation_of_copies_and_of_constants():
    assert correlation_readings(normal(50, 1).expand(50, 9), normal(50, 1).expand(50, 9)) == pytest.approx(
        {"on_diagonal_mean": 1, "off_diagonal_mean": 1}, abs=1e-4
    )
    assert correlation_readings(torch.ones(50, 9), torch.ones(50, 9)) == {
        "on_diagonal_mean": 0,
        "off_diagonal_mean": 0,
    }
    with pytest.raises(DataError, match="two views"):
        correlation_readings(normal(50, 9), normal(50, 8))


# --- the verdict --------------------------------------------------------------------------------------------


def noise(n=400, width=128):
    return 1e-3 * normal(n, width, seed=9)


HEALTHY = {
    "random directions": normal(400, 128),
    "after a ReLU": normal(400, 128).relu(),
    "few images": normal(12, 128),
    "few dimensions": normal(400, 4),
    "decaying spectrum": normal(400, 128) * torch.arange(1, 129) ** -0.7,
    "one class of three each": torch.eye(16).double().repeat(25, 1) + noise(400, 16),
}
COLLAPSED = {
    "one point": torch.ones(400, 128) + noise(),
    "exactly one point": torch.ones(400, 128),
    "zero": torch.zeros(400, 128),
    "one ray": normal(400, 1).abs() @ normal(1, 128, seed=1) + noise(),
    "one line, both ways": normal(400, 1) @ normal(1, 128, seed=1) + noise(),
    "three dimensions": normal(400, 3) @ normal(3, 128, seed=1) + 1e-2 * noise(),
    "few images, one point": torch.ones(12, 128) + noise(12),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_health_is_left_alone(name):
    found = diagnose(HEALTHY[name])
    assert (found.verdict, found.reasons, found.advice) == ("OK", [], [])
    assert set(found.readings) == {"images", "spread", "rank"}


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapse_is_recognised(name):
    found = diagnose(COLLAPSED[name].float())
    assert found.verdict == "COLLAPSED" and found.reasons
    assert all(any(word in advice for advice in found.advice) for word in REMEDIES)
    assert all(math.isfinite(reading) for reading in found.readings.values())
    assert diagnose(COLLAPSED[name].float() * 1e4).verdict == "COLLAPSED"


def test_between_health_and_collapse_is_a_warning():
    z = normal(400, 6) @ turn(128)[:6]
    assert diagnose(z).verdict == "WARNING" and "rank 6.0 of 128" in diagnose(z).reasons[0]
    assert diagnose(normal(400, 2) @ turn(6)[:2]).verdict == "WARNING"  # 2 of 6 dimensions: no collapse yet
    found = diagnose(1 + 0.07 * normal(400, 128))
    assert "spread 0.070" in found.reasons[0]


def test_fewer_dimensions_than_untrained_is_a_warning():
    z = normal(400, 128)
    narrow = z[:, :40] @ turn(128)[:40]
    assert diagnose(narrow).verdict == "OK" and diagnose(z, untrained=narrow).verdict == "OK"
    found = diagnose(narrow, untrained=z)
    assert found.verdict == "WARNING" and "before training" in found.reasons[0]
    assert found.readings["untrained_rank"] > 2 * found.readings["rank"]


def test_projections_tell_what_embeddings_hide():
    z, point = normal(400, 128), torch.ones(400, 64) + noise(400, 64)
    assert diagnose(z, projections=(normal(400, 64, seed=2), normal(400, 64, seed=3))).verdict == "OK"
    found = diagnose(z, projections=(point, point))
    assert found.verdict == "COLLAPSED" and all("projections" in reason for reason in found.reasons)
    assert {"projection_spread", "projection_rank", "on_diagonal_mean", "off_diagonal_mean"} <= set(found.readings)


def test_many_images_are_thinned_evenly(monkeypatch):
    by_class = torch.cat([torch.ones(600, 32), normal(600, 32)])  # the first thousand alone would look worse
    seen = []
    monkeypatch.setattr(diagnose_file, "spread", lambda z: seen.append(z) or 1.0)
    diagnose(by_class)
    assert torch.equal(seen[0], by_class[::2])


def test_what_cannot_be_diagnosed():
    bad = normal(50, 8)
    bad[3, 1], bad[9, 0] = math.nan, math.inf
    for function in (spread, effective_rank, diagnose):
        with pytest.raises(DataError, match="2 of 50"):
            function(bad)
        with pytest.raises(DataError, match=r"\(0, 8\)"):
            function(bad[:0])
        with pytest.raises(DataError, match=r"\(50,\)"):
            function(bad[:, 0])
    with pytest.raises(DataError, match="at least two"):
        diagnose(bad[:1])


# --- a real collapse, in a second ---------------------------------------------------------------------------


def tiny_simsiam(stop_gradient):
    """60 steps of SimSiam on vectors in 16 clusters, a view adds noise: both views' projections."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nn.Sequential(*layers(16, 32), *layers(32, 32))
        projector = nn.Sequential(*layers(32, 32), nn.Linear(32, 32))
        predictor = nn.Sequential(*layers(32, 8), nn.Linear(8, 32))
        whole = nn.ModuleList([encoder, projector, predictor])
        optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
        centres = torch.randn(16, 16)
        for _ in range(60):
            images = centres[torch.randint(16, (128,))] + 0.3 * torch.randn(128, 16)
            z1, z2 = (projector(encoder(images + 0.3 * torch.randn(128, 16))) for _ in range(2))
            p1, p2 = predictor(z1), predictor(z2)
            if stop_gradient:
                z1, z2 = z1.detach(), z2.detach()
            loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return z1.detach(), z2.detach()


def layers(before, after):
    return [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]


def test_simsiam_without_stop_gradient_collapses():
    diagnosis = diagnose(normal(128, 32), tiny_simsiam(stop_gradient=False))
    assert diagnosis.verdict == "COLLAPSED"
    assert any("projections are nearly the same" in reason for reason in diagnosis.reasons)
    assert diagnose(normal(128, 32), tiny_simsiam(stop_gradient=True)).verdict == "OK"
