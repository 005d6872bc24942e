"""The closed-form optimum of Barlow Twins over linear maps, against gradient descent on the loss itself."""

import pytest
import torch

from diptych.base.errors import DataError, RecipeError
from diptych.embeddings.linear_optimum import barlow_twins_optimum, hadamard, water_filling
from diptych.methods import losses


def two_views(n: int = 200, width: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of two views, whose directions agree from almost fully to not at all, mixed by a random matrix."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.linspace(0.2, 4.0, width, dtype=torch.float64)
    image, mix = (torch.randn(rows, width, generator=rng, dtype=torch.float64) for rows in (n, width))
    one, other = (image + noise * torch.randn(n, width, generator=rng, dtype=torch.float64) for _ in range(2))
    return one @ mix + 3.0, other @ mix + 3.0


def both_orders(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each pair in both orders, so that both views have one covariance and the cross-covariance is symmetric."""
    return torch.cat([first, second]), torch.cat([second, first])


def loss_of(weight: torch.Tensor, views: tuple[torch.Tensor, torch.Tensor], off_diagonal: float) -> torch.Tensor:
    z1, z2 = (view @ weight for view in views)
    return losses.barlow_twins(z1, z2, off_diagonal, 0.0)[0]


def descend(views: tuple[torch.Tensor, torch.Tensor], width: int, off_diagonal: float, seed: int) -> torch.Tensor:
    """A linear projector trained by L-BFGS on the loss, from a random start."""
    start = torch.randn(views[0].shape[1], width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = (start / start.norm(dim=0)).requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=3000, tolerance_grad=1e-11, tolerance_change=1e-16,
                                  history_size=50, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(weight, views, off_diagonal)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


@pytest.mark.parametrize(("width", "off_diagonal"), [(4, 1.0), (4, 0.1), (2, 0.3)])
def test_gradient_descent_reaches_the_optimum_and_goes_no_lower(width, off_diagonal):
    first, second = two_views()
    views = both_orders(first, second)
    optimum = barlow_twins_optimum(first, second, width, off_diagonal, ridge=0.0)
    ours = loss_of(optimum.weight_FD, views, off_diagonal).item()
    assert ours == pytest.approx(optimum.loss, rel=1e-9)  # the bound of the docstring is reached
    weights = [descend(views, width, off_diagonal, seed) for seed in range(6)]
    trained = [loss_of(weight, views, off_diagonal).item() for weight in weights]
    assert min(trained) >= ours * (1 - 1e-9)
    assert min(trained) == pytest.approx(ours, rel=1e-5)
    best = weights[trained.index(min(trained))]
    # The same subspace: the trained columns lie in the span of the directions that the optimum uses, and the reverse.
    used = int((optimum.shares_D > 1e-6).sum())
    for one, other in ((best, optimum.weight_FD), (optimum.weight_FD, best)):
        basis = torch.linalg.svd(centred_scale(views[0]) @ one, full_matrices=False)
        span = basis.U[:, :used]
        target = centred_scale(views[0]) @ other
        assert (target - span @ (span.T @ target)).norm() < 2e-2 * target.norm()


def centred_scale(vectors: torch.Tensor) -> torch.Tensor:
    return vectors - vectors.mean(0)


def test_directions_with_little_correlation_get_nothing():
    shares = water_filling(torch.tensor([0.9, 0.8, 0.1, 0.01], dtype=torch.float64), 0.05)
    assert shares[-1] == 0 and shares[0] > shares[1] > 0
    assert shares.sum().item() == pytest.approx(4.0)


def test_perfectly_correlated_views_have_loss_zero():
    first, _ = two_views()
    optimum = barlow_twins_optimum(first, first, 8, 0.5, ridge=0.0)
    assert optimum.loss == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(optimum.shares_D, torch.ones(8, dtype=torch.float64))


def test_projections_have_one_variance():
    first, second = two_views()
    weight = barlow_twins_optimum(first, second, 8, 0.1, ridge=0.0).weight_FD
    variance = (torch.cat([first, second]) @ weight).var(0, correction=0)
    torch.testing.assert_close(variance, torch.ones(8, dtype=torch.float64))


def test_hadamard_is_orthogonal_and_flat():
    matrix = hadamard(16)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16, dtype=torch.float64))
    assert set(matrix.abs().flatten().tolist()) == {0.25}


def test_degenerate_vectors_give_finite_maps():
    first, second = torch.zeros(50, 8), torch.zeros(50, 8)
    assert barlow_twins_optimum(first, second, 4, 0.1).weight_FD.isfinite().all()
    first, second = (view[:5] for view in two_views())  # fewer images than dimensions
    assert barlow_twins_optimum(first, second, 8, 0.1).weight_FD.isfinite().all()


@pytest.mark.parametrize(
    ("width", "weight", "word"), [(3, 0.1, "power of two"), (16, 0.1, "power"), (4, 2.0, "above 0")]
)
def test_arguments_are_checked(width, weight, word):
    first, second = two_views()
    with pytest.raises(RecipeError, match=word):
        barlow_twins_optimum(first, second, width, weight)


def test_shapes_are_checked():
    with pytest.raises(DataError, match="one shape"):
        barlow_twins_optimum(torch.zeros(4, 3), torch.zeros(5, 3), 2, 0.1)
