"""`pretrain` says beforehand where the closed form was measured to be better, and says nothing where nothing was measured."""

import pytest
import torch
from test_cli import SMALL, diptych, photos  # noqa: F401  (photos: a fixture)

from diptych.training.advice import MEASURED, advise


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize("row", MEASURED)
def test_a_measured_loss_is_said_in_one_line(row):
    line = advise(row.images, method=row.method, budget=f"{60 * row.core_minutes:.0f}s", device="cpu")
    assert line is not None and "\n" not in line and "`diptych quick` is the better choice" in line
    assert max(row.quick[i] - row.trained[i] for i in (0, 1)) > 1  # more than a point


def test_nothing_is_said_of_what_was_not_measured(monkeypatch):
    assert advise(50_000, method="barlow_twins", budget="17m", device="cpu")
    assert advise(50_000, method="barlow_twins", budget="2h", device="cpu") is None
    assert advise(50_000, method="coding_rate", budget="1h", device="cpu") is None
    assert advise(100, method="barlow_twins", budget="1m", device="cpu") is None
    assert advise(1_000_000, method="barlow_twins", budget="1m", device="cpu") is None
    assert advise(50_000, method="barlow_twins", epochs=5, device="cpu")
    assert advise(50_000, method="barlow_twins", epochs=1000, device="cpu") is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert advise(50_000, method="barlow_twins", budget="17m", device="cpu") is None


def test_nothing_is_said_of_a_gpu(monkeypatch):
    monkeypatch.setattr("diptych.training.advice.choose_device", torch.device)
    assert advise(50_000, method="barlow_twins", budget="1m", device="cuda") is None


def test_the_command_says_it_before_it_trains(capsys, monkeypatch, photos, tmp_path):  # noqa: F811
    started = []

    def advise_once(images: int, *, method: str, **length) -> str:
        started.append((tmp_path / "run").exists())
        return f"note: {images} images, {method}"

    monkeypatch.setattr("diptych.commands.pretraining.advise", advise_once)
    code, _, said = diptych(capsys, "pretrain", str(photos), "--recipe", "demo", "--out", str(tmp_path / "run"), *SMALL)
    assert code == 0, said
    assert "images, barlow_twins" in said and started == [False]
