"""Losses against published numbers, a slow witness written from the papers, invariances and a bound."""

import json
import math

import pytest
import torch
from shared import shared, wave

from diptych.methods import losses
from diptych.methods.losses import barlow_twins, cross_correlation, negative_cosine, standardize

KERAS = ["barlow_loss_N64_D32_k0", "barlow_loss_N64_D300_k2", "barlow_loss_N512_D128_k4"]
WEIGHT, EPS = 0.0051, 1e-5  # the paper's
LOSSES = [
    lambda a, b: barlow_twins(a, b, WEIGHT, EPS)[0],
    negative_cosine,
    lambda a, b: cross_correlation(a, b, EPS),
]
PYTORCH = ["loss_N64_D32_k100", "loss_N128_D256_k102"]


def golden_pair(name):
    """Two leaves in float64, as the golden files' README defines them."""
    n, d, k = (int(part[1:]) for part in name.split("_")[-3:])
    first, second = wave((n, d), k), 0.7 * wave((n, d), k) + 0.3 * wave((n, d), k + 1)
    return torch.from_numpy(first).requires_grad_(), torch.from_numpy(second).requires_grad_()


def random_pair(n, d, seed=0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    first = torch.randn(n, d, generator=rng, dtype=torch.float64)
    second = 0.6 * first + torch.randn(n, d, generator=rng, dtype=torch.float64) + 0.5
    return first.to(dtype).requires_grad_(), second.to(dtype).requires_grad_()


def close(a, b, tolerance):
    """The relative size of the difference."""
    a, b = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (a, b))
    difference = float((a - b).norm() / b.norm().clamp_min(1e-300))
    assert difference <= tolerance, difference


@pytest.mark.parametrize("name", KERAS)
def test_barlow_twins_is_the_keras_examples_loss(name):
    golden = json.loads(shared("golden/keras.json").read_text())[name]
    a, b = golden_pair(name)
    loss, parts = barlow_twins(a, b, off_diagonal_weight=5e-3, eps=0.0)
    loss.backward()
    close(loss, golden["loss_float64"], 1e-12)
    close(parts["on_diagonal"], golden["on_diagonal"], 1e-12)
    close(parts["off_diagonal"], golden["off_diagonal"], 1e-12)
    close(a.grad.norm(), golden["grad_a_norm"], 1e-12)
    close(b.grad.norm(), golden["grad_b_norm"], 1e-12)
    close(a.grad.flatten()[:5], golden["grad_a_first5"], 1e-10)
    in_float32, _ = barlow_twins(a.float(), b.float(), off_diagonal_weight=5e-3, eps=0.0)
    close(in_float32, golden["loss_published_float32"], 1e-5)
    close(in_float32, golden["loss_float64"], 1e-6)


@pytest.mark.parametrize("name", PYTORCH)
def test_barlow_twins_is_the_original_programs_loss(name):
    golden = json.loads(shared("golden/barlowtwins_pytorch.json").read_text())[name]
    a, b = golden_pair(name)
    loss, parts = barlow_twins(a, b, off_diagonal_weight=0.0051, eps=1e-5)
    loss.backward()
    close(loss, golden["loss"], 1e-12)
    close(parts["on_diagonal"], golden["on_diagonal"], 1e-12)
    close(parts["off_diagonal"], golden["off_diagonal"], 1e-12)
    close(a.grad.norm(), golden["grad1_norm"], 1e-12)
    close(b.grad.norm(), golden["grad2_norm"], 1e-12)


def test_negative_cosine_is_the_simsiam_examples_loss():
    golden = json.loads(shared("golden/keras.json").read_text())["simsiam_loss_N64_D48_k60"]
    p1, z1, p2, z2 = (torch.from_numpy(wave((64, 48), k)) for k in range(60, 64))
    close((negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2, golden, 1e-5)  # the example computes in float32


def slow_barlow_twins(z1, z2, weight, eps):
    """Equations 1 and 2 with loops over Python floats: no broadcasting, no matrix product, no autograd."""
    n, d = len(z1), len(z1[0])

    def standardized(z):
        out = [[0.0] * d for _ in range(n)]
        for i in range(d):
            mean = math.fsum(z[b][i] for b in range(n)) / n
            variance = math.fsum((z[b][i] - mean) ** 2 for b in range(n)) / n
            for b in range(n):
                out[b][i] = (z[b][i] - mean) / math.sqrt(variance + eps)
        return out

    z1, z2 = standardized(z1), standardized(z2)
    on, off = 0.0, 0.0
    for i in range(d):
        for j in range(d):
            c = math.fsum(z1[b][i] * z2[b][j] for b in range(n)) / n
            if i == j:
                on += (1 - c) ** 2
            else:
                off += c**2
    return on + weight * off, on, off


@pytest.mark.parametrize("shape", [(8, 5), (5, 13), (2, 3), (7, 1)])
def test_barlow_twins_agrees_with_the_slow_witness(shape):
    a, b = random_pair(*shape)
    loss, parts = barlow_twins(a, b, off_diagonal_weight=0.02, eps=1e-3)
    expected, on, off = slow_barlow_twins(a.tolist(), b.tolist(), 0.02, 1e-3)
    close(loss, expected, 1e-12)
    close(parts["on_diagonal"], on, 1e-12)
    assert float(parts["off_diagonal"]) == pytest.approx(off, rel=1e-12, abs=1e-12)
    assert not parts["on_diagonal"].requires_grad and not parts["off_diagonal"].requires_grad


@pytest.mark.parametrize("shape", [(7, 4), (4, 11)])
def test_gradients_agree_with_the_slow_witness(shape):
    a, b = random_pair(*shape)
    barlow_twins(a, b, off_diagonal_weight=0.02, eps=1e-3)[0].backward()
    for row, column in [(0, 0), (2, 3), (3, 1)]:
        sides = []
        for step in (1e-5, -1e-5):
            values = a.tolist()
            values[row][column] += step
            sides.append(slow_barlow_twins(values, b.tolist(), 0.02, 1e-3)[0])
        close(a.grad[row, column], (sides[0] - sides[1]) / 2e-5, 1e-7)


def test_negative_cosine_agrees_with_the_slow_witness():
    p, z = random_pair(9, 4)
    rows = [
        sum(x * y for x, y in zip(p_row, z_row, strict=True)) / math.hypot(*p_row) / math.hypot(*z_row)
        for p_row, z_row in zip(p.tolist(), z.tolist(), strict=True)
    ]
    close(negative_cosine(p, z), -sum(rows) / len(rows), 1e-14)
    scales = torch.linspace(0.1, 9, 9, dtype=torch.float64)[:, None]
    close(negative_cosine(p * scales, z / scales), negative_cosine(p, z), 1e-14)  # only directions count
    close(negative_cosine(p, 3 * p), -1.0, 1e-14)
    negative_cosine(p, z).backward()
    assert p.grad.norm() > 0 and z.grad.norm() > 0  # the stop-gradient is the method's, not ours


@pytest.mark.parametrize("shape", [(40, 12), (10, 36)])
def test_units_and_origins_of_the_dimensions_do_not_matter(shape):
    a, b = (z.detach() for z in random_pair(*shape))
    rng = torch.Generator().manual_seed(1)
    units, origins = 0.1 + 5 * torch.rand(shape[1], generator=rng), 10 * torch.randn(shape[1], generator=rng)
    loss, _ = barlow_twins(a, b, WEIGHT, eps=0.0)
    close(barlow_twins(a * units + origins, b / units - origins, WEIGHT, eps=0.0)[0], loss, 1e-10)
    order = torch.randperm(shape[0], generator=rng)
    close(barlow_twins(a[order], b[order], WEIGHT, eps=0.0)[0], loss, 1e-10)
    assert abs(float(barlow_twins(a[order], b, WEIGHT, eps=0.0)[0] - loss)) > 0.1  # but which image is which does


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shape", [(16, 96), (64, 300), (48, 32)])
def test_gram_form_is_the_correlation_form(shape, dtype, tolerance, monkeypatch):
    found = []
    for gram in (True, False):
        monkeypatch.setattr(losses, "_gram_is_cheaper", lambda rows, width, gram=gram: gram)
        a, b = random_pair(*shape, dtype=dtype)
        loss, parts = barlow_twins(a, b, WEIGHT, EPS)
        loss.backward()
        found.append([loss.detach(), parts["on_diagonal"], parts["off_diagonal"], a.grad, b.grad])
    for by_gram, by_correlation in zip(*found, strict=True):
        assert by_gram.dtype == dtype
        close(by_gram, by_correlation, tolerance)


def test_the_gram_form_is_taken_where_it_is_cheaper(monkeypatch):
    """No (D, D) matrix is made for N < D / 2: cross_correlation is not called."""
    seen = []
    monkeypatch.setattr(losses, "cross_correlation", lambda *args: seen.append(args) or cross_correlation(*args))
    for n, d in [(15, 32), (16, 32), (17, 32)]:
        barlow_twins(*random_pair(n, d), WEIGHT, EPS)
        assert len(seen) == (0 if n == 15 else n - 15)


def least_loss(n, d, weight):
    """c has rank n-1, so |c|^2 >= trace(c)^2 / (n-1): least d (1-s)^2 + weight s^2 (d^2/(n-1) - d) over s."""
    k = max(0.0, weight * (d / (n - 1) - 1))
    return d * k / (1 + k)


def test_no_loss_is_below_the_bound_of_the_rank():
    assert least_loss(512, 5000, 0.005) == pytest.approx(210.4, abs=0.1)
    for n, d, weight in [(8, 40, 0.0051), (8, 40, 0.5), (3, 64, 0.05), (30, 8, 0.1)]:
        a, b = random_pair(n, d)
        for second in (a, b, -a):
            assert float(barlow_twins(a, second, weight, eps=0.0)[0].detach()) >= least_loss(n, d, weight)


@pytest.mark.parametrize("tied", [True, False])
def test_training_reaches_the_bound_but_does_not_pass_it(tied):
    """Projections moved freely. Equal views have their least at weight (d^2/(n-1) - d)."""
    n, d, weight = 8, 24, 0.0051
    a, b = random_pair(n, d)
    optimizer = torch.optim.LBFGS([a, b], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value, _ = barlow_twins(a, 3 * a if tied else b, weight, eps=1e-9)
        value.backward()
        return value

    optimizer.step(loss)
    final = float(loss().detach())
    assert least_loss(n, d, weight) <= final <= 1.02 * least_loss(n, d, weight)
    if tied:
        close(final, weight * (d**2 / (n - 1) - d), 1e-6)


@pytest.mark.parametrize("shape", [(12, 6), (6, 40), (1, 4)])
def test_constant_dimensions_are_finite(shape):
    for value in (0.0, 1.0, 1e4):
        a, b = random_pair(*shape, dtype=torch.float32)
        with torch.no_grad():
            a[:, :3], b[:, 0] = value, -value
        loss, parts = barlow_twins(a, b, WEIGHT, EPS)
        loss.backward()
        for tensor in (loss, *parts.values(), a.grad, b.grad):
            assert tensor.isfinite().all()
        assert standardize(a, EPS)[:, 0].abs().max() < 1e-2
    zero = torch.zeros(4, 8, requires_grad=True)
    negative_cosine(zero, zero + 0).backward()
    assert zero.grad.isfinite().all()


def test_mean_and_variance_are_those_of_the_population():
    z, _ = random_pair(20, 3)
    standard = standardize(z, eps=0.0)
    close(standard.square().mean(0), torch.ones(3), 1e-14)
    assert standard.mean(0).abs().max() < 1e-15
    close(cross_correlation(z, z, eps=0.0).diagonal(), torch.ones(3), 1e-14)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(24, 16), (6, 64)])
def test_autocast_does_not_reach_inside(loss, shape):
    a, b = random_pair(*shape, dtype=torch.float32)
    expected = loss(a, b)
    expected.sum().backward()
    gradient, a.grad = a.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b.T).dtype == torch.bfloat16  # autocast is at work
        found = loss(a, b)
    found.sum().backward()
    assert found.dtype == torch.float32 and torch.equal(found, expected) and torch.equal(a.grad, gradient)
    assert loss(a.bfloat16(), b.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("second", [torch.ones(4, 1), torch.ones(1, 4), torch.ones(4), torch.ones(2, 2, 4)])
def test_shapes_that_would_broadcast_are_refused(second):
    for loss in LOSSES:
        with pytest.raises(ValueError, match="expected two"):
            loss(torch.ones(4, 4), second)
