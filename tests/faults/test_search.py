"""`diptych search`: what it finds, and one line for everything that it cannot use."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from page import Page
from PIL import Image
from spoiled import diptych as command
from spoiled import photographs, refusal

import diptych
from diptych.downstream.embed import embed_table
from diptych.downstream.search import search
from diptych.downstream.vectors import open_bank
from diptych.embeddings.nearest import nearest, nearest_others
from diptych.embeddings.store import load_embeddings, save_embeddings
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import load, save_encoder


def save_network(folder: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return save_encoder(
            folder, diptych.encoder("resnet18", "small", 32, channels=(8, 8, 16, 16)), Preprocessing(32)
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """photos/, the encoders enc/ and other/, and the embeddings v/ with v/embeddings.parquet."""
    root = tmp_path_factory.mktemp("search")
    photographs(root / "photos")
    save_network(root / "enc", 0)
    save_network(root / "other", 1)
    shutil.copy(root / "photos" / "dog" / "04.jpg", root / "query.jpg")
    found = diptych.images(root / "photos", size=32)
    embed_table(load(root / "enc"), found, root / "v", source=str(root / "photos"), device="cpu", show=False)
    return root


BANKS = ["v", "v/embeddings.parquet"]


def lines_of(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines() if line[:4].strip().isdigit()]


@pytest.mark.parametrize("bank", BANKS)
def test_an_image_finds_itself_and_a_row_its_neighbours(bank, place):
    saved = load_embeddings(place / "v")
    similarity, rows = nearest_others(saved.vectors, 3)
    code, out, err = command("search", place / bank, place / "query.jpg", "--top", 3)
    assert code == 0, err
    first, *rest = lines_of(out)
    assert (
        first == ["1", "1.0000", "16", "dog", "dog/04.jpg"] and [int(line[2]) for line in rest] == rows[16, :2].tolist()
    )
    for query in ("16", "dog/04.jpg"):
        code, out, _ = command("search", place / bank, query, "--top", 3)
        assert code == 0
        expected = [[str(k + 1), f"{similarity[16, k]:.4f}", str(int(rows[16, k]))] for k in range(3)]
        assert [line[:3] for line in lines_of(out)] == expected
    code, out, _ = command("search", place / bank, place / "photos", "--top", 1)
    assert code == 0 and [line[2] for line in lines_of(out)] == [str(i) for i in range(24)]
    assert out.startswith("cat/00.jpg:\n")


@pytest.mark.parametrize("bank", BANKS)
def test_the_page_shows_pictures_and_needs_nothing(bank, place, tmp_path):
    for query, count in ((place / "query.jpg", 5), ("3", 5), (place / "photos", 24 * 5)):
        code, out, err = command("search", place / bank, query, "--top", 4, "--out", tmp_path / "page.html")
        assert code == 0 and out.splitlines()[-1] == str(tmp_path / "page.html"), err
        page = Page(tmp_path / "page.html")
        sources = page.attributes("src")
        assert len(sources) == count and all(source.startswith("data:image/png;base64,") for source in sources)
        assert not page.scripts and "http:" not in page.source and "https:" not in page.source
        assert "dog/04.jpg" in page.text or query == "3"


def test_the_page_says_how_many_queries_it_leaves_out(place, tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.reporting.gallery.QUERIES", 3)
    for query, left_out in ((place / "photos", True), ("3", False)):
        assert command("search", place / "v", query, "--top", 2, "--out", tmp_path / "page.html")[0] == 0
        page = Page(tmp_path / "page.html")
        assert ("Further queries that are not shown: 21." in page.text) is left_out
    assert len(page.attributes("src")) == 3


def test_without_its_source_the_page_says_so(place, tmp_path):
    folder = shutil.copytree(place / "v", tmp_path / "v")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"source": str(tmp_path / "gone")}))
    code, _, err = command("search", folder, "3", "--top", 2, "--out", tmp_path / "page.html")
    assert code == 0 and "the page has no pictures" in err and "name their source as --images" in err
    assert Page(tmp_path / "page.html").attributes("src") == []
    code, _, err = command(
        "search", folder, "3", "--top", 2, "--out", tmp_path / "page.html", "--images", place / "photos"
    )
    assert code == 0 and err.count("diptych:") == 0 and len(Page(tmp_path / "page.html").attributes("src")) == 3
    (tmp_path / "gone").mkdir()
    shutil.copy(place / "query.jpg", tmp_path / "gone")
    code, _, err = command("search", folder, "3", "--out", tmp_path / "page.html")
    assert code == 0 and "has changed since it was embedded" in err


def test_names_and_labels_are_only_text(tmp_path):
    keys = ["<script>alert(1)</script>.png", "\"onload=x' & co.png"]
    save_embeddings(tmp_path / "v", np.eye(2), keys, labels=["<b>", "<b>"])
    code, _, err = command("search", tmp_path / "v", "0", "--out", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert code == 0 and not page.scripts and keys[0] in page.text and keys[1] in page.text, err


def test_faiss_finds_the_same_in_small_banks(place):
    pytest.importorskip("faiss")
    bank = open_bank(place / "v")
    queries = torch.cat([bank.vector(row) for row in (1, 16)])
    exact, graph = (search(bank, queries, ["a", "b"], top=5, index=index) for index in ("exact", "faiss"))
    assert [[near.row for near in answer.neighbours] for answer in exact] == [
        [near.row for near in answer.neighbours] for answer in graph
    ]


def test_a_bank_in_blocks_is_the_bank_at_once(place, monkeypatch):
    """Blocks of a Parquet file, of a memory-mapped array, and of one in memory."""
    saved = load_embeddings(place / "v")
    wanted = nearest(saved.vectors[:5], saved.vectors, 7)
    for path in BANKS:
        for rows in (5, 16):
            monkeypatch.setattr("diptych.downstream.vectors.BANK_ROWS_PER_BLOCK", rows)
            answers = search(open_bank(place / path), saved.vectors[:5], list("abcde"), top=7)
            mine = torch.tensor([[near.similarity for near in answer.neighbours] for answer in answers])
            torch.testing.assert_close(mine, wanted[0], rtol=0, atol=1e-6)
            assert [[near.row for near in answer.neighbours] for answer in answers] == wanted[1].tolist()


# ---- what it cannot use


def refused(code: int, *words: object, out: Path | None = None) -> str:
    """The one line of a search that ends with this code; the page, if one is named, stays as it is."""
    before = out.read_bytes() if out is not None else b""
    ended, printed, err = command("search", *words, *(["--out", out] if out is not None else []))
    assert (ended, printed) == (code, ""), err
    assert out is None or out.read_bytes() == before
    return refusal(err)


def altered(place: Path, tmp_path: Path, change) -> Path:
    """A copy of the Parquet with another table or other metadata."""
    table = pyarrow.parquet.read_table(place / "v" / "embeddings.parquet")
    pyarrow.parquet.write_table(change(table), tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


@pytest.mark.parametrize("bank", BANKS)
def test_vectors_of_another_encoder(bank, place, tmp_path):
    page = tmp_path / "page.html"
    page.write_bytes(b'<meta name="generator" content="Diptych">')
    line = refused(4, place / bank, place / "query.jpg", "--run", place / "other", out=page)
    assert "was made by another encoder than" in line and "(weights differ)" in line and str(place / "enc") in line
    other = shutil.copytree(place / "enc", tmp_path / "enc")
    config = json.loads((other / "config.json").read_text())
    config["diptych"]["preprocessing"]["mean"] = [0.5, 0.5, 0.5]
    (other / "config.json").write_text(json.dumps(config))
    assert "(preprocessing differ)" in refused(4, place / bank, place / "query.jpg", "--run", other)


def test_the_encoder_is_gone_or_was_never_said(place, tmp_path):
    folder = shutil.copytree(place / "v", tmp_path / "v")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"encoder": "gone"}))
    assert "was made by gone, which is not there: name the encoder as --run" in refused(4, folder, place / "query.jpg")
    assert command("search", folder, place / "query.jpg", "--run", place / "enc")[0] == 0
    save_embeddings(tmp_path / "own", np.eye(3), list("abc"))
    for words in ([], ["--run", place / "enc"]):
        assert "does not say which encoder" in refused(3, tmp_path / "own", place / "query.jpg", *words)
    assert command("search", tmp_path / "own", "b", "--top", 1)[0] == 0


def test_queries_that_are_none(place, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    for query, reason in (
        (tmp_path / "text.jpg", "text.jpg is not an image (not an image (starts with 'no'))"),
        (tmp_path / "empty", "holds no images"),
        ("24", "there is no row 24; the saved embeddings have rows 0 to 23"),
        ("nothing.jpg", "nothing.jpg is not a file, folder, row or key of"),
        ("9" * 30, "is not a file, folder, row or key of"),
    ):
        assert reason in refused(3, place / "v", query)
    assert "there is no row -1" in refused(3, place / "v", "--", "-1")


def test_options_that_are_none(place, tmp_path):
    assert "--top is the number of neighbours, at least 1; got 0" in refused(2, place / "v", "1", "--top", 0)
    assert "--index 'hnsw' is not one of exact, faiss" in refused(2, place / "v", "1", "--index", "hnsw")
    (tmp_path / "mine.html").write_text("mine")
    assert "was not written by diptych" in refused(6, place / "v", "1", out=tmp_path / "mine.html")


def test_faiss_is_an_extra(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert 'pip install "diptych[faiss]", or use --index exact' in refused(2, place / "v", "1", "--index", "faiss")


def not_finite(folder: Path, place: Path) -> str:
    array = np.load(folder / "vectors.npy")
    array[3, 1] = np.nan
    np.save(folder / "vectors.npy", array)
    return "1 of 24 bank embeddings hold NaN or infinity"


def empty(folder: Path, place: Path) -> str:
    shutil.rmtree(folder)
    save_embeddings(folder, np.zeros((0, 4)), ["a"], status=["bad"])
    return "holds no vector"


def another_version(folder: Path, place: Path) -> str:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    return "has format 2, this version of diptych reads 1"


def no_vectors(folder: Path, place: Path) -> str:
    (folder / "vectors.npy").unlink()
    return "holds no embeddings"


def a_picture(folder: Path, place: Path) -> str:
    shutil.rmtree(folder)
    shutil.copy(place / "query.jpg", folder)
    return "is not complete Parquet"


def nothing(folder: Path, place: Path) -> str:
    shutil.rmtree(folder)
    return "does not exist"


@pytest.mark.parametrize("spoil", [not_finite, empty, another_version, no_vectors, a_picture, nothing])
def test_folders_that_are_none(spoil, place, tmp_path):
    folder = shutil.copytree(place / "v", tmp_path / "v")
    message = spoil(folder, place)
    assert message in refused(3, folder, "1")


def with_format(table, value):
    return table.replace_schema_metadata({"diptych": json.dumps({"format": value})})


def with_nan(table):
    vectors = table["vector"].combine_chunks()
    numbers = vectors.flatten().to_numpy().copy()
    numbers[5] = np.nan
    column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(numbers), vectors.type.list_size)
    return table.set_column(table.schema.get_field_index("vector"), "vector", column)


TABLES = {
    "without vectors": (
        lambda table: table.drop_columns(["vector"]),
        "has no column vector, a list of float of fixed size",
    ),
    "lists of any length": (
        lambda table: table.set_column(0, "vector", pyarrow.array([[1.0]] * 24)).drop_columns(["label"]),
        "has no column",
    ),
    "without names": (lambda table: table.drop_columns(["file_name"]), "has no column file_name, text"),
    "by another program": (lambda table: table.replace_schema_metadata({}), "does not say which encoder made it"),
    "another version": (lambda table: with_format(table, 2), "has format 2, this version of diptych reads 1"),
    "metadata that are a list": (lambda table: table.replace_schema_metadata({"diptych": "[1]"}), "has format [1]"),
    "no rows": (lambda table: table.slice(0, 0), "holds no vector"),
    "NaN": (with_nan, "1 of 24 bank embeddings hold NaN or infinity"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_are_none(kind, place, tmp_path):
    change, message = TABLES[kind]
    assert message in refused(3, altered(place, tmp_path, change), "1")


def test_a_damaged_table_is_one_line(place, tmp_path):
    data = (place / "v" / "embeddings.parquet").read_bytes()
    for cut in (0, 4, len(data) // 2, len(data) - 1):
        (tmp_path / "x.parquet").write_bytes(data[:cut])
        assert "x.parquet is not complete Parquet" in refused(3, tmp_path / "x.parquet", "1")


def test_a_thumbnail_that_is_no_image_is_a_blank(place, tmp_path):
    def spoil(table):
        column = pyarrow.array([{"bytes": b"<script>", "path": "x"}] * 24, table.schema.field("image").type)
        return table.set_column(table.schema.get_field_index("image"), "image", column)

    file = altered(place, tmp_path, spoil)
    code, _, err = command("search", file, "1", "--top", 2, "--out", tmp_path / "page.html")
    assert code == 0 and "the page has no pictures" in err
    assert Page(tmp_path / "page.html").attributes("src") == []


def test_a_wider_image_than_any_other_is_searched_as_it_was_embedded(place, tmp_path):
    """The same centre crop; a page of a photograph that is no square."""
    Image.open(place / "query.jpg").resize((300, 250)).save(tmp_path / "large.jpg", quality=95)
    code, out, _ = command("search", place / "v", tmp_path / "large.jpg", "--top", 1)
    assert code == 0 and lines_of(out)[0][3] == "dog"
