"""Embeddings as one Parquet file, read by those for whom it is written."""

import io
import json
import sys

import numpy as np
import pyarrow.parquet
import pytest
import torch
from fake_source import picture
from PIL import Image
from torch import nn

import diptych
from diptych.base.errors import OutputError, RecipeError
from diptych.data.images import images
from diptych.downstream import table as table_file
from diptych.downstream.embed import embed_table
from diptych.downstream.table import TableOptions, write_table
from diptych.embeddings.nearest import nearest_others
from diptych.embeddings.plane import principal_map, project
from diptych.embeddings.store import load_embeddings
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained

QUIET = {"device": "cpu", "show": False}
COUNT = 40


class Corners(nn.Module):
    """(N, 3, 8, 8) -> (N, 12)."""

    def forward(self, pixels):
        return pixels[:, :, ::7, ::7].flatten(1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 images in two classes; number 5 cannot be read."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / "ab"[i % 2] / f"{i:02d}.png")
    (root / "b" / "05.png").write_bytes(b"text")
    return root


def opened(photos, **options):
    return images(photos, size=8, **{"resident": False} | options)


@pytest.fixture(scope="module")
def written(photos, tmp_path_factory):
    """(the Parquet file, what a folder of the same embeddings holds)"""
    place = tmp_path_factory.mktemp("written")
    trained = Trained(Corners(), Preprocessing(8))
    vectors = diptych.embed(trained, opened(photos), out=place / "x.parquet", source=str(photos), **QUIET)
    assert vectors.shape == (COUNT - 1, 12) and [file.name for file in place.iterdir()] == ["x.parquet"]
    diptych.embed(trained, opened(photos), out=place / "folder", source=str(photos), **QUIET)
    return place / "x.parquet", load_embeddings(place / "folder")


def test_pyarrow(written, photos):
    file, saved = written
    table = pyarrow.parquet.read_table(file)
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds == {
        "file_name": "string",
        "label": "string",
        "image": "struct<bytes: binary, path: string>",
        "vector": "fixed_size_list<element: float>[12]",
        "projection_x": "float",
        "projection_y": "float",
        "neighbors": "struct<ids: list<element: int64>, distances: list<element: float>>",
    }
    ready = [line for line in saved.index if line["status"] == "ok"]
    assert table["file_name"].to_pylist() == [line["key"] for line in ready] and len(ready) == COUNT - 1
    assert table["label"].to_pylist() == [line["label"] for line in ready]
    assert torch.equal(torch.tensor(table["vector"].to_pylist()), saved.vectors)
    similarity, rows = nearest_others(saved.vectors, 10)
    near = table["neighbors"].to_pylist()
    assert [entry["ids"] for entry in near] == rows.tolist()
    assert all(row not in entry["ids"] for row, entry in enumerate(near))
    assert np.allclose([entry["distances"] for entry in near], 1 - similarity, atol=1e-6)
    data = table["image"][3].as_py()
    with Image.open(io.BytesIO(data["bytes"])) as image, Image.open(photos / data["path"]) as original:
        assert data["path"] == ready[3]["key"] and np.array_equal(image, original), "small images lose nothing"
    assert np.isfinite(table["projection_x"].to_numpy()).all() and table["projection_y"].to_numpy().std() > 0


def test_the_metadata_say_what_made_it(written):
    file, saved = written
    meta = json.loads(pyarrow.parquet.read_schema(file).metadata[b"diptych"])
    assert saved.meta.items() <= meta.items() and meta["projection"] in ("t-SNE", "principal components")
    assert meta["l2_normalized"] is False and meta["preprocessing"]["size"] == 8 and len(meta["encoder_sha256"]) == 64


def test_pandas(written):
    pandas = pytest.importorskip("pandas")
    file, saved = written
    frame = pandas.read_parquet(file)
    assert np.array_equal(np.stack(frame["vector"]), saved.vectors.numpy())
    assert frame["neighbors"][0]["ids"][0] == nearest_others(saved.vectors, 1)[1][0, 0]


def test_duckdb(written):
    duckdb = pytest.importorskip("duckdb")
    file, saved = written
    query = f"""SELECT file_name FROM '{file}' ORDER BY
                array_cosine_similarity(vector::FLOAT[12], (SELECT vector::FLOAT[12] FROM '{file}' LIMIT 1)) DESC LIMIT 3"""
    names = [row[0] for row in duckdb.sql(query).fetchall()]
    _, rows = nearest_others(saved.vectors, 2)
    assert names == [saved.index.of_row(row)["key"] for row in [0, *rows[0].tolist()]]


def test_polars(written):
    polars = pytest.importorskip("polars")
    file, saved = written
    frame = polars.read_parquet(file)
    assert frame["vector"].dtype == polars.Array(polars.Float32, 12)
    assert np.array_equal(frame["vector"].to_numpy(), saved.vectors.numpy())


@pytest.mark.filterwarnings("ignore")  # of the library, about itself
def test_datasets(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    file, saved = written
    table = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path))
    assert isinstance(table.features["image"], datasets.Image) and table.features["vector"].length == 12
    assert table[0]["image"].size == (8, 8) and np.allclose(table[0]["vector"], saved.vectors[0])


def test_diptych_reads_it_as_a_source(written, photos):
    found = images(written[0], size=8)
    assert len(found) == COUNT - 1 and found.classes == ["a", "b"]
    assert torch.equal(found.load(0), opened(photos).load(0))


def test_in_a_folder_beside_the_others_and_later(photos, tmp_path):
    trained = Trained(Corners(), Preprocessing(8))
    diptych.embed(trained, opened(photos), out=tmp_path / "v", **QUIET)
    options = TableOptions(thumbnail=0, neighbors=0)
    with pytest.raises(OutputError, match="not empty"):
        embed_table(trained, opened(photos), tmp_path / "v", options=options, **QUIET)
    for _ in range(2):  # the second time it is there
        embed_table(trained, opened(photos), tmp_path / "v", resume=True, options=options, **QUIET)
        names = pyarrow.parquet.read_schema(tmp_path / "v" / "embeddings.parquet").names
        assert names == ["file_name", "label", "vector", "projection_x", "projection_y"]
    assert len(load_embeddings(tmp_path / "v").vectors) == COUNT - 1


def test_a_table_goes_on_where_it_was_stopped(photos, tmp_path, monkeypatch):
    trained, file = Trained(Corners(), Preprocessing(8)), tmp_path / "x.parquet"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(table_file, "nearest_others", stop)
        diptych.embed(trained, opened(photos), out=file, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet.partial"]
    with pytest.raises(OutputError, match=r"x.parquet.partial exists and is not empty"):
        diptych.embed(trained, opened(photos), out=file, **QUIET)
    diptych.embed(trained, opened(photos), out=file, resume=True, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize("out", ["x.parquet", "folder"])
def test_an_occupied_place_or_no_pyarrow_is_refused_first(out, photos, tmp_path, monkeypatch):
    encoder = Trained(nn.Identity(), Preprocessing(8))  # no embedding: it would be another error
    place = tmp_path / out
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(OutputError, match=r'pip install "diptych\[parquet\]"'):
            embed_table(encoder, opened(photos), place, **QUIET)
    assert list(tmp_path.iterdir()) == []
    (place / "mine").mkdir(parents=True) if out == "folder" else place.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        embed_table(encoder, opened(photos), place, **QUIET)


def test_rows_in_groups_and_larger_pictures_as_jpeg(tmp_path, monkeypatch):
    monkeypatch.setattr(table_file, "ROWS_PER_GROUP", 16)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3), dtype=np.uint8)
    trained = Trained(Corners(), Preprocessing(8))
    diptych.embed(trained, images(pixels), out=tmp_path / "v", **QUIET)
    write_table(tmp_path / "x.parquet", load_embeddings(tmp_path / "v"), images(pixels), TableOptions(64, 50))
    opened_file = pyarrow.parquet.ParquetFile(tmp_path / "x.parquet")
    assert opened_file.num_row_groups == 3
    table = opened_file.read()
    with Image.open(io.BytesIO(table["image"][39].as_py()["bytes"])) as image:
        assert image.format == "JPEG" and image.size == (64, 64)
        assert np.abs(np.asarray(image, int).mean() - pixels[39].mean()) < 4
    assert table["label"].null_count == 40 and len(table["neighbors"][0].as_py()["ids"]) == 39, "all others there are"


def test_options_out_of_range():
    for options in ({"thumbnail": -1}, {"neighbors": 5000}):
        with pytest.raises(RecipeError, match="it is from 0"):
            TableOptions(**options)


def test_a_map_of_many_is_the_principal_components_in_blocks(monkeypatch):
    monkeypatch.setattr("diptych.embeddings.plane.MOST_TSNE", 10)
    monkeypatch.setattr("diptych.embeddings.plane.ROWS_PER_BLOCK", 64)
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(300, 16, generator=rng) * torch.linspace(3, 1, 16) + 1
    xy, name = project(vectors)
    wanted = principal_map(torch.nn.functional.normalize(vectors.double(), dim=1).numpy())
    assert name == "principal components" and np.allclose(xy, wanted, atol=1e-5)
    assert project(torch.randn(30, 1, generator=rng))[0].shape == (30, 2)


def test_thumbnails_are_those_of_the_rows(tmp_path):
    """Also where the images are in memory, and without those that cannot be read."""
    names = {f"{i}.png": picture(i, 8, 8) if i != 2 else b"bad" for i in range(6)}
    for name, data in names.items():
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    for resident in (True, False):
        file = tmp_path / f"{resident}.parquet"
        found = images(tmp_path / "photos", size=8, resident=resident)
        diptych.embed(Trained(Corners(), Preprocessing(8)), found, out=file, **QUIET)
        rows = pyarrow.parquet.read_table(file).to_pylist()
        assert [row["file_name"] for row in rows] == ["0.png", "1.png", "3.png", "4.png", "5.png"]
        for row in rows:
            with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                assert image.getpixel((0, 0)) == (int(row["file_name"][0]), 0, 0)
