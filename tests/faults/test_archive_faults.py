"""Rows 23 and 24 of docs/faults.md: zip, tar and Parquet that are hostile, damaged or huge."""

import io
import json
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_source import picture, values_of
from spoiled import SMALL, diptych, encoded, jpeg, refusal
from test_archives import HOSTILE, add_tar

from diptych.data import parquet
from diptych.data.images import images
from diptych.networks.encoders import encoder
from diptych.runs.encoder import Preprocessing, save_encoder


def hostile_zip(path: Path) -> dict[str, str]:
    """Makes the archive with one good image; returns what is refused, and why."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # zipfile warns about the duplicate
        for name in ("good.png", "good.png", *HOSTILE):
            archive.writestr(name, picture(3))
        for name, kind in (("link.png", 0o120777), ("device.png", 0o020666)):
            member = zipfile.ZipInfo(name)
            member.external_attr = kind << 16
            archive.writestr(member, "/etc/passwd")
        archive.writestr("bomb.png", bytes(1 << 20))
        archive.writestr("secret.png", picture(1))
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\1\2") + 8] |= 1  # the last member says that it is encrypted
    path.write_bytes(data)
    return {"link.png": "a link", "device.png": "a device or the like", "bomb.png": "unpacks to more than 200 times its size",
            "secret.png": "encrypted"}  # fmt: skip


def hostile_tar(path: Path) -> dict[str, str]:
    with tarfile.open(path, "w") as archive:
        for name in ("good.png", "good.png", *HOSTILE):
            add_tar(archive, name, picture(3))
        add_tar(archive, "link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add_tar(archive, "hard.png", kind=tarfile.LNKTYPE, link="good.png")
        add_tar(archive, "device.png", kind=tarfile.CHRTYPE)
    return {"link.png": "a link", "hard.png": "a link", "device.png": "a device, a sparse file or the like"}


@pytest.mark.parametrize(("name", "make"), [("bad.zip", hostile_zip), ("bad.tar", hostile_tar)])
def test_23_hostile_members_are_left_out_and_listed(name, make, tmp_path):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    refused = make(inside / name) | dict.fromkeys(HOSTILE, "a name that leads out of the archive")
    refused["good.png"] = "the name of an earlier member"
    with pytest.warns(UserWarning, match=f"{len(refused)} entries of the source left out"):
        found = images(inside / name)
    assert found.keys == ["good.png"] and values_of(found.pixels()) == [3]
    code, out, _ = diptych("doctor", inside / name)
    assert code == 0 and "1 of 1 images can be read" in out and f"  {len(refused)} entries are left out: " in out
    for key, reason in refused.items():
        assert f"    {key}: {reason}\n" in out
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == [
        "deep",
        "deep/inside",
        f"deep/inside/{name}",
    ]


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_23_a_truncated_archive(ending, keep, tmp_path):
    path = tmp_path / f"cut.{ending}"
    tree = {f"{k}.png": picture(k) for k in range(9)}
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in tree.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w:gz" if ending == "tar.gz" else "w") as archive:
            for name, data in tree.items():
                add_tar(archive, name, data)
    data = path.read_bytes()
    data = data[: 9 * 1024] if ending == "tar" else data  # a tar ends in zeros: these could be spared
    path.write_bytes(data[: int(len(data) * keep)])
    code, out, err = diptych("pretrain", path, *SMALL, "--out", tmp_path / "run")
    assert code == 3 and out == "" and "copy it again" in refusal(err) and str(path) in err
    assert os.listdir(tmp_path) == [path.name]


def test_23_a_damaged_member_is_one_bad_image(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(5):
            archive.writestr(f"{k}.png", picture(k))
    data = bytearray(path.read_bytes())
    data[data.index(b"3.png") + 30] ^= 255
    path.write_bytes(data)
    found = images(path, size=4)
    assert values_of(found.pixels()) == [0, 1, 2, 4]
    assert found.failed == [{"key": "3.png", "reason": "the zip archive is damaged here (checksum)"}]


# --- Parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def test_24_a_missing_column_names_those_that_are_there(tmp_path):
    """The columns of a file are data: exit code 3, as for a folder without images."""
    pq.write_table(pa.table({"text": ["a"], "score": [1.0]}), tmp_path / "a.parquet")
    for words in (
        ["pretrain", tmp_path / "a.parquet", *SMALL, "--out", tmp_path / "run"],
        ["doctor", tmp_path / "a.parquet"],
    ):
        code, out, err = diptych(*words)
        assert code == 3 and out == ""
        assert "has no column image or img of {bytes, path}; it has text (string), score (double)" in refusal(err)


def test_24_a_null_image_is_a_failed_row(tmp_path):
    cells = [None if k == 2 else {"bytes": jpeg(seed=k), "path": f"{k}.jpg"} for k in range(5)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "a.parquet")
    with torch.random.fork_rng():
        made = encoder("resnet18", "small", 16, channels=(8, 8, 8, 8))
    save_encoder(tmp_path / "encoder", made, Preprocessing(16))
    code, out, _ = diptych("embed", tmp_path / "encoder", tmp_path / "a.parquet", "--out", tmp_path / "vectors")
    assert code == 0 and "4 x 8 float32, 1 image failed" in out
    index = [json.loads(line) for line in (tmp_path / "vectors" / "index.jsonl").read_text().splitlines()]
    assert [row["row"] for row in index] == [0, 1, None, 2, 3]
    assert index[2]["key"] == "a.parquet:2" and index[2]["error"] == "no bytes in this row (null)"
    assert "    a.parquet:2: no bytes in this row (null)\n" in diptych("doctor", tmp_path / "a.parquet")[1]


def test_24_a_huge_row_group_is_streamed(tmp_path, monkeypatch):
    """All images in one row group, 60 times what may be kept at once: memory is bounded, in any order of reading."""
    rng = np.random.default_rng(0)
    cells = [{"bytes": encoded(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "PNG")} for _ in range(120)]
    pq.write_table(
        pa.table({"image": pa.array(cells)}), tmp_path / "a.parquet", compression="none", use_dictionary=False
    )
    del cells
    whole = (tmp_path / "a.parquet").stat().st_size
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    monkeypatch.setattr(parquet, "BLOCK_BYTES", whole // 60)
    found, most = images(tmp_path / "a.parquet", size=8, resident=False), 0
    order = [*range(120), *rng.permutation(120)[:10].tolist()]
    for used, pixels in found.read(order, 10, workers=2):
        assert len(used) == len(pixels) == 10
        with found.source.lock:  # the next batch is being read meanwhile
            most = max(most, sum(block.nbytes for _, _, block in found.source.blocks))
    assert 0 < most < whole / 15, "two blocks, and what the reader rounds up"


def test_24_a_truncated_file(tmp_path):
    pq.write_table(pa.table({"image": pa.array([{"bytes": picture(1)}])}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for keep in (0, len(data) // 2, len(data) - 4):
        (tmp_path / "a.parquet").write_bytes(data[:keep])
        code, _, err = diptych("doctor", tmp_path / "a.parquet")
        assert code == 3 and "a.parquet is not complete Parquet" in refusal(err)


def test_23_a_tar_gz_leaves_no_file_behind(tmp_path, monkeypatch):
    """A .tar.gz is unpacked into a file without a name: nothing is left, whatever happens to the process."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        add_tar(archive, "1.png", picture(7))
    (tmp_path / "a.tar.gz").write_bytes(file.getvalue())
    found = images(tmp_path / "a.tar.gz")
    assert os.listdir(temporary) == [] and values_of(found.pixels()) == [7]
