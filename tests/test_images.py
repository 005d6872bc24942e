"""`images`: keys, labels and pixels that stay in step, whatever the source holds."""

import os
import warnings

import numpy as np
import pytest
import torch
from fake_source import Fake, picture, values_of, write
from PIL import Image
from shared import shared

from diptych.base.errors import DataError, RecipeError
from diptych.data.images import NAMED, BadImage, images

TREE = ("b/1.png", "a/2.png", "a/1.png", "c/1.jpg")


# --- pixels


def test_a_folder_becomes_a_tensor(tmp_path):
    found = images(write(tmp_path, *TREE))  # c/1.jpg is a PNG: no matter
    assert (len(found), found.size, found.classes, found.labels) == (4, 4, ["a", "b", "c"], [0, 0, 1, 2])
    assert found.keys == ["a/1.png", "a/2.png", "b/1.png", "c/1.jpg"] and found.keys[1:3] == [
        "a/2.png",
        "b/1.png",
    ]
    pixels = found.pixels()
    assert pixels.dtype == torch.uint8 and pixels.shape == (4, 3, 4, 4) and pixels.is_contiguous()
    assert values_of(pixels) == [2, 1, 0, 3] and found.failed == []
    assert found.pixels() is pixels  # decoded once


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_images_are_left_out_of_everything(workers):
    bad = [0, 5, 6, 199]
    found = images(Fake(200, bad, label=lambda i: "even" if i % 2 == 0 else "odd"), size=4)
    before = found.fingerprint
    found.prepare(workers)
    pixels = found.pixels()
    good = [i for i in range(200) if i not in bad]
    assert values_of(pixels) == good and len(found) == 196 == len(found.labels)
    assert found.keys == [f"fake/{i}" for i in good] and found.labels == [i % 2 for i in good]
    assert found.failed == [{"key": f"fake/{i}", "reason": "not an image (starts with 'text')"} for i in bad]
    assert found.fingerprint == before
    assert values_of(found.load(7)[None]) == [10]


def test_on_bad_error_names_the_image():
    with pytest.raises(BadImage, match=r"^fake/7: not an image"):
        images(Fake(20, [7, 9]), on_bad="error").pixels()


def test_too_many_bad_images_stop_the_pass():
    assert len(images(Fake(40, range(1, 11))).pixels()) == 30  # ten are few, whatever their share
    with pytest.raises(DataError, match="11 of 40 images cannot be read, too many; first: fake/1"):
        images(Fake(40, range(1, 12))).pixels()
    with pytest.raises(DataError, match="no image can be read, first: fake/0"):
        images(Fake(3, range(3)), size=4).pixels()


def test_a_long_run_of_bad_images_stops_the_pass(monkeypatch):
    monkeypatch.setattr("diptych.data.unreadable.BAD_SHARE", 1.0)
    assert len(images(Fake(300, range(100, 200))).pixels()) == 200
    assert len(images(Fake(300, range(1, 300, 2))).pixels()) == 150  # no two in a row
    with pytest.raises(DataError, match="101 of 300"):
        images(Fake(300, range(100, 201))).pixels()


def test_files_that_vanish_or_refuse_are_bad_and_the_rest_goes_on(tmp_path, monkeypatch):
    found = images(write(tmp_path, *TREE))
    os.unlink(tmp_path / "a" / "2.png")
    real = open

    def refusing(path, *rest, **options):
        if os.fsencode(path).endswith(b"b/1.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)

    monkeypatch.setattr("builtins.open", refusing)
    assert values_of(found.pixels()) == [2, 3]
    assert [bad["reason"] for bad in found.failed] == [
        "ENOENT: No such file or directory",
        "EACCES: Permission denied",
    ]


def test_progress_counts_to_the_end():
    calls = []
    images(Fake(150), progress=lambda *call: calls.append(call)).prepare(2)
    assert calls == [(64, 150), (128, 150), (150, 150)]


# --- size


class Sized(Fake):
    def __init__(self, *sizes):
        super().__init__(len(sizes))
        self.sizes = sizes

    def read(self, i: int) -> bytes:
        return picture(i, *self.sizes[i])


def test_native_size_needs_squares_of_one_size():
    assert images(Sized((9, 9), (9, 9))).size == 9
    for sizes in (((9, 9), (8, 8)), ((9, 8), (9, 8))):
        with pytest.raises(DataError, match=r"pass size, such as size=224.*seen: (8 x 8, 9 x 9|9 x 8)\)"):
            images(Sized(*sizes))
    late = images(Sized(*[(9, 9)] * 20, (7, 9), *[(9, 9)] * 20))
    with pytest.raises(DataError, match="fake/20 is 7 x 9, others are 9 x 9: pass size"):
        late.pixels()


def test_size_and_fit():
    pixels = np.zeros((1, 10, 20, 3), np.uint8)
    pixels[:, :, 5:15] = 255
    assert (images(pixels, size=10).pixels() == 255).all()  # the centre
    squashed = images(pixels, size=10, fit="squash").pixels()
    assert squashed.shape == (1, 3, 10, 10) and squashed.float().mean() == pytest.approx(127.5, abs=1)
    assert images(Fake(3), size=5).pixels().shape == (3, 3, 5, 5)


def test_background_and_max_pixels_reach_the_decoder(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (images(tmp_path).pixels() == 255).all()
    assert (images(tmp_path, background="#010203").pixels()[0, :, 0, 0] == torch.tensor([1, 2, 3])).all()
    with pytest.raises(BadImage, match="max_pixels=15"):
        images(tmp_path, size=4, max_pixels=15, on_bad="error").pixels()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"on_bad": "ignore"}, "on_bad is 'ignore'; it must be one of skip, error"),
        ({"fit": "pad"}, "fit is 'pad'; it must be one of crop, squash"),
        ({"background": "wite"}, "background='wite' is not a colour"),
        ({"size": 0}, "size is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(RecipeError, match=message):
        images(Fake(3), **options)


# --- arrays and labels

ARRAY = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 3), dtype=np.uint8)


def test_arrays_and_tensors_pass_through_unchanged():
    first = torch.from_numpy(ARRAY).permute(0, 3, 1, 2)
    for source in (ARRAY, first, first.contiguous().numpy()):
        found = images(source)
        assert torch.equal(found.pixels(), first) and found.keys == list("012345")
        assert found.labels is None and found.classes is None
    assert images(ARRAY).pixels().data_ptr() != ARRAY.ctypes.data  # never the caller's memory
    assert images(ARRAY).fingerprint == images(ARRAY.copy()).fingerprint
    assert images(ARRAY).fingerprint != images(ARRAY ^ 1).fingerprint
    with pytest.raises(DataError, match="must be uint8"):
        images(first.float())


def test_given_labels():
    assert images(ARRAY, labels=[3, 1, 0, 3, 1, 1]).labels == [3, 1, 0, 3, 1, 1]
    assert images(ARRAY, labels=torch.tensor([3, 1, 0, 3, 1, 1])).classes == ["0", "1", "2", "3"]
    words = images(ARRAY, labels=["cat", "ant", "cat", "bee", "cat", "ant"])
    assert words.classes == ["ant", "bee", "cat"] and words.labels == [2, 0, 2, 1, 2, 0]
    assert images(Fake(2), labels=[1, 0]).labels == [1, 0]
    with pytest.raises(DataError, match=r"6 images need labels of shape \(6,\), these are \(2,\)"):
        images(ARRAY, labels=[0, 1])


def test_labels_from_a_table(tmp_path):
    folder, table = write(tmp_path / "photos", "a/1.png", "2.png"), tmp_path / "labels.csv"
    table.write_text("file,kind,part\n2.png,dog,train\na/1.png,cat,\nelsewhere.png,cow,test\n", "utf-8")
    found = images(folder, labels=f"{table}:kind")
    assert found.classes == ["cat", "dog"]
    assert {key: found.classes[label] for key, label in zip(found.keys, found.labels, strict=True)} == {
        "2.png": "dog",
        "a/1.png": "cat",
    }
    with pytest.raises(DataError, match=r"labels .*labels.csv:part: 1 of 2 images have no label \(first: a/1.png\)"):
        images(folder, labels=f"{table}:part")
    with pytest.raises(RecipeError, match="has no column 'class' after that of the names; it has kind, part"):
        images(folder, labels=f"{table}:class")
    with pytest.raises(DataError, match="labels .*absent.csv is missing"):
        images(folder, labels=f"{tmp_path / 'absent.csv'}:kind")
    with pytest.raises(RecipeError, match="it must be auto, folder, none or FILE.csv:COLUMN"):
        images(folder, labels=str(table))


def test_labels_are_for_all_images_or_for_none():
    with pytest.raises(DataError, match=r"1 of 3 images have no label \(first: fake/1\): labels='none'"):
        images(Fake(3, label={0: "a", 1: None, 2: "b"}.get))
    assert images(Fake(3, label={0: "a", 1: None, 2: "b"}.get), labels="none").labels is None
    assert images(ARRAY, labels=[-1] * 6).labels is None


def test_source_of_nothing_and_named_source(monkeypatch):
    with pytest.raises(DataError, match="no images"):
        images(Fake(0), size=4)
    monkeypatch.setitem(NAMED, "fake", lambda: Fake(5))
    assert values_of(images("fake").pixels()) == [0, 1, 2, 3, 4]


def test_what_the_source_left_out_is_told(tmp_path):
    (write(tmp_path, *TREE) / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.warns(UserWarning, match=r"1 entries of the source left out, first: gone.png \(a broken link\)"):
        images(tmp_path)


# --- subsets


@pytest.mark.parametrize("resident", [False, True])
def test_subset(resident):
    whole = images(Fake(30, label=lambda i: f"class {i % 3}"))
    if resident:
        whole.pixels()
    part = whole.subset(torch.tensor([7, 2, 2]))
    assert len(part) == 3 and part.keys == ["fake/7", "fake/2", "fake/2"]
    assert part.labels == [1, 2, 2] and part.classes == ["class 0", "class 1", "class 2"]
    assert values_of(part.pixels()) == [7, 2, 2] and values_of(part.subset([1]).pixels()) == [2]
    assert len({whole.fingerprint, part.fingerprint, whole.subset([2, 7]).fingerprint}) == 3
    assert whole.subset(range(30)).fingerprint == whole.fingerprint
    assert len(whole) == 30 and len(whole.labels) == 30


def test_bad_images_of_a_subset_are_its_own():
    whole = images(Fake(50, [4]))
    part = whole.subset([3, 4, 5])
    assert values_of(part.pixels()) == [3, 5] and part.failed[0]["key"] == "fake/4"
    assert whole.failed == [] and len(whole) == 50


# --- CIFAR-10


def test_cifar10_parquet():
    pytest.importorskip("pyarrow")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = images(shared("data/cifar10-lossless-subset-test.parquet"))
        pixels = found.pixels()
    assert pixels.shape == (1017, 3, 32, 32) and found.size == 32
    assert [found.classes[k] for k in found.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    assert pixels[0, :, 0, 0].tolist() == [158, 112, 49]  # the first pixel of CIFAR-10's first test image
