"""One labelled set as two: shares of each class, groups in one piece, refusals."""

import numpy as np
import pytest

import diptych
from diptych.base.errors import DataError, RecipeError
from diptych.data.images import images

PIXELS = np.zeros((60, 8, 8, 3), np.uint8)


def labelled(labels, keys=None):
    photos = images(PIXELS[: len(labels)], labels=labels)
    if keys is not None:
        photos.squares.source.key = lambda row: keys[row]
    return photos


def keys_of(part) -> list[str]:
    return [str(key) for key in part.keys]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_each_class_gives_its_share(share):
    labels = ["a"] * 40 + ["b"] * 15 + ["c"] * 5
    train, test = diptych.split(labelled(labels), share)
    assert sorted([*keys_of(train), *keys_of(test)], key=int) == [str(row) for row in range(60)]
    for part, total in (("a", 40), ("b", 15), ("c", 5)):
        count = sum(test.classes[label] == part for label in test.labels)
        assert count == min(max(1, round(share * total)), total - 1)


def test_the_seed_decides():
    labels = ["a", "b"] * 30
    one, again, other = (keys_of(diptych.split(labelled(labels), seed=seed)[1]) for seed in (0, 0, 1))
    assert one == again != other


def test_groups_stay_together():
    labels = [["a", "b"][row % 2] for row in range(60)]
    keys = [f"patient_{row // 6}/{row}.png" for row in range(60)]
    for seed in range(5):
        train, test = diptych.split(labelled(labels, keys), 0.3, group_by=r"patient_(\d+)", seed=seed)
        groups = [{key.split("/")[0] for key in keys_of(part)} for part in (train, test)]
        assert not groups[0] & groups[1] and len(groups[1]) == 3
        assert set(train.labels) == {0, 1}


@pytest.mark.parametrize("labels, options, message", [
    (["a"] * 5 + ["b"], {}, "class 'b' has one image"),
    (["a", "b"] * 5, {"group_by": "x"}, "group_by='x' does not match '0'"),
    (["a", "b"] * 5, {"group_by": "^"}, "makes 1 group"),
])  # fmt: skip
def test_what_cannot_be_split(labels, options, message):
    with pytest.raises(DataError, match=message):
        diptych.split(labelled(labels), **options)


@pytest.mark.parametrize("options", [{"group_by": "("}, {"share": 0.0}, {"share": 1.0}])
def test_what_is_no_option(options):
    with pytest.raises(RecipeError, match="group_by|share"):
        diptych.split(labelled(["a", "b"] * 5), **options)


def test_without_labels():
    with pytest.raises(DataError, match="images without labels cannot be split"):
        diptych.split(images(PIXELS))
