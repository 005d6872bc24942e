"""An audit finds what was planted, says how sure it is, and touches nothing of the user's."""

import csv
import errno
import os
import warnings

import numpy as np
import pyarrow.parquet
import pytest
import torch
from page import Page
from PIL import Image
from scenes import save, scene, spoiled_photographs
from test_cli import diptych

from benchmarks.audit_planted import KINDS, copy_of
from diptych.base.errors import OutputError
from diptych.data.images import images
from diptych.downstream.audit import EmbeddedImages, audit, outlier_list
from diptych.downstream.audit_files import page, write_audit
from diptych.downstream.copies import find_copies, likeness
from diptych.downstream.findings import Audit
from diptych.downstream.inspection import inspect, odd_sizes
from diptych.downstream.table import write_table
from diptych.embeddings.store import load_embeddings, save_embeddings
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained


class Means(torch.nn.Module):
    """(N, 3, s, s) -> (N, 48): mean colours of 4 x 4 places."""

    num_features = 48

    def forward(self, pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1) - 0.5


ENCODER = Trained(Means(), Preprocessing(32))


def thumbnails(pictures) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


# --- pixels


def test_copies_are_alike_and_others_are_not():
    rng = np.random.default_rng(0)
    scenes = [scene(rng, 32) for _ in range(60)]
    copies = [copy_of(scenes[i], KINDS[i % 5], rng) for i in range(60)]
    pictures = thumbnails(scenes + copies)
    alike = likeness(pictures, torch.arange(60), torch.arange(60, 120))
    assert alike.min() > 0.9 and alike[::5].min() > 0.999
    unlike = likeness(pictures, torch.arange(60), torch.arange(60).roll(1))
    assert unlike.max() < 0.85
    torch.testing.assert_close(likeness(pictures, torch.arange(60, 120), torch.arange(60)), alike)  # either way round


def test_plain_pictures_of_other_colours_are_no_copies():
    plain = thumbnails([np.full((32, 32, 3), value, np.uint8) for value in (10, 10, 60, 200)])
    assert likeness(plain, torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3])).tolist() == [
        1,
        pytest.approx(-277, 0.1),
    ] + [pytest.approx(-4010, 0.1)]


def test_expected_wrong_pairs_are_those_that_are_wrong():
    """Vectors that know next to nothing propose; pixels decide. Summed over sets, at the share of wrong pairs allowed."""
    proposed, right, planted, expected = 0, 0, 0, 0.0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scenes = [scene(rng, 32) for _ in range(300)]
        pictures = thumbnails(scenes + [copy_of(scenes[i], KINDS[i % 5], rng) for i in range(30)])
        vectors = torch.nn.functional.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)
        pairs = find_copies(vectors - vectors.mean(0), pictures, mirrored=None, seed=seed)
        truth = {(i, 300 + i) for i in range(30)}
        answers = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
        proposed, right, planted = proposed + len(answers), right + len(answers & truth), planted + len(truth)
        expected += float(pairs.expected_wrong[-1])
    assert right >= 0.7 * planted
    assert proposed - right <= 2 * expected + 3


def test_odd_sizes_are_named_with_their_factor():
    sizes = np.array([[64, 48]] * 20 + [[64, 8], [400, 300], [60, 50]])
    assert odd_sizes(sizes) == [(21, pytest.approx(39, 0.1)), (20, pytest.approx(6))]


# --- the command


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return spoiled_photographs(tmp_path_factory.mktemp("audit") / "photos")


@pytest.fixture(scope="module")
def audited(photos):
    return audit(images(photos, size=32), show=False)


def files(findings) -> list[str]:
    return [finding.file for finding in findings]


def test_every_planted_fault_is_in_its_list(audited):
    exact, near = (audited.lists[name] for name in ("exact duplicates", "near duplicates"))
    assert sorted(files(exact)) == [f"{c}/000{e}.png" for c in ("blue", "red") for e in (" exact", "")]
    assert {finding.remark for finding in exact} == {"the same file"}
    expected = {f"{c}/{i:03d}{e}.png" for c in ("blue", "red") for i in range(1, 5) for e in ("", f" {KINDS[i]}")}
    assert set(files(near)) == expected and len({finding.group for finding in near}) == 8
    assert files(audited.lists["blank"]) == ["red/blank.png"]
    assert [(f.file, f.remark) for f in audited.lists["odd sizes"]] == [("red/strip.png", "96 x 20 pixels")]
    assert {f.file: f.remark for f in audited.lists["unreadable"]} == {
        "blue/text.jpg": "not an image (starts with '<html')",
        "red/empty.png": "empty file",
    }
    assert audited.lists["outliers"][0].file == "blue/outlier.png"
    assert {"blue/wrong 0.png", "blue/wrong 1.png", "blue/wrong 2.png"} <= set(
        files(audited.lists["suspected labels"][:8])
    )
    words = [finding.remark.split() for finding in audited.lists["suspected labels"]]
    assert all(word[1] != word[-1] + "," for word in words)
    first = audited.lists["suspected labels"][0]
    assert first.remark == "labelled blue, looks like red" and audited.name(first.other).startswith("red/")


def test_lists_are_ranked_and_their_expected_errors_never_fall(audited):
    for name, findings in audited.lists.items():
        wrong = [finding.expected_wrong for finding in findings]
        assert wrong == sorted(wrong), name
    assert "leaks" not in audited.lists


def test_expected_errors_never_fall_where_groups_are_large():
    """Crops of a few scenes: groups of many images, some pairs less sure than the first of the next group."""
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(40)]
    crops = []
    for pixels in scenes:
        for _ in range(int(rng.integers(1, 4))):
            y, x = rng.integers(0, 20, 2)
            crops.append(np.asarray(Image.fromarray(pixels[y : y + 70, x : x + 70]).resize((48, 48))))
    result = audit(images(np.stack(crops)), show=False)
    near = result.lists["near duplicates"]
    wrong = [finding.expected_wrong for finding in near]
    assert wrong == sorted(wrong) and wrong[-1] > 0
    assert max(f.group for f in near) > 5 and len(near) > 2 * max(f.group for f in near)


def test_outliers_that_are_none_are_not_listed():
    """Points of one Gaussian have a farthest one, which is no outlier; a point apart is."""
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    compared = EmbeddedImages(torch.arange(300), torch.zeros(300, 3, 32, 32), vectors, None)
    numbers = images(np.zeros((300, 8, 8, 3), np.uint8))
    result = Audit([("", numbers)], [(0, row) for row in range(300)])
    outlier_list(result, compared)
    assert result.lists["outliers"] == [] and "the image farthest from all others" in result.notes[0]
    vectors += 3
    vectors[7] = -3
    outlier_list(result, compared)
    assert [finding.place for finding in result.lists["outliers"]][:1] == [7] and len(result.lists["outliers"]) < 5
    assert all(finding.expected_wrong <= 0.5 * rank for rank, finding in enumerate(result.lists["outliers"], 1))


def crowded() -> tuple[np.ndarray, list[str]]:
    """Crops of six scenes, each of which overlaps most others of its scene."""
    rng, crops, labels = np.random.default_rng(0), [], []
    for number in range(6):
        pixels = scene(rng)
        for _ in range(25):
            y, x = rng.integers(0, 8, 2)
            crops.append(np.asarray(Image.fromarray(pixels[y : y + 80, x : x + 80]).resize((32, 32))))
            labels.append(f"scene {number}")
    return np.stack(crops), labels


def test_pairs_that_cannot_be_told_from_farther_neighbours_are_counted(audited):
    result = audit(images(crowded()[0]), trained=ENCODER, show=False)
    [note] = [note for note in result.notes if note.startswith("near duplicates")]
    assert "further pairs of " in note and "as similar as copies (0.95 or more)" in note and note in str(result)
    assert not any("near duplicates" in note for note in audited.notes)
    section = page(result, "crops").split('<section id="near-duplicates">')[1].split("</section>")[0]
    assert note.removeprefix("near duplicates: ") in section


def test_a_full_disk_leaves_no_part_of_an_audit(audited, tmp_path, monkeypatch):
    flush, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/out/"):
        write_audit(audited, tmp_path / "out", "photos")
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_audit(audited, photos, tmp_path):
    written = write_audit(audited, tmp_path / "out", "<b>photos")
    assert {path.name for path in written} == {"index.html", "findings.csv", "findings.parquet"}
    with open(tmp_path / "out" / "findings.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parquet = pyarrow.parquet.read_table(tmp_path / "out" / "findings.parquet").to_pylist()
    assert len(rows) == len(parquet) == sum(map(len, audited.lists.values()))
    assert [row["file"] for row in rows] == [row["file"] for row in parquet]
    assert [int(row["rank"]) for row in rows if row["list"] == "outliers"] == list(
        range(1, 1 + len(audited.lists["outliers"]))
    )
    page = Page(tmp_path / "out" / "index.html")
    assert "<b>photos" in page.text and not page.scripts
    assert all(uri.startswith("data:") for uri in page.attributes("src"))
    assert str(audited).split(",")[0] in page.text, "both count the images that can be read"
    assert "wrong 0.png" in page.text and "labelled blue, looks like red" in page.text
    assert "None." not in page.text.partition("Unreadable files Files")[2]


def test_train_and_test_leak(tmp_path, capsys):
    rng = np.random.default_rng(1)
    scenes = [scene(rng) for _ in range(60)]
    for i, pixels in enumerate(scenes):
        save(tmp_path / "train" / "ab"[i % 2] / f"{i:02d}.png", pixels)
        save(tmp_path / "test" / "ab"[i % 2] / f"{i:02d}.png", scene(rng))
    for i, kind in enumerate(KINDS):
        save(tmp_path / "test" / "a" / f"leak {kind}.png", copy_of(scenes[i], kind, rng))
    words = ["audit", "--train", tmp_path / "train", "--test", tmp_path / "test", "--out", tmp_path / "out"]
    code, out, _ = diptych(capsys, *words)
    assert code == 0 and "  leaks                          5" in out
    with open(tmp_path / "out" / "findings.csv", newline="", encoding="utf-8") as file:
        leaks = [row for row in csv.DictReader(file) if row["list"] == "leaks"]
    assert [row["file"] for row in leaks][0] == "a/leak exact.png"
    assert {(row["set"], row["beside_set"]) for row in leaks} == {("test", "train")}
    beside = {row["file"]: row["beside"] for row in leaks}
    assert beside == {f"a/leak {kind}.png": f"{'ab'[i % 2]}/{i:02d}.png" for i, kind in enumerate(KINDS)}


def test_labels_that_cannot_be_doubted_are_left_out_with_a_word():
    rng = np.random.default_rng(2)
    pixels = np.stack([scene(rng, 32) for _ in range(60)])
    assert "no labels" in " ".join(audit(images(pixels), trained=ENCODER, show=False).notes)
    one = audit(images(pixels, labels=[0] * 60), trained=ENCODER, show=False)
    assert "all labels are '0': suspected labels are left out" in one.notes and "suspected labels" not in one.lists
    sets = [images(pixels[:30], labels=["x", "y"] * 15), images(pixels[30:], labels=["x", "z"] * 15)]
    both = audit(sets[0], test=sets[1], trained=ENCODER, show=False)
    assert any("of the training set alone: y; of the test set alone: z" in note for note in both.notes)


@pytest.mark.parametrize("count", [1, 9])
def test_blank_images_alone_are_listed(count):
    result = audit(images(np.zeros((count, 24, 24, 3), np.uint8)), trained=ENCODER, show=False)
    assert len(result.lists["blank"]) == count and len(result.lists["exact duplicates"]) == count * (count > 1)
    assert "nothing to compare" in result.notes[0]


def test_few_images_have_the_lists_that_need_no_encoder():
    rng = np.random.default_rng(3)
    pixels = np.stack([scene(rng, 32) for _ in range(6)])
    pixels[5] = pixels[0]
    result = audit(images(pixels), show=False)
    assert len(result.lists["exact duplicates"]) == 2 and "near duplicates" not in result.lists
    assert "fewer than 50 different images" in result.notes[0]


def test_inspection_reads_arrays_and_subsets():
    pixels = np.stack([scene(np.random.default_rng(i), 24) for i in range(6)])
    seen = inspect(images(pixels).subset([3, 1]))
    assert seen.rows.tolist() == [0, 1] and seen.files == [None, None] and seen.sizes.tolist() == [[24, 24]] * 2
    assert seen.digests == inspect(images(pixels)).digests[3::-2]


def test_bad_words_are_one_line_and_nothing_is_written(photos, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    cases = [
        (["audit", "--out", tmp_path / "new"], 2, "give either SOURCE, or both --train SOURCE and --test SOURCE"),
        (["audit", photos, "--train", photos, "--test", photos, "--out", tmp_path / "new"], 2, "give either SOURCE"),
        (["audit", "--train", photos, "--out", tmp_path / "new"], 2, "give either SOURCE"),
        (["audit", photos, "--encoder", "a:b", "--out", tmp_path / "new"], 2, "give --run too"),
        (["audit", photos, "--out", tmp_path / "mine"], 6, "exists and is not empty"),
        (["audit", photos, "--out", photos / "audit"], 6, "is inside the source"),
        (["audit", tmp_path / "empty", "--out", tmp_path / "new"], 3, "holds no images"),
        (["audit", tmp_path / "broken", "--out", tmp_path / "new"], 3, "no image can be read, first: a.png"),
        (["audit", photos, "--run", tmp_path / "mine", "--out", tmp_path / "new"], 4, "holds no encoder"),
    ]
    for words, expected, text in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code, _, err = diptych(capsys, *words)
        line = err.strip().splitlines()[-1]
        assert code == expected and text in line, (words, code, err)
    assert not (tmp_path / "new").exists() and (tmp_path / "mine" / "thesis.txt").read_text() == "three years"


# --- pick


def test_pick_writes_what_to_label(tmp_path, capsys):
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(90, 6, generator=rng)
    status = [None] * 90
    status[4] = "broken"
    save_embeddings(
        tmp_path / "vectors", torch.cat([vectors[:4], vectors[5:]]), [f"={i}.png" for i in range(90)], status=status
    )
    for name in ("a.csv", "b.csv", "c.parquet"):
        code, out, _ = diptych(capsys, "pick", tmp_path / "vectors", "--budget", 12, "--out", tmp_path / name)
        assert code == 0 and "12 images to label" in out
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert [int(row["rank"]) for row in rows] == list(range(1, 13)) and len({row["path"] for row in rows}) == 12
    assert all(row["path"] == f"'={int(row['row']) + (int(row['row']) >= 4)}.png" for row in rows)
    assert pyarrow.parquet.read_table(tmp_path / "c.parquet")["row"].to_pylist() == [int(row["row"]) for row in rows]
    before = (tmp_path / "a.csv").read_bytes()
    cases = [
        (["--out", tmp_path / "a.csv"], 6, "exists already"),
        (["--out", tmp_path / "a.txt"], 6, "neither .csv nor .parquet"),
        (["--budget", 90, "--out", tmp_path / "d.csv"], 2, "90 cannot be picked from 89 vectors"),
        (["--budget", 0, "--out", tmp_path / "d.csv"], 2, "greater than or equal to 1"),
    ]
    for words, expected, text in cases:
        code, _, err = diptych(capsys, "pick", tmp_path / "vectors", *words)
        assert code == expected and text in err, err
    assert (tmp_path / "a.csv").read_bytes() == before and not (tmp_path / "d.csv").exists()
    code, _, err = diptych(capsys, "pick", tmp_path / "nowhere", "--out", tmp_path / "d.csv")
    assert code == 3 and "does not exist" in err
    write_table(tmp_path / "vectors.parquet", load_embeddings(tmp_path / "vectors"), None)
    code, _, err = diptych(capsys, "pick", tmp_path / "vectors.parquet", "--budget", 12, "--out", tmp_path / "d.csv")
    assert code == 0 and (tmp_path / "d.csv").read_bytes() == before, err


def test_pick_refuses_vectors_that_are_not_numbers(tmp_path, capsys):
    save_embeddings(tmp_path / "vectors", torch.full((5, 3), float("nan")), list("abcde"))
    code, _, err = diptych(capsys, "pick", tmp_path / "vectors", "--budget", 2, "--out", tmp_path / "d.csv")
    assert code == 3 and "5 of 5 given embeddings hold NaN" in err and not (tmp_path / "d.csv").exists()
