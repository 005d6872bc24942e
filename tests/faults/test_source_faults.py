"""Rows 17 to 22 of docs/faults.md: folders that are empty, tangled, oddly named or huge."""

import os
import time
import unicodedata
import warnings
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
import torch
from fake_source import Fake, picture, values_of, write
from hypothesis import given, settings
from hypothesis import strategies as st
from spoiled import SMALL, diptych, photographs, put, refusal
from tiny import tiny_run

from diptych.base.errors import DataError
from diptych.data.images import images, open_source
from diptych.data.source import Keys
from diptych.downstream.embed import embed
from diptych.embeddings.store import load_embeddings
from diptych.networks.encoders import encoder
from diptych.runs.encoder import Preprocessing, save_encoder


@pytest.mark.parametrize("command", ["pretrain", "doctor"])
@pytest.mark.parametrize("files", [{}, {"notes.txt": b"", "deep/er/movie.mp4": b""}])
def test_17_a_folder_without_images(command, files, tmp_path):
    photographs(tmp_path / "photos", count=1)
    empty = put(tmp_path / "empty", files)
    empty.mkdir(exist_ok=True)
    asked = [*SMALL, "--out", tmp_path / "run"] if command == "pretrain" else []
    code, out, err = diptych(command, empty, *asked)
    told = refusal(err)
    assert code == 3 and out == "" and f"{empty} holds no images (searched for .jpg .jpeg " in told
    assert f"the nearest folder with images is {tmp_path / 'photos'}" in told
    start = time.monotonic()
    with pytest.raises(DataError, match="holds no images"):
        open_source(empty)
    assert time.monotonic() - start < 1


def test_18_an_empty_class_folder_is_warned_about_and_no_class(tmp_path):
    source = photographs(tmp_path / "photos", ("ant", "cow"), count=3)
    (source / "bee").mkdir()
    with pytest.warns(UserWarning, match=r"1 class folder\(s\) without an image, not a class: bee"):
        found = images(source, size=8)
    assert found.classes == ["ant", "cow"] and found.labels == [0, 0, 0, 1, 1, 1]
    _, out, err = diptych("doctor", source)
    assert (
        "\n  2 classes: ant (3), cow (3)\n" in out
        and "bee" not in out
        and "diptych: 1 class folder(s) without an image" in err
    )


def test_19_links(tmp_path):
    """A loop, a link back, a broken one, one out of the folder: each real file once, and an end."""
    source = write(tmp_path / "in", "a/1.png", "a/2.png", "b/3.png")
    write(tmp_path / "out", "4.png")
    for name, target in (
        ("a/loop", "../a"),
        ("a/again.png", "1.png"),
        ("b/broken.png", "nowhere.png"),
        ("c", "../out"),
    ):
        (source / name).symlink_to(target)
    (tmp_path / "out" / "up").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match="2 entries of the source left out, first: c "):
        assert values_of(images(source).pixels()) == [0, 1, 2]
    with pytest.warns(UserWarning, match=r"1 entries of the source left out, first: b/broken.png \(a broken link\)"):
        followed = images(source, follow_symlinks=True)
    assert sorted(values_of(followed.pixels())) == [0, 0, 1, 2]
    code, out, _ = diptych("doctor", source)
    assert code == 0 and "3 of 3 images can be read" in out and "  2 entries are left out: " in out
    assert "    b/broken.png: a broken link\n" in out and "    c: a link out of the folder (follow_symlinks=True" in out


def test_20_hidden_and_system_files(tmp_path):
    junk = [".hidden/1.jpg", "a/._1.jpg", "a/.x.png", ".thumbs/a/1.png", "a/Thumbs.db", "a/.DS_Store", "a/desktop.ini"]
    source = write(tmp_path, "a/1.png", "b/2.png", *junk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = images(source)
    assert found.keys == ["a/1.png", "b/2.png"] and found.classes == ["a", "b"]
    assert values_of(found.pixels()) == [0, 1] and found.failed == [] and found.source.skipped == []


NAMES = [
    "\u00fc.png".encode(), "u\u0308.png".encode(), "\U0001f469\u200d\U0001f52c.png".encode(), b"two\nlines.png", b"\"q'`$(x).png",
    b"x" * 251 + b".png", b"caf\xe9.png", b"caf%E9.png", b"\x1b[31m.png", b" .png", b"-rf.png", b"\xff\xfe.png",
    "c1 \x9b31m.png".encode(), "line\u2028end.png".encode(), "photo\u202egpj.png".encode(),
]  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """An encoder folder: 8 pixels to 8 numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = encoder("resnet18", "small", 8, channels=(8, 8, 8, 8))
    folder = tmp_path_factory.mktemp("network") / "encoder"
    save_encoder(folder, made, Preprocessing(8))
    return folder


def check_names(names: list[bytes], place: Path, network: Path) -> None:
    """Read, embedded, and from the index back to the same bytes."""
    found = images(write(place / "photos", *names), size=8)
    vectors = embed(network, found, out=place / "vectors", show=False)
    index = load_embeddings(place / "vectors").index
    assert len(vectors) == len(names) and all(row["status"] == "ok" for row in index)
    assert sorted(unquote_to_bytes(row["key"]) for row in index) == sorted(names)
    shown = {unicodedata.category(letter) for row in index for letter in row["key"]}
    assert not shown & {"Cc", "Cs", "Zl", "Zp"}, "controls, lone surrogates, line ends"


def test_21_odd_names_are_trained_on_and_embedded(tmp_path, network):
    check_names(NAMES, tmp_path, network)
    run = tiny_run(tmp_path / "run", photos=images(tmp_path / "photos", size=12), epochs=1)
    assert run.finished and not (run.folder / "bad_files.jsonl").exists()


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    st.sets(
        st.binary(min_size=1, max_size=251).filter(lambda name: not {0, 47} & set(name) and name[0] != 46), min_size=1
    )
)
def test_21_any_bytes_a_file_system_takes_are_a_name(tmp_path_factory, network, stems):
    place = tmp_path_factory.mktemp("names")
    check_names([stem + b".png" for stem in stems], place, network)


def hardlinks(root: Path, count: int) -> Path:
    """`count` names for a few files, 1,000 in a folder; file systems allow some ten thousand names a file."""
    for start in range(0, count, 1000):
        folder = root / f"class_{start // 1000:03d}"
        folder.mkdir(parents=True)
        first = folder / "ILSVRC2012_val_00000000.JPEG.png"
        first.write_bytes(picture(start // 1000))
        for i in range(1, min(1000, count - start)):
            os.link(first, folder / f"ILSVRC2012_val_{i:08d}.JPEG.png")
    return root


@pytest.mark.parametrize("count", [3_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_22_a_folder_of_many_files(count, tmp_path):
    source = hardlinks(tmp_path, count)
    start = time.process_time()
    found = open_source(source)
    seconds = time.process_time() - start
    assert len(found) == count and len({found.label(i) for i in range(count)}) == count // 1000
    rate, each = count / seconds, (found.keys.nbytes + found.sizes.nbytes) / count
    print(f"{count:,} files in {seconds:.2f} s of processor, {each:.0f} bytes a path")
    assert rate > 20_000 and each <= 150


def resident() -> float:
    """MiB of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_22_a_million_entries_and_flat_memory_over_an_epoch():
    names = Keys(b"train/n%08d/ILSVRC2012_val_%08d.JPEG" % (i % 1000, i) for i in range(1_000_000))
    assert names.nbytes / len(names) <= 150
    found = images(Fake(1_000_000), size=4, resident=False)
    order = torch.randint(1_000_000, (3000,), generator=torch.Generator().manual_seed(0))
    memory, epoch = [], found.read(order, 100, workers=2)
    for _, pixels in epoch:
        assert len(pixels) == 100
        memory.append(resident())
    grown = max(memory[15:]) - max(memory[:15])
    assert grown < 8, f"{grown:.1f} MiB in the second half of an epoch"
