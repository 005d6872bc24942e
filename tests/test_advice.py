"""What `diptych pretrain` says before and after it trains: what fits, whether flips suit the images, which stem it took."""

import numpy as np
import pytest
from test_cli import SMALL, diptych, photos  # noqa: F401  (photos: a fixture)
from test_flips import digits

from diptych.commands.pretraining import advice_on_flips
from diptych.commands.recipe import read_recipe
from diptych.data.images import images
from diptych.data.photographs import demo_source
from diptych.runs.run import Run


@pytest.fixture(scope="module")
def signs(tmp_path_factory):
    """Handwritten digits as .npy, (300, 8, 8, 3)."""
    file = tmp_path_factory.mktemp("data") / "digits.npy"
    np.save(file, digits()[:300].permute(0, 2, 3, 1).numpy())
    return file


def test_flips_of_signs_are_advised_against_before_training(signs, tmp_path, capsys):
    words = ["pretrain", str(signs), "--recipe", "demo", "--out", str(tmp_path / "run"), *SMALL, "watch.knn=false"]
    code, _, told = diptych(capsys, *words)
    assert code == 0, told
    [line] = [line for line in told.splitlines() if "left and right matter" in line]
    assert line.endswith("to train without flips, add views.0.do.1.horizontal_flip.p=0")
    assert (
        Run(tmp_path / "run").recipe["views"][0]["do"][1]["horizontal_flip"]["p"] == 0.5
    )  # it is for the user to change
    assert "left and right" not in diptych(capsys, *words, "--resume")[2]
    assert "left and right" not in diptych(capsys, *words, "--overwrite", "views.0.do.1.horizontal_flip.p=0")[2]


def test_the_advice_names_every_flip_and_keeps_quiet_about_photographs(signs):
    photos = images(signs, size=32)  # noqa: F811
    both = read_recipe("barlow-twins-cifar10")["views"]
    keys = " ".join(f"views.{i}.do.4.horizontal_flip.p=0" for i in range(2))
    assert advice_on_flips(both, photos).endswith(f"add {keys}")
    assert advice_on_flips(read_recipe("barlow-twins-cifar10", keys.split())["views"], photos) == ""
    assert advice_on_flips(both, images(demo_source())) == ""


def test_a_run_says_what_was_left_out_and_the_stem_that_it_took(photos, tmp_path, capsys):  # noqa: F811
    words = ["pretrain", str(photos), "--recipe", "demo", "--out", str(tmp_path / "run"), *SMALL]
    code, out, told = diptych(capsys, *words, "encoder.stem=auto", "method.name=simsiam", "images.size=48")
    assert code == 0, told
    assert told.splitlines()[:2] == [
        "method simsiam does not take off_diagonal_weight: left out",
        "images.size is 48: sizes of views follow (32 -> 48 pixels)",
    ]
    assert "encoder resnet18, stem small-stride2" in out.splitlines()
    assert Run(tmp_path / "run").recipe["encoder"]["stem"] == "small-stride2"
    code, out, told = diptych(capsys, *words, "encoder.stem=auto", "--overwrite")
    assert code == 0 and "encoder resnet18, stem small" in out.splitlines()
