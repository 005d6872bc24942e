"""Feed, Learner, Diary, EarlyStop and the trial of a method, each built alone in a line."""

import pytest
import torch
from tiny import tiny_images, tiny_method, tiny_views
from torch import nn

from diptych.base.errors import RecipeError
from diptych.methods.method import Compared, Method
from diptych.training.diary import Diary, State
from diptych.training.early_stop import EarlyStop
from diptych.training.feed import Feed
from diptych.training.guard import undo_unless
from diptych.training.learner import Learner, Taken
from diptych.training.optimizers import sgd
from diptych.training.schedules import constant
from diptych.training.trial import try_method


class Mean(Method):
    """The smallest method: the loss is the distance between the mean embeddings of two views."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(432, 4))
        self.register_buffer("seen", torch.zeros(()))

    def project(self, views, draw):
        return {"a": self.encoder(views[0]), "b": self.encoder(views[1])}

    def compare(self, projections, progress):
        return Compared((projections["a"] - projections["b"]).square().mean(), {}, {"rows": projections["a"].detach()})

    def after_step(self, kept, progress):
        self.seen += len(kept["rows"])


class Log:
    """A run folder that keeps its lines in memory."""

    def __init__(self) -> None:
        self.lines: list[dict] = []

    def log(self, event: str, **fields: object) -> None:
        self.lines.append({"event": event, **fields})


# ---- Feed


def test_a_feed_gives_the_same_step_wherever_it_starts():
    feed = Feed(tiny_images(), tiny_views(), epochs=2, batch_size=12, seed=3)
    assert (feed.steps_per_epoch, feed.total) == (4, 8)
    steps = list(feed.starting_at(0))
    assert [step for step, _ in steps] == list(range(8))
    for start in (3, 4, 7):
        later = list(feed.starting_at(start))
        assert [step for step, _ in later] == list(range(start, 8))
        for (_, ours), (_, theirs) in zip(later, steps[start:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(steps[0][1][0], steps[4][1][0]), "each epoch has an order and draws of its own"


def test_an_epoch_of_a_feed_shows_each_image_once():
    images = tiny_images()
    feed = Feed(images, [], epochs=1, batch_size=10)
    seen = []
    feed.views_of = lambda images, step, places: seen.append(images[places])
    assert len(list(feed.starting_at(0))) == 4  # the short last batch is dropped
    rows = torch.cat(seen).flatten(1)
    assert len(rows) == 40 and len(rows.unique(dim=0)) == 40


# ---- Learner


def views_of(value: float = 0.5) -> list[torch.Tensor]:
    return [torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) + value for seed in (1, 2)]


def test_a_learner_takes_a_step():
    method = Mean()
    learner = Learner(method, sgd(method, lr=0.1), constant())
    before = method.encoder[1].weight.clone()
    first, second = learner.step(0, 2, views_of()), learner.step(1, 2, views_of())
    assert isinstance(first, Taken) and first.rates == [0.1] and second.numbers[0] < first.numbers[0]
    assert not torch.equal(method.encoder[1].weight, before) and float(method.seen) == 12


def test_a_learner_that_met_a_nan_moves_nothing_any_more():
    method = Mean()
    learner = Learner(method, sgd(method, lr=0.1), constant())
    learner.step(0, 4, views_of())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    taken = learner.step(1, 4, views_of(float("nan")))
    assert not taken.numbers[0].isfinite() and not learner.fine
    assert learner.step(2, 4, views_of()).numbers.isfinite().all() and not learner.fine
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_a_gradient_that_is_not_finite_counts_too():
    method = Mean()
    learner = Learner(method, sgd(method, lr=0.1), constant())
    method.encoder[1].weight.register_hook(lambda gradient: gradient * float("inf"))
    before = method.encoder[1].weight.clone()
    taken = learner.step(0, 4, views_of())
    assert taken.numbers[0].isfinite() and not taken.numbers[1].isfinite() and not learner.fine
    assert torch.equal(method.encoder[1].weight, before) and float(method.seen) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_undoing_is_exact_and_takes_any_number(dtype):
    odd = torch.tensor([1.5, -0.0, 0.0, 3e-39, 7.0])
    odd = torch.cat([odd, torch.tensor([float("nan"), float("inf")])]) if dtype.is_floating_point else odd
    now, before = odd.to(dtype), torch.arange(len(odd)).to(dtype)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[now.element_size()]
    for fine, expected in ((True, now), (False, before)):
        tensor = now.clone()
        undo_unless(torch.tensor(fine), [tensor], [before])
        assert torch.equal(tensor.view(bits), expected.view(bits))


# ---- Diary


def taken(step: int, loss: float = 1.0) -> Taken:
    return Taken(step, ["loss", "norm", "term"], torch.tensor([loss, 3.0, 2.0]), [0.1])


def test_a_diary_counts_logs_and_finds_the_bad_step():
    diary = Diary(Log(), State(), total=8, steps_per_epoch=4, batch_size=12, log_steps=3, waits=True)
    assert [step for step in range(8) if diary.due(step)] == [0, 2, 3, 5, 7]
    diary.taken = [taken(0), taken(1), taken(2)]
    assert diary.look(True, False) == (None, 0, [True, False])
    assert diary.state.step == 3 and diary.state.epoch_loss == 3.0
    assert [(line["event"], line["step"], line["parts"]) for line in diary.run.lines] == [
        ("step", 1, {"term": 2.0}),
        ("step", 3, {"term": 2.0}),
    ]
    diary.taken = [taken(3), bad := taken(4, float("nan")), taken(5)]
    look = diary.look()
    assert look.bad is bad and look.undone == 2 and diary.state.step == 4
    assert diary.end_epoch() == {"loss": 1.0} and diary.state.epoch_loss == 0.0


# ---- EarlyStop


def test_early_stopping_alone():
    stopping, state, method = EarlyStop("score", largest=True, patience=2), State(), Mean()
    ends = [
        stopping.ends(epoch, {"score": score}, True, state, method) for epoch, score in enumerate([1, 3, 2, 2.5], 1)
    ]
    assert ends == [False, False, False, True] and state.best_epoch == 2 and state.best == -3
    assert set(state.best_weights) == set(method.state_dict())
    with pytest.raises(RecipeError, match="patience is 0 epochs"):
        EarlyStop("loss", patience=0)


# ---- a method on trial


def broken(**parts):
    """`Mean` with some of its functions replaced."""
    method = Mean()
    method.__class__ = type("Broken", (Mean,), parts)
    return method


def grows(method: Mean, kept, progress) -> None:
    method.seen = torch.cat([method.seen.view(-1), kept["rows"][:, 0]])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: broken(views=range(3, 9)), "Broken takes 3 to 8 views of each image; the recipe's views are 2"),
        (lambda: broken(project=lambda *_: [torch.zeros(4, 2)]), "Broken.project returns a list; it must be a dict"),
        (
            lambda: broken(project=lambda *_: {"a": torch.zeros(3, 2)}),
            r"Broken.project gives 'a' of shape \(3, 2\) for 4",
        ),
        (lambda: broken(draw=lambda *_: {"mask": torch.zeros(2)}), r"Broken.draw gives 'mask' of shape \(2,\) for 4"),
        (
            lambda: broken(compare=lambda _, q, progress: q["a"].mean()),
            "Broken.compare returns a Tensor; it must be Compared",
        ),
        (
            lambda: broken(compare=lambda _, q, progress: Compared(q["a"].mean(0), {})),
            r"the loss of Broken has shape \(4,\)",
        ),
        (lambda: broken(compare=lambda _, q, progress: Compared(q["a"].mean().detach(), {})), "a gradient flows from"),
        (
            lambda: broken(compare=lambda _, q, p: Compared(q["a"].mean(), {"x": q["a"].mean()})),
            "the part 'x' must be a scalar",
        ),
        (
            lambda: broken(compare=lambda _, q, p: Compared(q["a"].mean(), {}, dict(q))),
            "what is kept must be detached, 'a' is",
        ),
        (lambda: broken(shown=lambda _, q: q["a"]), "Broken.shown gives Tensor; it must be two projections"),
        (lambda: broken(shown=lambda _, q: (q["a"], q["a"][:2])), r"Broken.shown gives \[\(4, 4\), \(2, 4\)\]"),
        (lambda: broken(after_step=grows), "Broken does not change 'seen' in place"),
    ],
)
def test_a_method_that_breaks_its_contract_fails_before_step_0(method, message):
    with pytest.raises(RecipeError, match=message):
        try_method(method(), tiny_views(), 12)


def test_a_trial_leaves_no_trace():
    method, random = tiny_method(), torch.get_rng_state()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    try_method(method, tiny_views(), 12)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    try_method(Mean(), tiny_views(), 12)
