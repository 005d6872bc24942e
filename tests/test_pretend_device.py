"""Training on a device that is not there (tests/pretend.py): nothing is mixed or waited for, and the CPU's numbers come out."""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fake_source import Fake, values_of
from pretend import DEVICE, PretendGraph, There, pretended_device
from tiny import TinyEncoder, tiny_images

from diptych.base.errors import RecipeError
from diptych.data.images import images
from diptych.methods import BYOL, DINO, BarlowTwins, CodingRate, Method, MoCo, SimSiam, SwAV
from diptych.methods.keras import keras_barlow_twins, keras_simsiam
from diptych.networks.batch_norm import shared_statistics
from diptych.networks.keras import KerasResNet20v2, KerasResNet34
from diptych.training import optimizers
from diptych.training.capture import capture, check_graph
from diptych.training.diary import Diary, State
from diptych.training.feed import Feed
from diptych.training.fused import Updates
from diptych.training.learner import Learner
from diptych.training.pretrain import loop
from diptych.training.schedules import warmup_cosine
from diptych.training.watch import Watches, collapse_watch, knn_watch
from diptych.views import View, barlow_twins, simsiam


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda where: 2**40)


@pytest.fixture
def device():
    with pretended_device() as pretended:
        yield pretended


class WithoutBias(TinyEncoder):
    """A bias before batch normalisation has a gradient of rounding errors, which LAMB blows up to the weights' size."""

    def __init__(self):
        super().__init__()
        self[0].bias = None


class Kept:
    """A keeper and a run that write nothing but remember the lines."""

    def __init__(self):
        self.lines: list[dict] = []

    def log(self, event, **fields):
        self.lines.append({"event": event, **fields})

    def due(self) -> bool:
        return False


def small(kind: Callable, encoder: Callable = WithoutBias, **options) -> Callable[[], Method]:
    def make() -> Method:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return kind(encoder(), projector=(16, 16), **options)

    return make


def train(make: Callable[[], Method], where: torch.device, optimizer: str = "lars", *, views: list[View] | None = None,
          watched: bool = False, precision: str = "float32", epochs: int = 1, batch: int = 12,
          statistics: int | None = None, slow_views: bool = False,
          graph: bool | str = False, **options) -> tuple[Method, list[dict]]:  # fmt: skip
    """The loop of `pretrain` over 48 tiny images; (the method, the lines of the log)."""
    photos = tiny_images()
    dtype = torch.float64 if precision == "float64" else torch.float32
    method = make().to(where, dtype).to(memory_format=torch.channels_last)
    made = getattr(optimizers, optimizer)(method, lr=0.05)
    views = views or barlow_twins(12)
    feed = Feed(photos, views, epochs=epochs, batch_size=batch, device=where, dtype=dtype)
    feed.together.chains = None if slow_views else feed.together.chains
    run, watches = Kept(), []
    if watched:
        pixels = photos.pixels()
        watches = [collapse_watch(method, pixels[:8], views), knn_watch(pixels, photos.labels, (0.5,) * 3, (0.25,) * 3)]
    with torch.random.fork_rng(), shared_statistics(method, statistics):
        learner = Learner(method, made, warmup_cosine(0.2), precision=precision, **options)
        if graph:
            capture(learner, feed, graph, print, log_steps=3)
        diary = Diary(run, State(), total=feed.total, steps_per_epoch=feed.steps_per_epoch, batch_size=batch,
                      log_steps=3, waits=where.type != "cpu")  # fmt: skip
        readings = Watches(watches, method.encoder, diary)
        loop(feed, learner, diary, run, watches=readings, stopping=None, request=SimpleNamespace(signal_name=None))
    return method, run.lines


def numbers(lines: list[dict]) -> list[float]:
    """All numbers of a log but those of clocks."""
    clocks = ("elapsed_seconds", "images_per_second")
    return [value for line in lines for key, entry in line.items() if key not in clocks
            for value in (entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else [entry])
            if isinstance(value, int | float)]  # fmt: skip


def compare(make: Callable[[], Method], within: float, **options) -> None:
    there, lines = train(make, DEVICE, **options)
    here, wanted = train(make, torch.device("cpu"), **options)
    assert {parameter.device for parameter in there.parameters()} == {DEVICE}
    steps = {line["step"] for line in lines}
    assert numbers(lines) == pytest.approx(numbers([line for line in wanted if line["step"] in steps]), rel=within)
    for (name, mine), his in zip(there.state_dict().items(), here.state_dict().values(), strict=True):
        torch.testing.assert_close(mine.cpu(), his, rtol=within, atol=within, msg=name)


def test_the_pretended_device_can_fail(device):
    here = torch.ones(3, 2)
    there = here.to(DEVICE)
    assert isinstance(there, There) and there.device == DEVICE
    with pytest.raises(RuntimeError, match="mixes"):
        there + here
    with pytest.raises(RuntimeError, match="mixes"):
        there[torch.tensor([0])]
    assert device.launched == {"_to_copy.default": 1} and device.uploads == [24]
    assert device.waits == [("blocking _to_copy.default", (3, 2))]
    with device.counting():
        torch.zeros_like(there).copy_(here.to(DEVICE, non_blocking=True)).copy_(here, non_blocking=True)
    assert device.waits == [] and device.uploads == [24, 24]
    with device.counting():
        assert float(there.sum()) == 6 and there[there[:, 0] > 0].shape == (3, 2) and there.t().cpu().shape == (2, 3)
    assert [name for name, _ in device.waits] == ["_local_scalar_dense.default", "index.Tensor", "_to_copy.default"]
    assert "t.default" not in device.launched and device.launched["sum.default"] == 1
    weight = there.clone().requires_grad_()
    with torch.autocast("pretend", torch.bfloat16):
        product = weight.t() @ there
    product.float().sum().backward()
    assert product.dtype == torch.bfloat16 and torch.equal(weight.grad.cpu(), torch.full((3, 2), 2.0))


ALL = {
    "coding_rate": (small(CodingRate), {"optimizer": "adamw", "slow_views": True}),
    "barlow_twins": (small(BarlowTwins), {}),
    "simsiam": (small(SimSiam, predictor=8), {"optimizer": "sgd", "views": simsiam(12)}),
    "micro_batch": (small(BarlowTwins), {"micro_batch": 6, "optimizer": "adamw"}),
    "lamb": (small(SimSiam, predictor=8), {"optimizer": "lamb", "clip_norm": 1.0}),
    "bfloat16": (small(BarlowTwins), {"precision": "bfloat16"}),
    "float64": (small(SimSiam, predictor=8), {"precision": "float64", "slow_views": True}),
    "watches": (small(BarlowTwins), {"watched": True}),
    "groups of rows": (small(BarlowTwins), {"statistics": 4}),
    "the Keras ResNet-34": (
        small(keras_barlow_twins, KerasResNet34, eps=1e-5),
        {"batch": 24, "optimizer": "sgd", "precision": "float64", "slow_views": True},
    ),
    "the Keras ResNet-20": (
        small(keras_simsiam, KerasResNet20v2, predictor=8),
        {"optimizer": "sgd", "slow_views": True},
    ),
}


@pytest.mark.parametrize("what", [pytest.param(what, marks=pytest.mark.slow if "34" in what else ()) for what in ALL])
def test_a_run_on_the_device_is_the_cpus(what, device):
    make, options = ALL[what]
    compare(make, 3e-2 if what == "bfloat16" else 1e-4, **options)


@pytest.mark.parametrize("what", ["barlow_twins", "micro_batch", "lamb", "bfloat16"])
def test_between_looks_nothing_is_waited_for(what, device, monkeypatch):
    looked: list[tuple[int, int]] = []  # waits before a look, and in it
    look = Diary.look

    def counted(diary, *flags):
        before = len(device.waits)
        result = look(diary, *flags)
        looked.append((before, len(device.waits) - before))
        device.waits.clear()
        return result

    monkeypatch.setattr(Diary, "look", counted)
    make, options = ALL[what]
    train(make, DEVICE, **options)
    assert len(looked) == 3, "after steps 0, 2 and 3"
    assert looked[0][1] == 1 and looked[1:] == [(0, 1)] * 2, "one wait for all that is printed, and none before"


@pytest.mark.parametrize(("free", "copied"), [(4 * 50 * 48, True), (4 * 50 * 48 - 1, False)])
def test_a_resident_set_is_on_the_device_once_if_it_fits(free, copied, device, monkeypatch):
    asked = []
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda where: asked.append(where) or free)
    photos, order = images(Fake(50), size=4, resident=True), list(range(49, -1, -1))
    photos.prepare()
    for _ in range(2):
        batches = [pixels for _, pixels in photos.read(order, 16, device=DEVICE)]
        assert [tuple(pixels.shape) for pixels in batches] == [(n, 3, 4, 4) for n in (16, 16, 16, 2)]
        assert {pixels.device for pixels in batches} == {DEVICE}
        monkeypatch.setattr("diptych.data.resident.free_bytes", None)  # never asked again
    assert asked == [DEVICE]
    assert max(device.uploads) == (50 * 48 if copied else 16 * 48), "at once, or batch by batch"
    assert values_of(torch.cat([batch.cpu() for batch in batches])) == order
    assert values_of(next(photos.read(order, 50))[1]) == order  # the CPU still has them


def one_step(make: Callable[[], Method], optimizer: str, device, **options) -> dict[str, int]:
    """Launches of the second step's update, by what they do."""
    counted: list[dict[str, int]] = []
    take = Updates.take

    def counts(updates, fine, rates):
        before = device.launched.copy()
        take(updates, fine, rates)
        counted.append(dict(device.launched - before))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updates, "take", counts)
        train(make, DEVICE, optimizer, **options)
    return counted[1]


def larc(module, lr):
    return optimizers.lars(module, lr, clip=True)


@pytest.mark.parametrize(("optimizer", "limit"), [("lars", 10), ("lamb", 10), ("sgd", 10), ("adamw", 10), ("larc", 14)])
def test_an_update_takes_few_launches(optimizer, limit, device, monkeypatch):
    monkeypatch.setattr(optimizers, "larc", larc, raising=False)
    launched = one_step(small(BarlowTwins), optimizer, device)
    staged = {"_to_copy.default": 1, "logical_not.default": 1}  # whether the step is fine
    assert sum(launched.values()) - sum(staged.values()) <= limit, launched
    assert staged.items() <= launched.items()


class Averages(BarlowTwins):
    """With a weight that follows another one, by a share that depends on progress; and a draw of its own."""

    def __init__(self, encoder, projector):
        super().__init__(encoder, projector)
        self.target = torch.nn.Parameter(torch.zeros(16, 8), requires_grad=False)

    def draw(self, n, rng):
        return {"noise": torch.randn(n, 16, generator=rng)}

    def project(self, views, draw):
        z = super().project(views, draw)
        return z | {"z1": z["z1"] + 0.1 * draw["noise"]}

    def after_step(self, kept, progress):
        self.target.lerp_(self.projector[0].weight.detach(), 1 - progress)


CAPTURED = {
    "barlow_twins": (small(BarlowTwins), {}),
    "simsiam, sgd": (small(SimSiam, predictor=8), {"optimizer": "sgd", "views": simsiam(12)}),
    "lamb": (small(SimSiam, predictor=8), {"optimizer": "lamb", "clip_norm": 1.0}),
    "adamw, bfloat16": (small(CodingRate), {"optimizer": "adamw", "precision": "bfloat16"}),
    "draws and targets": (small(Averages), {}),
    "slow views": (small(BarlowTwins), {"slow_views": True}),
    "byol": (small(BYOL, predictor=8), {"optimizer": "sgd"}),
    "moco": (small(MoCo, queue=32, statistics_rows=4), {"optimizer": "sgd", "statistics": 4}),
    "swav": (small(SwAV, prototypes=12, queue=24, queue_start=0.0), {"optimizer": "sgd"}),
    "dino": (small(DINO, prototypes=16, warmup=0.5), {"optimizer": "adamw"}),
    "as many steps between looks as are kept": (small(BarlowTwins), {"batch": 6, "epochs": 1}),
    "the Keras ResNet-20": (small(keras_simsiam, KerasResNet20v2, predictor=8), {"optimizer": "lamb"}),
}


# In the quick suite, this network is captured nowhere, runs above on the device, and LAMB is captured with another one.
@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.slow if "Keras" in what else ()) for what in CAPTURED]
)
def test_a_captured_step_is_the_eager_one(what, device, monkeypatch):
    """Bit for bit: a recording that is replayed on other numbers, in the memory that it was made with. Steps 3 to 7 are."""
    monkeypatch.setattr("diptych.base.graph.new_graph", lambda where: PretendGraph(device))
    make, options = CAPTURED[what][0], {"epochs": 2} | CAPTURED[what][1]
    eager, wanted = train(make, DEVICE, **options)
    with device.counting():
        captured, lines = train(make, DEVICE, graph=True, **options)
    assert device.launched["replay"] == 5 * (1 if "slow_views" in options else 2)
    assert numbers(lines) == numbers(wanted)
    for (name, mine), his in zip(captured.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.equal(mine.cpu(), his.cpu()), name


def test_a_captured_step_gathers_and_copies_nothing_outside(device, monkeypatch):
    """Images are read where they lie, and numbers where the recording writes them: there are two replays, and uploads."""
    monkeypatch.setattr("diptych.base.graph.new_graph", lambda where: PretendGraph(device))
    outside: list[dict[str, int]] = []
    uploaded: list[list[int]] = []
    of_loop = Learner.step

    def counted(learner, step, total, views):
        taken = of_loop(learner, step, total, views)
        outside.append(dict(device.launched - sum(map(Counter, outside), Counter())))
        uploaded.append(device.uploads[sum(map(len, uploaded)) :])
        return taken

    monkeypatch.setattr(Learner, "step", counted)
    with device.counting():
        train(small(BarlowTwins), DEVICE, epochs=2, graph=True)
    assert len(outside) == 8
    # step 5, replayed as those from step 3 on, comes between two looks; uploaded: places, draws, rates
    assert outside[5] == {"replay": 2, "_to_copy.default": 3, "copy_.default": 3}
    assert max(uploaded[5]) < 12 * 3 * 12 * 12, "no pixels"


class Reads(BarlowTwins):
    def compare(self, projections, progress):
        return super().compare(projections, float(progress))


def test_a_step_that_cannot_be_captured_goes_on_without(device, monkeypatch, capsys):
    """One line says why; `true` refuses."""
    monkeypatch.setattr("diptych.base.graph.new_graph", lambda where: PretendGraph(device))
    eager, wanted = train(small(Reads), DEVICE, "lamb", epochs=2)
    captured, lines = train(small(Reads), DEVICE, "lamb", epochs=2, graph="auto")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("note: steps run without a CUDA graph: aten._local_scalar_dense")
    assert numbers(lines) == numbers(wanted)
    assert all(torch.equal(mine.cpu(), his.cpu())
               for mine, his in zip(captured.state_dict().values(), eager.state_dict().values(), strict=True))  # fmt: skip
    with pytest.raises(RecipeError, match="cuda_graph: a step cannot be captured: .*; set it to auto or false"):
        train(small(Reads), DEVICE, epochs=2, graph=True)


def test_a_step_that_waits_is_not_recorded(device, monkeypatch, capsys):
    """It is noticed in the step before the recording, which is a step as any other: on a GPU a recording that fails is
    not without consequences."""

    @contextmanager
    def noticed(where):
        before, places = len(device.waits), []
        yield places
        places += ["losses.py, line 7"] * (len(device.waits) - before)

    monkeypatch.setattr("diptych.base.graph.waits_noticed", noticed)
    recorded: list[int] = []
    monkeypatch.setattr("diptych.base.graph.new_graph", lambda where: recorded.append(1) or PretendGraph(device))
    eager, wanted = train(small(Reads), DEVICE, "lamb", epochs=2)
    captured, lines = train(small(Reads), DEVICE, "lamb", epochs=2, graph="auto")
    assert recorded == [1], "the views alone"
    said = capsys.readouterr().out.splitlines()
    assert said == ["note: steps run without a CUDA graph: the device is waited for (losses.py, line 7)"]
    assert numbers(lines) == numbers(wanted)
    assert all(torch.equal(mine.cpu(), his.cpu())
               for mine, his in zip(captured.state_dict().values(), eager.state_dict().values(), strict=True))  # fmt: skip
    with pytest.raises(RecipeError, match="cuda_graph: a step cannot be captured: the device is waited for"):
        train(small(Reads), DEVICE, epochs=2, graph=True)


def test_a_copy_of_an_optimizer_does_not_warn_of_steps_without_a_graph(device):
    """`budget` and `plan` take their steps on copies; torch warns on a device, and warnings are errors here."""
    method = small(BarlowTwins)().to(DEVICE)
    method, optimizer = copy.deepcopy((method, optimizers.adamw(method, lr=0.05)))
    feed = Feed(tiny_images(), barlow_twins(12), epochs=1, batch_size=24, device=DEVICE)
    learner = Learner(method, optimizer, warmup_cosine(0.2))
    for step, views in feed.starting_at(0):
        learner.step(step, feed.total, views)
    assert len(optimizer.state) == len(learner.parameters)


def test_a_hindrance_is_said_on_a_device(device, capsys):
    learner = SimpleNamespace(device=DEVICE)
    capture(learner, None, "auto", print, log_steps=3, hindrance="it does not go together with micro_batch")
    assert capsys.readouterr().out == "note: steps run without a CUDA graph: it does not go together with micro_batch\n"
    capture(learner, None, False, print, log_steps=3, hindrance="cuda_graph is false")
    capture(
        SimpleNamespace(device=torch.device("cpu")),
        None,
        "auto",
        print,
        log_steps=3,
        hindrance="CUDA graphs need a GPU",
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "cpu"}, "need a GPU"),
        ({"micro_batch": 4}, "micro_batch"),
        ({"torch_compile": True}, "torch_compile"),
    ],
)
def test_what_cannot_be_captured_is_said_before_training(options, reason):
    options = {"device": "cuda"} | options
    where = torch.device(options.pop("device"))
    assert reason in check_graph("auto", where, **options)
    assert check_graph(False, where, **options) == "cuda_graph is false"
    with pytest.raises(RecipeError, match=f"cuda_graph: .*{reason}"):
        check_graph(True, where, **options)
