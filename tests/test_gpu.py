"""What only a true GPU can show: `python -m pytest -m gpu -n 0`. Each has a twin on the pretended device."""

import itertools

import pytest
import torch
from tiny import TinyEncoder, tiny_images
from torch import nn

from diptych.base.random_at import random_at
from diptych.methods import BarlowTwins, CodingRate, SimSiam
from diptych.methods.keras import keras_barlow_twins, keras_simsiam
from diptych.networks.keras import KerasResNet20v2, KerasResNet34
from diptych.training import optimizers
from diptych.training.capture import capture
from diptych.training.feed import Feed
from diptych.training.learner import Learner
from diptych.training.schedules import constant
from diptych.views import barlow_twins, simsiam
from diptych.views.together import Together

pytestmark = pytest.mark.gpu

METHODS = {
    "barlow_twins": lambda: BarlowTwins(TinyEncoder(), projector=(16, 16)),
    "simsiam": lambda: SimSiam(TinyEncoder(), projector=(16, 16), predictor=8),
    "coding_rate": lambda: CodingRate(TinyEncoder(), projector=(16, 16)),
    "the Keras ResNet-34": lambda: keras_barlow_twins(KerasResNet34(), projector=(16, 16), eps=1e-5),
    "the Keras ResNet-20": lambda: keras_simsiam(KerasResNet20v2(), projector=(16, 16), predictor=8),
}


def seeded(name: str) -> nn.Module:
    torch.manual_seed(1)
    return METHODS[name]()


@pytest.mark.parametrize("preset", [barlow_twins, simsiam])
def test_views_are_the_cpus(preset):
    views, images = preset(32), torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    draws = [view.sample(64, random_at("gpu", index)) for index, view in enumerate(views)]
    there, together = images.cuda(), Together(views)
    together.apply(there, draws)  # the libraries' own start
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        applied = together.apply(there, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for view, draw, mine in zip(views, draws, applied, strict=True):
        assert (mine.cpu() - view.apply(images, draw)).abs().max() <= 1e-4


def steps(name: str, optimizer: str, where: str, *, graph: bool | str = False, count: int = 8) -> tuple[list, dict]:
    """(numbers of each step, weights) of a few steps in float32, without TF32."""
    method = seeded(name).to(where).to(memory_format=torch.channels_last)
    feed = Feed(tiny_images(), barlow_twins(12), epochs=count, batch_size=24, device=where)
    learner = Learner(method, getattr(optimizers, optimizer)(method, lr=0.05), constant())
    said: list[str] = []
    capture(learner, feed, graph, said.append, hindrance=None if graph else "not asked for")
    taken = itertools.islice(feed.starting_at(0), count)
    numbers = [learner.step(step, feed.total, views).numbers for step, views in taken]
    assert said == []
    return torch.stack(numbers).tolist(), {key: value.cpu() for key, value in method.state_dict().items()}


@pytest.fixture
def exact():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_the_cpus(name, exact, monkeypatch):
    """Of the first step; later ones of networks with dropout draw otherwise."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda layer, x: x)
    there, here = (steps(name, "sgd", where, count=1)[0][0] for where in ("cuda", "cpu"))
    assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("optimizer", ["lars", "lamb", "sgd", "adamw"])
@pytest.mark.parametrize("name", METHODS)
def test_a_captured_step_is_the_eager_one(name, optimizer, exact):
    eager, weights = steps(name, optimizer, "cuda")
    captured, same = steps(name, optimizer, "cuda", graph=True)
    for mine, wanted in zip(captured, eager, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(same[key], value, rtol=1e-4, atol=1e-5, msg=key)
