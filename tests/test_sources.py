"""Names and folders: the same images by the same names, whatever the file system does."""

import os
import random
import time
import unicodedata
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from fake_source import keys, labels, values, write

from diptych.base.errors import DataError, RecipeError
from diptych.data.arrays import Pixels
from diptych.data.open import NAMED, Source, open_source
from diptych.data.source import Keys, key_of

# --- names

NAMES = [
    "a.jpg",
    "ümlaut.jpg",
    "e\u0301.jpg",
    "é.jpg",
    "👩\u200d🔬.jpg",
    "two\nlines.jpg",
    "\"q'.jpg",
    "100%.jpg",
    "x" * 251 + ".jpg",
]


@pytest.mark.parametrize("raw", [*map(str.encode, NAMES), b"\xff\xfe.jpg", b"caf\xe9.jpg", b"%FF.jpg", b"\x1b[31m.jpg"])
def test_every_name_has_a_printable_key_that_gives_its_bytes_back(raw):
    key = key_of(raw)
    assert unquote_to_bytes(key) == raw
    assert "\n" not in key and "\x1b" not in key
    assert key.encode()  # no lone surrogates, on which JSON and Arrow stumble


def test_plain_names_are_their_own_keys_and_no_two_names_share_one():
    assert key_of("é 👩\u200d🔬.jpg".encode()) == "é 👩\u200d🔬.jpg"
    assert key_of(b"caf\xe9.jpg") == "caf%E9.jpg" != key_of(b"caf%E9.jpg")


def test_a_million_keys_take_little_time_and_room():
    names = [b"train/n%08d/ILSVRC2012_val_%08d.JPEG" % (i % 1000, i) for i in range(1_000_000)]
    start = time.process_time()
    kept = Keys(names)
    assert time.process_time() - start < 5
    assert kept.nbytes / len(names) < len(names[0]) + 8.1 < 150
    assert kept[999_999] == names[-1].decode() and kept[0] == names[0].decode()


def test_keys_end_where_they_end():
    assert list(Keys([b"a", b"bb"])) == ["a", "bb"] == [raw.decode() for raw in Keys([b"a", b"bb"]).raws()]
    for i in (2, -1):
        with pytest.raises(IndexError):
            Keys([b"a", b"bb"])[i]


# --- folders


def test_folder_order_and_labels_are_by_name(tmp_path):
    names = ["dog/2.jpg", "cat/deep/9.PNG", "cat/1.jpeg", "dog/10.jpg", "cat/x.webp"]
    source = open_source(write(tmp_path, *names))
    assert keys(source) == ["cat/1.jpeg", "cat/deep/9.PNG", "cat/x.webp", "dog/10.jpg", "dog/2.jpg"]
    assert labels(source) == ["cat", "cat", "cat", "dog", "dog"]
    assert values(source) == [2, 1, 4, 3, 0]
    assert isinstance(source, Source)


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    write(tmp_path, *(f"{c}/{k}.png" for c in "abc" for k in range(9)))
    expected, scandir = keys(open_source(tmp_path)), os.scandir

    class Shuffled:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = random.Random(1).sample(found := list(entries), len(found))

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert keys(open_source(tmp_path)) == expected


@pytest.mark.parametrize(
    "names, expected",
    [
        (["a/1.png", "b/2.png"], ["a", "b"]),
        (["a/1.png", "a/2.png"], [None, None]),  # one folder is no choice
        (["a/1.png", "b/1.png", "z.png"], [None, None, None]),  # one image lies outside
    ],
)
def test_auto_labels(tmp_path, names, expected):
    assert labels(open_source(write(tmp_path, *names))) == expected
    assert labels(open_source(tmp_path, labels="none")) == [None] * len(names)


def test_folder_labels_are_required_when_asked_for(tmp_path):
    write(tmp_path, "a/1.png")
    assert labels(open_source(tmp_path, labels="folder")) == ["a"]
    write(tmp_path, "z.png")
    with pytest.raises(DataError, match="z.png is in no class folder"):
        open_source(tmp_path, labels="folder")
    with pytest.raises(RecipeError, match="auto, folder, none"):
        open_source(tmp_path, labels="folders")


def test_split_folders_are_no_classes(tmp_path):
    with pytest.warns(UserWarning, match="test, train look like splits"):
        assert labels(open_source(write(tmp_path, "train/a/1.png", "test/a/1.png"))) == [None, None]


def test_hidden_and_system_files_are_ignored(tmp_path):
    junk = [".hidden/1.jpg", "a/._1.jpg", "a/.x.png", "Thumbs.db", "a/.DS_Store", "a/notes.txt", "a/jpg"]
    assert keys(open_source(write(tmp_path, *junk, "a/1.jpg", "b/1.jpg"))) == ["a/1.jpg", "b/1.jpg"]


def test_empty_class_folder_is_warned_about_and_no_class(tmp_path):
    write(tmp_path, "a/1.png", "c/1.png")
    (tmp_path / "b").mkdir()
    with pytest.warns(UserWarning, match="without an image, not a class: b"):
        assert labels(open_source(tmp_path)) == ["a", "c"]


def test_odd_names_are_read(tmp_path):
    names = [*map(str.encode, NAMES), b"\xff\xfe.jpg"]
    source = open_source(write(tmp_path, *names))
    assert sorted(unquote_to_bytes(key) for key in keys(source)) == sorted(names)
    assert sorted(values(source)) == list(range(len(names)))
    assert unicodedata.normalize("NFC", "e\u0301.jpg") == "é.jpg"  # two files, kept apart
    assert {"e\u0301.jpg", "é.jpg"} <= set(keys(source))


def test_links(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    write(inside, "a/1.png", ".store/9.png")
    write(outside, "2.png", "deep/3.png")
    (inside / "a" / "loop").symlink_to(inside)
    (inside / "a" / "again.png").symlink_to(inside / "a" / "1.png")
    (inside / "a" / "annexed.png").symlink_to(inside / ".store" / "9.png")
    (inside / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (inside / "circle.png").symlink_to(inside / "circle.png")
    (inside / "b").symlink_to(outside)
    (inside / "c").symlink_to(outside)
    (inside / "one.png").symlink_to(outside / "2.png")
    (outside / "up").symlink_to(tmp_path)

    source = open_source(inside)
    assert keys(source) == ["a/1.png", "a/annexed.png"]
    assert {skip["key"]: skip["reason"].split(" (")[0] for skip in source.skipped} == {
        "broken.png": "a broken link",
        "circle.png": "a broken link",
        "b": "a link out of the folder",
        "c": "a link out of the folder",
        "one.png": "a link out of the folder",
    }
    followed = open_source(inside, follow_symlinks=True)
    assert len(followed) == 4  # every real file once, by links to files or folders, and the loop through `up` ends
    assert sorted(values(followed)) == [0, 0, 1, 1] and {"a/1.png", "a/annexed.png"} <= set(keys(followed))
    assert keys(followed) == keys(open_source(inside, follow_symlinks=True))


def test_folder_of_links_out_says_so(tmp_path):
    write(tmp_path / "real", "1.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "1.png").symlink_to(tmp_path / "real" / "1.png")
    with pytest.raises(DataError, match="1 links out of it: follow_symlinks=True"):
        open_source(tmp_path / "links")


def test_a_pipe_named_like_an_image_is_not_waited_for(tmp_path):
    write(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert keys(open_source(tmp_path)) == ["a.png"]


def test_folder_without_images_names_the_nearest_with_some(tmp_path):
    empty = tmp_path / "empty"
    write(tmp_path / "photos", "1.jpg")
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        open_source(empty)
    assert time.monotonic() - start < 1
    assert ".jpg" in str(caught.value) and str(tmp_path / "photos") in str(caught.value)


def test_wrong_paths_name_the_near_ones(tmp_path):
    write(tmp_path, "photos/cats/1.jpg")
    with pytest.raises(DataError, match=f"in {tmp_path} there is photos"):
        open_source(tmp_path / "photo" / "cats")
    with pytest.raises(DataError, match="there is cats"):
        open_source(tmp_path / "photos" / "cat")
    with pytest.raises(DataError, match="has no zzzz"):
        open_source(tmp_path / "zzzz")
    with pytest.raises(DataError, match="is one image: name its folder"):
        open_source(tmp_path / "photos" / "cats" / "1.jpg")
    (tmp_path / "photos.rar").write_bytes(b"")
    with pytest.raises(DataError, match="not a source of images: it must be a folder, .zip"):
        open_source(tmp_path / "photos.rar")


def test_named_sources(monkeypatch):
    monkeypatch.setitem(NAMED, "demo", lambda: Pixels(np.zeros((3, 4, 4, 3), np.uint8)))
    assert len(open_source("demo")) == 3
    with pytest.raises(DataError, match="there is demo"):
        open_source("dem0")


def test_fingerprint_is_of_names_and_sizes_not_of_time_or_place(tmp_path):
    one = open_source(write(tmp_path / "one", "a/1.png", "b/2.png")).fingerprint
    write(tmp_path / "two", "a/1.png", "b/2.png")
    os.utime(tmp_path / "two" / "a" / "1.png", (1, 1))
    assert open_source(tmp_path / "two").fingerprint == one
    with open(tmp_path / "two" / "a" / "1.png", "ab") as file:
        file.write(b"!")
    assert open_source(tmp_path / "two").fingerprint != one
    assert open_source(write(tmp_path / "one", "a/1.png", "b/3.png")).fingerprint != one
