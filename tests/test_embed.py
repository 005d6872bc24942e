"""Images to vectors, and the folder that keeps them."""

import errno
import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diptych.base.errors import DataError, OutputError, RecipeError
from diptych.embeddings.store import load_embeddings, save_embeddings
from diptych.networks.inference import Preprocessing, embeddings, prepare, raw_pixels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
EXPECTED = Preprocessing(16, MEAN, STD)


class Small(nn.Sequential):
    """A convolution, batch normalisation (whose mode matters), and the sizes of the batches it saw."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self[1].running_mean.normal_()
        self.saw = []

    def forward(self, images):
        self.saw.append(len(images))
        return super().forward(images)


def pixels(n, height=16, width=16):
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_an_embedding_is_the_encoder_of_the_normalized_image():
    encoder, images = Small(), pixels(11)
    made = embeddings(encoder, images, EXPECTED, batch_size=4)
    x = (images.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(3, 1, 1)
    with torch.no_grad():
        one_by_one = torch.cat([encoder.eval().double()(image[None]) for image in x])
    assert made.dtype == torch.float32 and not made.requires_grad
    torch.testing.assert_close(made.double(), one_by_one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(embeddings(encoder, images, EXPECTED).double(), one_by_one, atol=1e-5, rtol=1e-5)


def test_batches_are_bounded_and_told():
    encoder, told = Small(), []
    embeddings(encoder, pixels(11), EXPECTED, batch_size=4, progress=told.append)
    assert encoder.saw == [4, 4, 3]
    assert told == [4, 8, 11]


def test_an_iterable_of_batches_is_the_same():
    encoder, images = Small(), pixels(10)
    batches = (images[start : start + 3] for start in range(0, 10, 3))
    torch.testing.assert_close(embeddings(encoder, batches, EXPECTED), embeddings(encoder, images, EXPECTED))


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_has_its_own_mode_back(fails):
    encoder = Small().train()
    encoder[1].eval()  # frozen on purpose
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    expected = Preprocessing(1) if fails else EXPECTED  # 1 pixel: too small for the convolution
    try:
        embeddings(encoder, pixels(4), expected)
    except RuntimeError:
        assert fails
    else:
        assert not fails
    assert [module.training for module in encoder] == [True, False, True, True, True]
    assert encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_precisions():
    encoder, images = Small(), pixels(6)
    full = embeddings(encoder, images, EXPECTED)
    half = embeddings(encoder, images, EXPECTED, precision="bfloat16")
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)
    assert torch.equal(embeddings(encoder, images, EXPECTED, precision="tf32"), full)  # on a CPU
    with pytest.raises(RecipeError, match="float32, tf32, bfloat16"):
        embeddings(encoder, images, EXPECTED, precision="int8")
    assert embeddings(Small().double(), images, EXPECTED).dtype == torch.float32


def test_what_cannot_be_embedded():
    encoder = Small()
    with pytest.raises(DataError, match="no images"):
        embeddings(encoder, pixels(0), EXPECTED)
    with pytest.raises(DataError, match="float32"):
        embeddings(encoder, pixels(2).float(), EXPECTED)
    with pytest.raises(DataError, match="uint8"):
        raw_pixels(pixels(2)[:, :1], MEAN, STD)
    with pytest.raises(RecipeError, match=r"\(2, 5, 14, 14\)"):
        embeddings(nn.Sequential(*list(encoder)[:2]), pixels(2), EXPECTED)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(50, 70, 32), (70, 50, 32), (33, 33, 32), (20, 31, 32), (32, 48, 32)]
)
def test_resizing_is_pillows(height, width, size):
    image = torch.nn.functional.avg_pool2d(pixels(1, height + 6, width + 6).float(), 7, 1).round().to(torch.uint8)
    made = prepare(image, (0, 0, 0), (1, 1, 1), size)[0].permute(1, 2, 0) * 255
    scale = size / min(height, width)
    shape = round(width * scale), round(height * scale)
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize(shape, Image.Resampling.BILINEAR)
    pillow = torch.from_numpy(np.array(pillow.crop((left, top, left + size, top + size)))).float()
    assert (made - pillow).abs().max() < 1.01  # Pillow rounds to whole levels twice
    assert pillow.std() > 5


def test_without_a_size_nothing_is_resized():
    images = pixels(2, 9, 13)
    torch.testing.assert_close(prepare(images, (0, 0, 0), (1, 1, 1)) * 255, images.float())
    assert prepare(images, MEAN, STD).shape == (2, 3, 9, 13)


@pytest.mark.parametrize(("side", "kept"), [(8, 8), (32, 32), (64, 32)])
def test_raw_pixels(side, kept):
    images = pixels(3, side, side)
    made = raw_pixels(images, MEAN, STD)
    assert made.shape == (3, 3 * kept * kept)
    torch.testing.assert_close(made, prepare(images, MEAN, STD, kept).flatten(1))


KEYS = ["cat/1.jpg", "dog/\udcff.jpg", "naïve 😀.png", "cat/4.jpg"]


def save(folder, **changes):
    vectors = torch.arange(6.0).view(3, 2)
    given = {
        "keys": KEYS,
        "labels": [0, 1, 1, 0],
        "status": ["ok", "cut short", None, "ok"],
        "meta": {"size": 32},
    }
    return save_embeddings(folder, vectors, **(given | changes))


def test_saved_embeddings_come_back(tmp_path):
    saved = load_embeddings(save(tmp_path / "deep" / "out"))
    assert torch.equal(saved.vectors, torch.arange(6.0).view(3, 2))
    assert [row["key"] for row in saved.index] == KEYS
    assert [row["row"] for row in saved.index] == [0, None, 1, 2]
    assert saved.index[1] == {
        "key": KEYS[1],
        "label": 1,
        "status": "failed",
        "row": None,
        "error": "cut short",
    }
    counts = {"images": 4, "rows": 3, "width": 2, "dtype": "float32", "failed": 1}
    assert saved.meta == {"format": 1, "size": 32, **counts}
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]


def test_without_labels_and_failures(tmp_path):
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    saved = load_embeddings(save_embeddings(tmp_path / "out", np.ones((2, 3)), ["a", "b"]))
    assert saved.vectors.dtype == torch.float32
    assert saved.index == [{"key": k, "label": None, "status": "ok", "row": i} for i, k in enumerate("ab")]


def test_labels_may_be_numpys_or_torchs(tmp_path):
    labels = [np.int64(1), torch.tensor(2), "cat", None]
    saved = load_embeddings(save(tmp_path / "out", labels=labels))
    assert [row["label"] for row in saved.index] == [1, 2, "cat", None]


def test_nothing_is_overwritten(tmp_path):
    folder = save(tmp_path / "out")
    before = (folder / "vectors.npy").read_bytes()
    with pytest.raises(OutputError, match="not empty"):
        save(tmp_path / "out", meta={"size": 64})
    assert (folder / "vectors.npy").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        save(tmp_path / "file")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/out/.*no space left"):
        save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"keys": KEYS[:3]}, {"labels": [0]}, {"status": ["ok"] * 4}, {"status": ["bad"] * 4}]
)
def test_counts_must_fit(tmp_path, change):
    with pytest.raises(DataError):
        save(tmp_path / "out", **change)
    assert list(tmp_path.iterdir()) == []


def spoil_vectors(folder):
    (folder / "vectors.npy").write_bytes((folder / "vectors.npy").read_bytes()[:-4])


def spoil_index(folder):
    lines = (folder / "index.jsonl").read_text().splitlines(keepends=True)
    (folder / "index.jsonl").write_text("".join(lines[:-1]))


def spoil_row(folder):
    (folder / "index.jsonl").write_text(json.dumps({"key": "a", "status": "ok"}) + "\n")


def spoil_meta(folder):
    (folder / "meta.json").unlink()


def spoil_pickle(folder):
    np.save(folder / "vectors.npy", np.array([print], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("spoil", [spoil_vectors, spoil_index, spoil_row, spoil_meta, spoil_pickle])
def test_a_damaged_folder_is_told(tmp_path, spoil):
    folder = save(tmp_path / "out")
    spoil(folder)
    with pytest.raises(DataError, match="out"):
        load_embeddings(folder)


def test_the_slow_way_agrees_on_a_pixel():
    """Antialiased halving of a 4-pixel ramp, by hand: the triangle filter reaches two pixels to each side."""
    ramp = torch.tensor([0, 60, 120, 180], dtype=torch.uint8).expand(1, 3, 4, 4)
    made = prepare(ramp, (0, 0, 0), (1, 1, 1), 2)[0, 0, 0] * 255
    weights = [max(0.0, 1 - abs(i + 0.5 - 1.0) / 2) for i in range(4)]  # the first output pixel's centre is at 1.0
    expected = sum(w * v for w, v in zip(weights, [0, 60, 120, 180], strict=True)) / sum(weights)
    assert math.isclose(float(made[0]), expected, rel_tol=1e-5)
