"""A label for every image: right where classes are apart, honest about how often, safe in a spreadsheet."""

import csv
import io
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from test_cli import diptych

from diptych.base.errors import DataError, OutputError
from diptych.data.images import images
from diptych.downstream.classify import HeldOut, beside, best_factor, classify, label, table_of
from diptych.networks.encoders import encoder
from diptych.runs.encoder import Preprocessing, save_encoder

COLOURS = {"cat": (220, 60, 40), "dog": (40, 60, 220)}


def photographs(folder, count, spread=20, classes=True):
    rng = np.random.default_rng(len(str(folder)))
    for kind, colour in COLOURS.items():
        place = folder / kind if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.clip(rng.normal(colour, spread, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{kind}{i}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder folder, `labelled/cat|dog`, and `new` with 5 of each and a broken file."""
    root = tmp_path_factory.mktemp("classify")
    torch.manual_seed(0)
    save_encoder(root / "encoder", encoder("resnet18", "small", 16, channels=(8, 8, 8, 8)), Preprocessing(16))
    photographs(root / "labelled", 10)
    photographs(root / "new", 5, classes=False)
    (root / "new" / "=broken.png").write_bytes(b"not a picture")
    return root


def test_every_image_gets_a_row(place, tmp_path, capsys):
    code, out, _ = diptych(capsys, "classify", place / "encoder", place / "new", "--train", place / "labelled",
                           "--out", tmp_path / "labels.csv")  # fmt: skip
    assert code == 0
    with open(tmp_path / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "probability", "reason"] and len(rows) == 11
    broken = next(row for row in rows if "broken" in row["path"])
    assert broken["path"] == "'=broken.png" and broken["label"] == broken["probability"] == ""
    assert "not an image" in broken["reason"]
    for row in rows:
        if row is not broken:
            assert row["path"].startswith(row["label"]) and 0.5 < float(row["probability"]) <= 1
            assert row["reason"] == ""
    assert "11 images, 1 of them unreadable" in out and "  cat  5\n  dog  5\n" in out
    assert "held-out accuracy 100.0 % [51.0-100.0]" in out  # 4 images: Wilson's interval
    assert "fitted on 16 of them and tested on the other 4" in out and "fitted on all 20 labelled" in out

    code, _, err = diptych(capsys, "classify", place / "encoder", place / "new", "--train", place / "labelled",
                           "--out", tmp_path / "labels.csv")  # fmt: skip
    assert code == 6 and "exists already" in err


def test_parquet_holds_the_same(place, tmp_path):
    new, known = (images(place / name, size=16) for name in ("new", "labelled"))
    made = classify(place / "encoder", new, known, out=tmp_path / "labels.parquet", show=False)
    table = pyarrow.parquet.read_table(tmp_path / "labels.parquet").to_pylist()
    assert [tuple(row.values()) for row in table] == made.rows
    assert {row["path"]: row["label"] for row in table}["=broken.png"] is None
    assert made.counts == {"cat": 5, "dog": 5, None: 1}


def test_a_stream_gives_the_same_rows(place, tmp_path):
    """Larger sets are decoded as they go: a bad image then turns up in the middle, among the labelled ones too."""
    resident = classify(
        place / "encoder", images(place / "new", size=16), images(place / "labelled", size=16), show=False
    )
    labelled = shutil.copytree(place / "labelled", tmp_path / "labelled")
    (labelled / "cat" / "cat50.png").write_bytes(b"broken")
    new, known = (images(folder, size=16, resident=False) for folder in (place / "new", labelled))
    streamed = classify(place / "encoder", new, known, show=False)
    assert streamed.labelled == resident.labelled == 20
    assert [row[:2] for row in streamed.rows] == [row[:2] for row in resident.rows]


def test_impossible_tasks_are_refused_before_the_work(place, tmp_path):
    new, known = (images(place / name, size=16) for name in ("new", "labelled"))
    for out, message in (
        (tmp_path / "x.txt", "ends in neither"),
        (tmp_path / "no" / "x.csv", "does not exist; create it"),
    ):
        with pytest.raises(OutputError, match=message):
            classify("nowhere", new, known, out=out)
    with pytest.raises(DataError, match="labelled images have no labels"):
        classify(place / "encoder", new, images(place / "new", size=16, labels="none"), show=False)
    with pytest.raises(DataError, match="two classes"):
        classify(place / "encoder", new, images(place / "labelled" / "cat", labels=["cat"] * 10, size=16), show=False)


def test_accuracy_and_probabilities_are_honest():
    """Two normal clouds with a known overlap: what is said of them agrees with 20,000 new ones."""
    rng = torch.Generator().manual_seed(0)

    def draw(n):
        y = torch.arange(n) % 2
        return torch.randn(n, 40, generator=rng) + y[:, None] * torch.tensor([1.5] + [0.0] * 39), y

    z, y = draw(300)
    new, truth = draw(20_000)
    labels, probabilities, held_out, factor = label(z, ["a" if one == 0 else "b" for one in y], new)
    right = torch.tensor([one == ("a", "b")[k] for one, k in zip(labels, truth.tolist(), strict=True)]).double()
    assert held_out.fitted_on == 240 and held_out.judged_on == 60 and held_out.largest_class == 0.5
    assert held_out.interval[0] < right.mean() < held_out.interval[1]
    assert abs(torch.tensor(probabilities).mean() - right.mean()) < 0.05
    assert 0.01 <= factor <= 100


def test_noise_is_not_called_certain():
    rng = torch.Generator().manual_seed(0)
    y = [("a", "b")[i % 2] for i in range(100)]
    _, probabilities, held_out, _ = label(torch.randn(100, 200, generator=rng), y, torch.randn(500, 200, generator=rng))
    assert held_out.interval[0] < 0.5 < held_out.interval[1]
    assert np.mean(probabilities) < 0.65


def test_one_image_a_class_has_no_accuracy(place):
    known = images(place / "labelled", size=16).subset([0, 10])
    made = classify(place / "encoder", images(place / "new", size=16), known, show=False)
    assert made.held_out is None and made.sharpness == 1 and "accuracy is not known" in str(made)


def test_the_factor_is_the_likeliest():
    scores = torch.tensor([[4.0, 0.0]] * 998)
    wrong = (torch.arange(998) < 249).long()  # softmax(4 f) says 3/4, a thousandth more or less: f = log(3) / 4
    assert best_factor(scores, wrong) == pytest.approx(np.log(3) / 4, rel=0.03)
    sure = best_factor(scores[:4], torch.zeros(4, dtype=torch.long))  # 4 of 4: 5 of 6, not certainty
    assert torch.sigmoid(torch.tensor(4 * sure)).item() == pytest.approx(5 / 6, rel=0.02)


def test_cells_do_nothing_in_a_spreadsheet():
    for start in "=+-@\t\r":
        text = table_of([(f"{start}cmd|' /C calc'!A0", f"{start}x", 0.5, None)], ".csv").decode()
        row = list(csv.reader(io.StringIO(text, newline="")))[1]
        assert row[0].startswith(f"'{start}") and row[1] == f"'{start}x" and row[2] == "0.500000"
    row = table_of([('a "quoted", name\n.png', None, None, "x")], ".csv").decode()
    assert '"a ""quoted"", name\n.png",,,x\r\n' in row


def test_references_are_judged_on_the_same_held_out_images(place):
    """Colours tell these classes apart, so raw pixels are right too, and nothing is claimed for the encoder."""
    photos = images(place / "labelled", size=16)
    classified = classify(place / "encoder", photos, photos, show=False, device="cpu")
    assert set(classified.references) == {"raw pixels"}, "an encoder folder has no untrained encoder"
    other = classified.references["raw pixels"]
    assert other.judged_on == classified.held_out.judged_on == len(other.right) == 4 and other.accuracy == 1.0
    assert "the same head on raw pixels: 100.0 %; gain of this encoder: " in str(classified)


@pytest.mark.parametrize("ours, theirs, words", [
    (1.0, 0.5, ""), (0.5, 0.5, "the difference may be chance"), (0.5, 1.0, "do not use this encoder"),
])  # fmt: skip
def test_what_is_said_of_a_reference(ours, theirs, words):
    def held(share):
        right = torch.arange(100) < 100 * share
        return HeldOut(share, (0.0, 1.0), 400, 100, 0.5, right)

    line = beside(held(ours), "untrained", held(theirs))
    assert line.startswith("  the same head on the untrained encoder: ") and line.endswith(words or "]")
