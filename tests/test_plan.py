"""`diptych plan`: the images at a glance, what a recipe takes, a proposal that can be typed."""

import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import SMALL, diptych, photos  # noqa: F401  (photos: a fixture)
from tiny import tiny_images, tiny_method, tiny_views

from diptych.base import arithmetic
from diptych.commands import planning
from diptych.commands.planning import Planned, epochs_within, size_within
from diptych.commands.recipe import read_recipe
from diptych.data.glance import Glance, glance
from diptych.data.images import images
from diptych.training.forecast import Pace, measure_pace
from diptych.training.learner import Learner
from diptych.training.optimizers import lars
from diptych.training.schedules import warmup_cosine

PLENTY = Pace(step=0.1, cpu=0.1, image=1e-4, first=0.2, measured=32, batch_size=32, memory=10**8, disk=10**7)


def seen(side: int) -> Glance:
    return Glance(1000, np.full((10, 2), side), 0, 0)


def planned(count: int = 6400, pace: Pace = PLENTY, **settings) -> Planned:
    sections = read_recipe(
        "barlow-twins-small", ["images.size=64", *(f"pretrain.{k}={v}" for k, v in settings.items())]
    )
    return Planned(sections, pace, count, reading=1.0, labels=False)


def test_sizes_copies_and_bad_files_at_a_glance(tmp_path):
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(40, 30)] * 5 + [(80, 90)]):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    result = glance(images(tmp_path, size=16, labels="none", resident=False))
    assert (result.images, result.looked_at, result.bad, result.copies, result.short_side) == (8, 8, 1, 1, 30)
    text = str(result)
    assert (
        "8 images, 40 x 30 to 80 x 90 pixels, median 40 x 30 pixels; 1 exact copies" in text
        and "1 cannot be read" in text
    )


@pytest.mark.parametrize(("gain", "chosen"), [(2.0, "bfloat16"), (0.64, "float32")])
def test_auto_is_measured_in_the_precision_that_it_will_take(gain, chosen, monkeypatch):
    learners = []
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda where: gain)
    monkeypatch.setattr(planning, "Learner", lambda *_, precision, **options: learners.append(precision))
    monkeypatch.setattr(planning, "measure_pace", lambda *_, learn, **options: learn(None, None) or PLENTY)
    sections = read_recipe("barlow-twins-small", ["images.size=12", "views.0.do.0.random_resized_crop.size=12"])
    assert sections["pretrain"]["precision"] == "auto"
    result = planning.plan(sections, tiny_images(), tiny_images().pixels(), 100.0)
    assert learners == [chosen]
    assert f", {chosen})" in planning.described("barlow-twins-small", result)[0]


def test_a_glance_ends_in_time():
    result = glance(tiny_images(200), seconds=0)
    assert result.looked_at == 1 and "(1 of them looked at)" in str(result)


def test_arrays_are_compared_by_pixels():
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    assert glance(images(np.concatenate([pixels, pixels[:1]]))).copies == 1


def pace_of(batch_size: int, within: float = 0.2, rows: int | None = None) -> Pace:
    method = tiny_method()
    method.statistics_rows = rows
    optimizer = lars(method, lr=0.5)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    pixels = tiny_images(20).pixels()
    pace = measure_pace(method, tiny_views(), optimizer, pixels, batch_size=batch_size, within=within,
                        learn=lambda m, o: Learner(m, o, warmup_cosine()), device=torch.device("cpu"))  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())  # copies were trained
    return pace


def test_a_few_steps_are_measured():
    pace = pace_of(24)
    assert pace.step > 0 and pace.cpu > 0 and 0 < pace.image < pace.step and pace.measured == pace.batch_size == 24
    assert pace.memory > 0 and pace.disk > 0


def test_a_batch_that_would_take_too_long_is_measured_in_part():
    pace = pace_of(100_000, within=0.01)
    assert pace.measured < 20_000 and pace.batch_size == 100_000
    assert 0.1 < pace.step * pace.measured / 100_000 / pace_of(pace.measured).step < 10  # in proportion


def test_a_part_of_a_batch_has_groups_of_rows_that_share_statistics():
    assert pace_of(100_000, within=0.01, rows=25).measured % 25 == 0  # 32 rows are tried where there are no groups


def test_a_run_is_its_steps_readings_and_end():
    assert PLENTY.seconds(100, 0, 0) == pytest.approx(0.2 + 10 + 5 * 1024 * 1e-4)
    assert PLENTY.seconds(0, 500, 3) - PLENTY.seconds(0, 500, 1) == pytest.approx(0.1)
    run = planned(epochs=20, batch_size=128)
    assert (run.steps, run.readings, run.steps_an_epoch) == (1000, 21, 50)
    assert (
        planned(budget="10s").steps == 100
        and planned(budget="7 steps").steps == 7
        and planned(watch_epochs=5, epochs=20).readings == 5
    )


@pytest.mark.parametrize("limit", [60, 600, 3000])
def test_the_epochs_of_a_proposal_fit_the_time(limit):
    run = planned(epochs=1)
    epochs = epochs_within(run, limit)
    assert planned(epochs=epochs).seconds + run.reading <= limit < planned(epochs=epochs + 1).seconds + run.reading
    assert epochs_within(run, 0.1) == 1 and epochs_within(run, 1e9) == planning.MOST_EPOCHS


def test_larger_images_take_more_time():
    sizes = [size_within(planned(), seen(500), limit) for limit in (10, 160, 600, 6000)]
    assert sizes == sorted(sizes) and sizes[0] == 32 and sizes[-1] == 128  # twice the recipe's at most
    assert size_within(planned(), seen(40), 6000) == 32  # the images have no more


def test_the_command_proposes_a_command(photos, capsys):  # noqa: F811
    code, out, err = diptych(
        capsys, "plan", photos, "--recipe", "demo", "--budget", "30s", *SMALL[:2], "watch.images=8"
    )
    assert code == 0, err
    assert re.search(r"24 images, 48 x 40 pixels; 0 exact copies", out)
    assert (
        "it cannot be trained: a batch of 128 is larger than the 24 images" in out and "s per step of 128 images" in out
    )
    words = shlex.split(out.splitlines()[-1])
    assert words[:3] == ["diptych", "pretrain", str(photos)]
    changes = dict(word.split("=", 1) for word in words if "=" in word)
    assert int(changes["pretrain.batch_size"]) == 16 and float(changes["optimizer.lr"]) == pytest.approx(
        0.000707, rel=1e-3
    )
    assert int(changes["pretrain.epochs"]) >= 1
    recipe = read_recipe("demo", [word for word in words if "=" in word])
    assert recipe["encoder"]["channels"] == [8, 8, 8, 8]  # what was overridden stays


@pytest.mark.parametrize(
    "words, code, message",
    [(["--budget", "soon"], 2, "is not a duration"), (["--recipe", "demmo"], 2, "did you mean demo"),
     (["optimizer.lrr=1"], 2, "lrr")],
)  # fmt: skip
def test_mistakes_are_one_line(words, code, message, photos, capsys):  # noqa: F811
    result, _, err = diptych(capsys, "plan", photos, *words)
    assert result == code and message in err and err.count("\n") == 1


def test_a_source_without_readable_images(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no")
    code, _, err = diptych(capsys, "plan", tmp_path, "--recipe", "demo")
    assert code == 3 and "no image can be read" in err
