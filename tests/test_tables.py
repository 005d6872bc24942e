"""Parquet, array files and CIFAR batches."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_source import keys, labels, picture, values

from diptych.base.errors import DataError, RecipeError
from diptych.data import parquet
from diptych.data.arrays import Pixels
from diptych.data.decode import BadImage
from diptych.data.open import open_source

# --- Parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def make_parquet(path: Path, values=range(7), numbers=None, names=("cat", "dog"), column="img", rows=3) -> Path:
    cells = [None if v is None else {"bytes": picture(v), "path": f"{v}.png"} for v in values]
    columns = {column: pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    columns["label"] = pa.array([v % 2 for v in range(len(cells))] if numbers is None else numbers)
    feature = {"label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})} if names else {}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=rows)
    return path


def test_parquet(tmp_path):
    source = open_source(make_parquet(tmp_path / "a.parquet"))
    assert keys(source) == [f"a.parquet:{k}" for k in range(7)]
    assert labels(source) == ["cat", "dog"] * 3 + ["cat"] and source.classes == ["cat", "dog"]
    assert values(source) == list(range(7))
    assert set(labels(open_source(tmp_path / "a.parquet", labels="none"))) == {None}
    with pytest.raises(RecipeError, match="no class folders"):
        open_source(tmp_path / "a.parquet", labels="folder")


def test_parquet_folder_and_pattern(tmp_path):
    for k in range(2):
        make_parquet(tmp_path / f"train-{k}.parquet", range(4 * k, 4 * k + 4), column="image", names=None)
    source = open_source(tmp_path)
    assert keys(source)[3:5] == ["train-0.parquet:3", "train-1.parquet:0"] and values(source) == list(range(8))
    assert source.classes == ["0", "1"]
    make_parquet(tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match="mixes the splits test, train: name one"):
        open_source(tmp_path)
    assert keys(open_source(tmp_path / "train-*.parquet")) == keys(source)


def test_parquet_labels_of_words_and_nulls(tmp_path):
    words = open_source(make_parquet(tmp_path / "w.parquet", range(4), ["b", "a", None, "b"], names=None))
    assert labels(words) == ["b", "a", None, "b"] and words.classes == ["a", "b"]
    numbers = open_source(make_parquet(tmp_path / "n.parquet", range(3), [1, None, -1]))
    assert labels(numbers) == ["dog", None, None]
    with pytest.raises(DataError, match="labels 0 to 2 are not class numbers 0 to 1"):
        open_source(make_parquet(tmp_path / "x.parquet", range(3), [0, 1, 2]))


def test_parquet_null_image_is_bad_and_its_neighbours_are_not(tmp_path):
    source = open_source(make_parquet(tmp_path / "a.parquet", [1, None, 3]))
    with pytest.raises(BadImage, match="null"):
        source.read(1)
    assert source.read(0) == picture(1) and source.read(2) == picture(3)


def test_parquet_without_images_names_its_columns(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "score": [1.0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"it has text \(string\), score \(double\)"):
        open_source(tmp_path / "a.parquet")


def test_damaged_parquet_and_missing_pyarrow(tmp_path, monkeypatch):
    data = make_parquet(tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-40])
    with pytest.raises(DataError, match="not complete Parquet"):
        open_source(tmp_path / "cut.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r'pip install "diptych\[parquet\]"'):
        open_source(tmp_path / "a.parquet")


def test_huge_row_group_is_read_in_pieces(tmp_path, monkeypatch):
    cells = pa.array([{"bytes": bytes([k]) * 50_000} for k in range(200)])  # 10 MB in one row group
    pq.write_table(pa.table({"img": cells}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 500_000)
    source, most = open_source(tmp_path / "a.parquet"), 0
    for i in [*range(200), 5, 199, 4]:  # once through, then back and forth
        assert source.read(i) == bytes([i]) * 50_000
        most = max(most, sum(block.nbytes for _, _, block in source.blocks))
    assert most < 2_000_000


# --- arrays and CIFAR

ARRAY = np.arange(5 * 6 * 4 * 3, dtype=np.uint64).reshape(5, 6, 4, 3).astype(np.uint8)


def test_array_layouts_agree(tmp_path):
    np.save(tmp_path / "last.npy", ARRAY)
    np.save(tmp_path / "first.npy", ARRAY.transpose(0, 3, 1, 2))
    for name in ("last", "first"):
        source = open_source(tmp_path / f"{name}.npy")
        assert keys(source)[1] == f"{name}.npy:1" and source.native_size == (6, 4) and labels(source) == [None] * 5
        np.testing.assert_array_equal(np.stack([source.read(i) for i in range(5)]), ARRAY)
    for gray in (ARRAY[..., 0], ARRAY[..., :1], ARRAY.transpose(0, 3, 1, 2)[:, :1]):
        np.testing.assert_array_equal(Pixels(gray).read(3), np.repeat(ARRAY[3, ..., :1], 3, 2))


def test_npz_names_and_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=ARRAY, y_train=np.array([[3], [0], [1], [1], [-1]]), x_test=ARRAY)
    source = open_source(tmp_path / "a.npz")
    assert labels(source) == ["3", "0", "1", "1", None] and source.classes == ["0", "1", "2", "3"]
    np.savez(tmp_path / "b.npz", mine=ARRAY, labels=np.array(list("badab")))
    assert labels(open_source(tmp_path / "b.npz")) == list("badab")
    np.savez(tmp_path / "c.npz", one=ARRAY, two=ARRAY)
    with pytest.raises(DataError, match="holds one, two: call the images images or"):
        open_source(tmp_path / "c.npz")


@pytest.mark.parametrize(
    "pixels, numbers, message",
    [
        (ARRAY.astype(np.float32), None, "must be uint8"),
        (ARRAY[..., :2], None, "these are"),
        (ARRAY, [0, 1], r"labels of shape \(5,\)"),
        (ARRAY, [0.5] * 5, "whole numbers or words"),
        (ARRAY, [-2] * 5, "not class numbers"),
    ],
)
def test_arrays_that_do_not_fit(pixels, numbers, message):
    with pytest.raises(DataError, match=message):
        Pixels(pixels, numbers)


def test_objects_in_array_files_are_refused(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    np.save(tmp_path / "a.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=np.array([Hostile()], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:50])
    for name in ("a.npy", "a.npz", "cut.npz"):
        with pytest.raises(DataError, match="not a complete array file"):
            open_source(tmp_path / name)
    assert not canary.exists()


def text(value: str) -> bytes:
    """As Python 2's cPickle writes a str."""
    return (
        b"U" + bytes([len(value)]) + value.encode()
        if len(value) < 256
        else b"T" + struct.pack("<i", len(value)) + value.encode()
    )


def official_batch(data: np.ndarray, numbers: list[int], key: str = "labels") -> bytes:
    """A python batch of the form its author published (protocol 2, Python 2)."""
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x0b(K\x01"
    array += b"M" + struct.pack("<H", len(data)) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x0cU\x02u1K\x00K\x01\x87Rq\r"
    array += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    labels = b"]q\x05(" + b"".join(b"K" + bytes([n]) for n in numbers) + b"e"
    words = text("batch_label") + text("a batch")
    return b"\x80\x02}q\x01(" + words + text(key) + labels + text("data") + array + b"u."


RECORDS = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)


@pytest.mark.parametrize("form", ["python", "binary"])
def test_cifar10(tmp_path, form):
    numbers = [3, 0, 9, 9, 1, 2]
    for name, rows in (
        ("data_batch_2", [2, 3]),
        ("data_batch_1", [0, 1]),
        ("data_batch_10", [4]),
        ("test_batch", [5]),
    ):
        chosen = [numbers[k] for k in rows]
        if form == "python":
            (tmp_path / name).write_bytes(official_batch(RECORDS[rows], chosen))
        else:
            labelled = np.concatenate([np.array(chosen, np.uint8)[:, None], RECORDS[rows]], 1)
            (tmp_path / f"{name}.bin").write_bytes(labelled.tobytes())
    ending = "" if form == "python" else ".bin"
    source = open_source(tmp_path)
    assert keys(source) == [f"data_batch_{k}{ending}:{row}" for k, row in ((1, 0), (1, 1), (2, 0), (2, 1), (10, 0))]
    assert labels(source) == ["cat", "airplane", "truck", "truck", "automobile"] and len(source.classes) == 10
    np.testing.assert_array_equal(source.read(3), RECORDS[3].reshape(3, 32, 32).transpose(1, 2, 0))
    test = open_source(tmp_path / f"test_batch{ending}", labels="none")
    assert labels(test) == [None]
    np.testing.assert_array_equal(test.read(0), RECORDS[5].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar100(tmp_path):
    names = [f"class_{k}" for k in range(100)]
    meta = (
        b"\x80\x02}q\x01(" + text("fine_label_names") + b"](" + b"".join(map(text, names)) + b"e" + text("x") + b"Nu."
    )
    (tmp_path / "meta").write_bytes(meta)
    (tmp_path / "train").write_bytes(official_batch(RECORDS[:2], [99, 4], "fine_labels"))
    assert labels(open_source(tmp_path)) == ["class_99", "class_4"]
    binary = tmp_path / "binary"
    binary.mkdir()
    (binary / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    (binary / "train.bin").write_bytes(bytes([19, 99]) + RECORDS[0].tobytes())
    assert labels(open_source(binary)) == ["class_99"]


def test_a_hostile_cifar_batch_is_refused_and_never_run(tmp_path):
    canary = tmp_path / "canary"
    good = official_batch(RECORDS[:1], [1])
    hostile = {
        "call": b"\x80\x02cos\nsystem\n" + text(f"touch {canary}") + b"\x85R.",
        "other": b"\x80\x02(" + text(f"touch {canary}") + b"ios\nsystem\n.",
        "dtype": good.replace(b"U\x02u1", b"U\x02O8"),
        "shape": good.replace(b"M\x00\x0c\x86", b"M\xff\xff\x86"),
        "cut": good[:-500],
        "no dict": b"\x80\x02].",
        "call of a call": good.replace(b"\x87Rq\x0b", b"\x87R\x85R"),
        "empty": b"",
    }
    for name, data in hostile.items():
        (tmp_path / "data_batch_1").write_bytes(data)
        with pytest.raises(DataError, match="GLOBAL os system" if name == "call" else "CIFAR batch"):
            open_source(tmp_path)
        assert not canary.exists(), name
    (tmp_path / "data_batch_1").unlink()
    (tmp_path / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(DataError, match="not a multiple of 3073"):
        open_source(tmp_path / "test_batch.bin")
