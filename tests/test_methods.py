"""The contract of all methods, for those of the package and for three that are unlike them (doubles.py).

What is true of one method alone (invariances, numbers of views, equations) stands in a file of its own. Run as a program, this
file is one of two processes.
"""

import copy
import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from doubles import OwnKeys, QueueAndTarget, ThreeViews, rows_of_this_process
from small import make, views
from test_distributed import run_two_processes, same
from torch import nn

from diptych.base.errors import RecipeError
from diptych.base.processes import leave_processes, mean_over_ranks, start, world_size, wrap
from diptych.base.random_at import random_at
from diptych.methods import METHODS, Method
from diptych.networks.batch_norm import shared_statistics
from diptych.training.gradients import in_pieces

OPTIONS = {
    "moco": {"queue": 30, "statistics_rows": None},
    "swav": {"prototypes": 9, "queue": 20, "queue_start": 0.0},
    "dino": {"prototypes": 9, "momentum": 0.5},
}
OF_THE_PACKAGE = {
    name: partial(make, kind, projector=(10, 7), **OPTIONS.get(name, {})) for name, kind in METHODS.items()
}
DOUBLES = {kind.__name__: (lambda kind=kind: make(kind)) for kind in (OwnKeys, ThreeViews, QueueAndTarget)}
CASES = OF_THE_PACKAGE | DOUBLES
SIZES = {"ThreeViews": (12, 12, 8)}  # pixels of the views; others take two
every_method = pytest.mark.parametrize("name", CASES)


def views_of(name: str, n: int = 12, **options) -> list[torch.Tensor]:
    return views(n, SIZES.get(name, (9, 9)), **options)


def draw_of(method: Method, n: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(method.draw(n, random_at("method", seed)))


def forward(method: Method, pair: list[torch.Tensor], progress: float | torch.Tensor = 0.25):
    return method(pair, draw_of(method, len(pair[0])), progress)


def state_of(method: Method) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in method.state_dict().items()}


def equal(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


@every_method
def test_forward_is_compare_of_project(name):
    method, pair = CASES[name](), views_of(name)
    assert isinstance(method.views, range) and len(pair) in method.views
    loss, parts, kept = forward(method, pair)
    projections = method.project(pair, draw_of(method))
    again = method.compare(projections, 0.25)
    assert torch.equal(loss, again.loss) and parts == again.parts and equal(kept, again.kept)
    assert projections and all(len(rows) == 12 for rows in projections.values())


@every_method
def test_loss_is_a_scalar_and_parts_are_detached_scalars(name):
    loss, parts, kept = forward(CASES[name](), views_of(name))
    assert loss.ndim == 0 and loss.requires_grad and loss.isfinite()
    assert parts
    assert all(part.ndim == 0 and not part.requires_grad and part.isfinite() for part in parts.values())
    assert all(len(rows) == 12 and not rows.requires_grad for rows in kept.values())


@every_method
def test_gradients_reach_every_parameter_that_is_trained(name):
    """And no other: several processes wait for the gradient of each parameter that requires one."""
    method = CASES[name]()
    forward(method, views_of(name)).loss.backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in method.parameters())


@every_method
def test_compare_uses_no_network_and_changes_nothing(name):
    method = CASES[name]()
    projections = method.project(views_of(name), draw_of(method))
    before, random = state_of(method), torch.random.get_rng_state()
    expected = method.compare(projections, 0.25).loss
    assert equal(state_of(method), before) and torch.equal(torch.random.get_rng_state(), random)
    for child, _ in list(method.named_children()):
        setattr(method, child, None)
    assert torch.equal(method.compare(projections, 0.25).loss, expected)


@every_method
def test_after_step_moves_in_place_and_as_progress_says(name):
    """Whoever holds a parameter or a buffer sees it move; nothing but arguments and state decides how."""
    method = CASES[name]()
    twin = copy.deepcopy(method)
    kept = forward(method, views_of(name)).kept
    held, twin_state = method.state_dict(keep_vars=True), state_of(method)
    assert method.after_step(kept, 0.5) is None
    now = method.state_dict(keep_vars=True)
    assert list(now) == list(held) and all(now[key] is held[key] for key in held)
    twin.load_state_dict(twin_state)
    twin.after_step(kept, torch.tensor(0.5))
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(value, now[key].detach(), rtol=1e-6, atol=1e-7, msg=key)


@every_method
def test_each_view_is_projected_by_itself(name):
    """No projection depends on two views: each view has batch statistics of its own."""
    method, pair, others = CASES[name](), views_of(name), views_of(name, seed=2)
    draw = draw_of(method)
    before = method.project(pair, draw)
    for place in range(len(pair)):
        changed = [*pair[:place], others[place], *pair[place + 1 :]]
        after = method.project(changed, draw)
        depends = {key for key in before if not torch.equal(before[key], after[key])}
        assert depends
        elsewhere = [*others[:place], pair[place], *others[place + 1 :]]
        after = method.project(elsewhere, draw)
        assert {key for key in before if torch.equal(before[key], after[key])} == depends


@every_method
@pytest.mark.parametrize("n", [2, 3])
def test_views_may_differ_in_size_and_batches_be_short(name, n):
    method = CASES[name]()
    sizes = [size + 3 * place for place, size in enumerate(SIZES.get(name, (9, 9)))]
    loss = forward(method, views(n, sizes)).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@every_method
def test_draws_are_named_rows_from_the_generator(name):
    method = CASES[name]()
    draw = draw_of(method, 5)
    assert all(len(rows) == 5 and rows.device.type == "cpu" for rows in draw.values())
    assert equal(draw, draw_of(method, 5))
    before = torch.random.get_rng_state()
    other = draw_of(method, 5, seed=1)
    assert all(not torch.equal(draw[key], other[key]) for key in draw)
    assert torch.equal(torch.random.get_rng_state(), before)


@every_method
def test_what_is_shown_is_a_pair_of_projections(name):
    method = CASES[name]()
    shown = method.shown(method.project(views_of(name), draw_of(method)))
    assert shown is None or len(shown) == 2 and all(z.ndim == 2 and len(z) == 12 for z in shown)
    assert (shown is None) == (name == "QueueAndTarget")


@every_method
def test_progress_may_be_a_tensor(name):
    method, pair = CASES[name](), views_of(name)
    with_number, with_tensor = (forward(method, pair, progress).loss for progress in (0.5, torch.tensor(0.5)))
    torch.testing.assert_close(with_number, with_tensor, rtol=1e-6, atol=0)


@every_method
def test_float64_stays_float64(name):
    double = views_of(name, dtype=torch.float64)
    loss, parts, _ = forward(CASES[name]().double(), double)
    assert {loss.dtype, *(part.dtype for part in parts.values())} == {torch.float64}
    single = forward(CASES[name](), [view.float() for view in double]).loss
    torch.testing.assert_close(single, loss.float(), rtol=1e-4, atol=0)
    assert single.item() != loss.item()  # nothing inside rounds to float32


@every_method
def test_the_loss_is_float32_under_autocast(name):
    method = CASES[name]()
    with torch.autocast("cpu", torch.bfloat16):
        projections = method.project(views_of(name), draw_of(method))
        loss = method.compare(projections, 0.25).loss
    assert torch.bfloat16 in {value.dtype for value in projections.values()}
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert torch.equal(method.compare(projections, 0.25).loss, loss)


@every_method
def test_checkpoints_hold_everything_that_moves(name):
    """Queues, centres, counts and target networks too: no buffer is left out of the state, and no tensor stands beside it."""
    method = CASES[name]()
    state = method.state_dict()
    held = dict(method.named_parameters()) | dict(method.named_buffers())
    assert state.keys() == held.keys()
    loose = [key for key, value in vars(method).items() if isinstance(value, torch.Tensor | nn.Module)]
    assert loose == []


@every_method
def test_state_loads_strictly(name):
    method, other, pair = CASES[name](), CASES[name](), views_of(name)
    with torch.no_grad():
        for number, parameter in enumerate(method.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random_at("moved", number)))
    expected = forward(method, pair).loss
    assert not torch.equal(forward(other, pair).loss, expected)
    other.load_state_dict(method.state_dict(), strict=True)
    assert torch.equal(forward(other, pair).loss, expected)
    incomplete = {key: value for key, value in method.state_dict().items() if not key.startswith("encoder.last")}
    with pytest.raises(RuntimeError, match="encoder.last"):
        other.load_state_dict(incomplete, strict=True)


@every_method
@pytest.mark.parametrize("rows", [4, 8])
def test_gradient_caching_is_the_large_batch(name, rows):
    """In pieces of whole groups that share statistics: 4 + 4 + 4 and 8 + 4 images."""
    large, pieces = (CASES[name]().double() for _ in range(2))
    pair, draw, progress = views_of(name, dtype=torch.float64), draw_of(large), torch.tensor(0.25)
    with shared_statistics(large, 4), shared_statistics(pieces, 4):
        expected = large(pair, draw, progress)
        expected.loss.backward()
        compared = in_pieces(pieces, pair, draw, progress, rows=rows, arithmetic=nullcontext, seed=lambda piece: None)
    torch.testing.assert_close(compared.loss, expected.loss, rtol=1e-10, atol=0)
    assert all(same(compared.kept[key], expected.kept[key]) for key in expected.kept)
    for (key, ours), theirs in zip(pieces.named_parameters(), large.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), key
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-10, msg=key)


def two_steps(name: str) -> dict[str, torch.Tensor]:
    """Losses, gradients and state of two steps of gradient descent on 12 images, wherever they run."""
    method = CASES[name]().double()
    share, results = 12 // world_size(), {}
    with shared_statistics(method, method.statistics_rows):
        model = wrap(method)
        for step in range(2):
            draw = draw_of(method, 12, step)
            mine = rows_of_this_process(views_of(name, dtype=torch.float64, seed=step), share)
            own_draw = dict(zip(draw, rows_of_this_process(list(draw.values()), share), strict=True))
            compared = model(mine, own_draw, torch.tensor(step / 2))
            compared.loss.backward()
            results |= {f"loss {step}": compared.loss.detach()}
            results |= {f"{part} {step}": value for part, value in compared.parts.items()}
            for key, parameter in method.named_parameters():
                if parameter.grad is not None:
                    results[f"gradient of {key} {step}"] = parameter.grad.clone()
                    parameter.data -= 0.1 * parameter.grad
                    parameter.grad = None
            method.after_step(compared.kept, torch.tensor(step / 2))
    return results | state_of(method)


def one_of_two() -> None:
    warnings.simplefilter("error")
    alone = {name: two_steps(name) for name in CASES}
    start("cpu", timeout_seconds=60)
    for name in CASES:
        together = two_steps(name)
        assert list(together) == list(alone[name])
        for key, value in together.items():
            tolerance = 1e-8 if name in DOUBLES else 1e-10
            assert same(value.double(), alone[name][key].double(), tolerance), (
                name,
                key,
                value,
                alone[name][key],
            )
            assert torch.equal(mean_over_ranks(value.double()), value.double()), (name, key)
    leave_processes()


def test_two_processes_are_one(tmp_path):
    """Loss, parts, gradients, running statistics, target and queue of every method, in float64."""
    run_two_processes(tmp_path, one_of_two)


@pytest.mark.parametrize("name", OF_THE_PACKAGE)
def test_any_module_is_an_encoder(name):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 9, 5, bias=False))
    with pytest.raises(RecipeError, match="Sequential has no num_features: pass width=E"):
        make(METHODS[name], encoder=encoder, projector=(10, 7))
    assert forward(make(METHODS[name], encoder=encoder, projector=(10, 7), width=5), views()).loss.isfinite()


def test_method_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Method()


def test_a_queue_and_a_target_move():
    """The doubles do what they are for: the tests above would pass with a method that does nothing after a step."""
    method = make(QueueAndTarget, queue=20)
    target, online = method.target[0].last.weight, method.encoder.last.weight
    with torch.no_grad():
        online.add_(1.0)
    before, queue = target.clone(), method.queue.clone()
    keys = [torch.full((12, 8), float(number)) for number in (2, 3)]
    for key in keys:
        method.after_step({"key": key}, 0.0)
    torch.testing.assert_close(target, before + 1 - 0.9**2)
    assert method.queue[:, 0].tolist() == [3.0] * 4 + [2.0] * 8 + [3.0] * 8 and method.place == 4
    assert not torch.equal(queue, method.queue) and not method.target[0].last.weight.requires_grad
    method.after_step({"key": keys[0]}, 1.0)
    torch.testing.assert_close(target, before + 1 - 0.9**2)  # at the end it stands still
