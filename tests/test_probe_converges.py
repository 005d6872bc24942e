"""`converged` means within `NEAR` of the minimum, at any penalty; held to scikit-learn's Newton method in float64."""

import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from diptych.embeddings import probe
from diptych.embeddings.probe import EXACT, NEAR, fit_probe, softmax_regression, value_and_gradient

CLASSES = 6


def separable(n: int = 500, width: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised embeddings (n, E) in float64 of a decaying spectrum, whose classes hyperplanes can nearly tell apart."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=rng)
    inner = 2.0 * torch.randn(CLASSES, width, generator=rng)[y] + 1.5 * torch.randn(n, width, generator=rng)
    mix = torch.linalg.qr(torch.randn(width, width, generator=rng))[0] * torch.logspace(0, -1.5, width)
    z = (inner @ mix.T + 0.02 * torch.randn(n, width, generator=rng)).double()
    return (z - z.mean(0)) / z.std(0, correction=0), y


def least(x: torch.Tensor, y: torch.Tensor, penalty: float) -> float:
    """The minimum, by Newton's method of another library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it also warns where rounding ends its line search
        model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-12, max_iter=500, solver="newton-cholesky")
        model.fit(x.numpy(), y.numpy())
    weight, bias = torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_)
    value, slope, _ = value_and_gradient(x, y, weight, bias, penalty)
    assert float(slope.square().sum()) / (2 * penalty) < 1e-6 * float(value), "the witness itself has converged"
    return float(value)


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_converged_is_near_the_minimum_at_any_penalty(penalty, dtype):
    x, y = separable()
    solution = softmax_regression(x.to(dtype), y, CLASSES, penalty)
    value, *_ = value_and_gradient(x, y, solution.weight_EK.double(), solution.bias_K.double(), penalty)
    excess = float(value) / least(x, y, penalty) - 1
    assert solution.converged and excess <= NEAR
    assert excess <= solution.excess + 1e-6, "what is said of the distance is a bound"


@pytest.mark.parametrize("most", [3, 12])
def test_an_optimizer_that_is_stopped_early_has_not_converged(most):
    x, y = separable()
    solution = softmax_regression(x, y, CLASSES, 1e-6, effort=EXACT._replace(iterations=most))
    value, *_ = value_and_gradient(x, y, solution.weight_EK, solution.bias_K, 1e-6)
    assert not solution.converged and solution.iterations <= most
    assert float(value) / least(x, y, 1e-6) - 1 > NEAR


def test_more_columns_than_embeddings_converge_too():
    x, y = separable(60, 90)
    solution = softmax_regression(x, y, CLASSES, 1e-6)
    value, *_ = value_and_gradient(x, y, solution.weight_EK, solution.bias_K, 1e-6)
    assert solution.converged and float(value) / least(x, y, 1e-6) - 1 <= NEAR


@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_is_chosen_with_less_effort_as_with_all(seed, monkeypatch):
    """Held-out accuracies differ by half a point at most, and so does that of the probe that comes out."""
    x, y = separable(3000, seed=seed)
    rough = fit_probe(x[:2000], y[:2000], CLASSES)
    monkeypatch.setattr(probe, "ROUGH", EXACT)
    exact = fit_probe(x[:2000], y[:2000], CLASSES)
    for one, other in zip(rough.tried, exact.tried, strict=False):
        assert one["penalty"] == other["penalty"] and abs(one["accuracy"] - other["accuracy"]) <= 0.0051
    accuracies = [(p.scores(x[2000:]).argmax(1) == y[2000:]).double().mean().item() for p in (rough, exact)]
    assert abs(accuracies[0] - accuracies[1]) <= 0.005
    assert rough.solution.converged and rough.solution.weight_EK.dtype == torch.float64
