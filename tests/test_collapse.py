"""As SimSiam's document warns: without the stop-gradient it collapses, and the doctor says so within a few dozen steps."""

import numpy as np
import torch
from tiny import tiny_views
from torch import nn

from diptych.base.random_at import random_at
from diptych.embeddings.diagnose import diagnose
from diptych.methods import SimSiam
from diptych.training.optimizers import sgd


def train(stop_gradient: bool, steps: int = 100) -> tuple[object, float]:
    """The diagnosis after some steps on textured images, and the last loss."""
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    method = SimSiam(encoder, projector=(64, 64), predictor=16, stop_gradient=stop_gradient, width=64)
    optimizer, views = sgd(method, lr=0.3), tiny_views()
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((256, 3, 4, 4), np.float32))
    images = (255 * nn.functional.interpolate(coarse, size=12, mode="bilinear")).to(torch.uint8)
    loss = torch.zeros(())
    for step in range(steps):
        rows = torch.randperm(256, generator=random_at("rows", step))[:128]
        loss, *_ = method([view(images[rows], random_at("views", step, k)) for k, view in enumerate(views)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.eval()
    with torch.no_grad():
        pair = [view(images, random_at("look", k)) for k, view in enumerate(views)]
        z = method.project(pair, {})
        return diagnose(method.encoder(pair[0]), (z["z1"], z["z2"])), float(loss)


def test_without_the_stop_gradient_the_doctor_says_collapsed():
    found, loss = train(stop_gradient=False)
    assert loss < -0.7
    assert found.verdict == "COLLAPSED", found
    told = " ".join(found.advice).lower()
    for remedy in ("color", "learning rate", "projection head"):
        assert remedy in told.replace("colour", "color"), found.advice


def test_with_it_the_doctor_says_ok():
    found, loss = train(stop_gradient=True)
    assert loss > -0.65
    assert found.verdict == "OK", found
