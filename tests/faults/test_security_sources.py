"""Archives, tables, recipes and names made by an enemy: nothing is written, nothing runs, the error is one line of ours."""

import io
import os
import tarfile
import urllib.parse
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from fake_run import CLASSES, fake_run
from fake_source import picture
from hostile import few, is_one_line, tree
from hypothesis import given
from hypothesis import strategies as some
from page import Page

from diptych.base import strict_yaml
from diptych.base.errors import DataError, RecipeError
from diptych.data.decode import BadImage
from diptych.data.images import images
from diptych.data.open import open_source
from diptych.data.source import MAX_BYTES
from diptych.downstream.spreadsheet import harmless
from diptych.reporting.report import report

pytestmark = pytest.mark.filterwarnings("ignore:.* entries of the source left out")

# --- archives

HOSTILE = some.sampled_from(["..", "", ".", "C:", "\0", "a", "canary", "~", "a" * 300, "é"])
NAMES = some.lists(HOSTILE, min_size=1, max_size=4).map("/".join) | some.lists(HOSTILE, min_size=2, max_size=3).map(
    "\\".join
)
KINDS = some.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])


def archive(folder: Path, form: str, members: list[tuple[str, bytes]]) -> Path:
    path = folder / f"evil.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w") as made:
            for name, kind in members:
                member = zipfile.ZipInfo(f"{name}.png")
                member.filename = f"{name}.png"  # as it is: ZipInfo cuts at a NUL
                member.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
                made.writestr(member, picture(1))
    else:
        with tarfile.open(path, "w") as made:
            for name, kind in members:
                member = tarfile.TarInfo(f"{name}.png")
                member.type, member.linkname, member.size = kind, "/etc/passwd", len(picture(1))
                made.addfile(member, io.BytesIO(picture(1)))
    return path


@few(80)
@given(form=some.sampled_from(["zip", "tar"]), members=some.lists(some.tuples(NAMES, KINDS), min_size=1, max_size=4))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_writes_nothing_and_gives_no_name_that_leaves_it(tmp_path, form, members):
    path = archive(tmp_path, form, members)
    try:
        source = open_source(path)
    except DataError as error:
        assert is_one_line(error)
    else:
        for i in range(len(source)):
            parts = source.key(i).replace("\\", "/").split("/")
            assert ".." not in parts and parts[0] not in ("", "C:") and source.read(i) == picture(1)
    assert tree(tmp_path) == [path.name]
    path.unlink()


@few(40)
@given(
    claimed=some.sampled_from([0, 1, 2**20, 2**31, 2**32 - 2]),
    place=some.sampled_from([20, 24, 42]),
    packed=some.booleans(),
)
def test_an_archive_that_lies_about_sizes_gives_bad_images(tmp_path, claimed, place, packed):
    """Packed size, unpacked size and position of a zip's second member, as its directory gives them."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as made:
        made.writestr("1.png", picture(1))
        made.writestr("2.png", picture(2))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    entry = data.rindex(b"PK\1\2")
    data[entry + place : entry + place + 4] = claimed.to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(data)
    try:
        source = open_source(tmp_path / "x.zip")
    except DataError as error:
        assert is_one_line(error)
        return
    assert source.read(0) == picture(1)
    assert len(source) == 1 or place == 42 or claimed <= MAX_BYTES, "so much would be asked of the memory"
    for i in range(1, len(source)):
        try:
            assert source.read(i) == picture(2)
        except BadImage as error:
            assert is_one_line(error)


# --- recipes


TAGS = ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir", "!!python/module:os",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir>", "!!binary", "!!set", "!own")  # fmt: skip


@few(60)
@given(
    tag=some.sampled_from(TAGS), place=some.sampled_from(["{}", "a: {}", "- {}", "a: [1, {}]", "? {}\n: 1", "a: &x {}"])
)
def test_a_recipe_makes_no_object(tmp_path, tag, place):
    text = place.format(f"{tag} [{tmp_path / 'canary'}]")
    with pytest.raises(RecipeError, match=r"recipe.yaml") as caught:
        strict_yaml.parse(text, "recipe.yaml")
    assert is_one_line(caught.value) and tree(tmp_path) == []


@few(150)
@given(text=some.text("ab:-?[]{},&*!|>'\"%@#\n \t~0.e\0\ufeff", max_size=30) | some.binary(max_size=30))
def test_any_text_is_a_value_or_one_error(text):
    try:
        value = strict_yaml.parse(text, "recipe.yaml")
    except RecipeError as error:
        assert str(error).startswith("recipe.yaml") and is_one_line(error)
    else:
        assert strict_yaml.parse(strict_yaml.write(value), "again") == value or value != value or "nan" in str(value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 50_000, "a: " + "9" * 10_000, "a: &x [1]\nb: *x", "- " * 60_000, "\0"]
)
def test_bombs_are_refused_at_once(text):
    with pytest.raises(RecipeError) as caught:
        strict_yaml.parse(text, "recipe.yaml")
    assert is_one_line(caught.value)


# --- names and tables


@few(60)
@given(
    names=some.lists(
        some.binary(min_size=1, max_size=40).filter(lambda name: not set(name) & {0, 47}), max_size=4, unique=True
    )
)
def test_any_file_name_is_a_printable_key_that_leads_back(tmp_path, names):
    folder = tmp_path / "photos"
    folder.mkdir()
    made = [os.path.join(os.fsencode(folder), name + b".png") for name in names] + [os.fsencode(folder / "a.png")]
    for path in made:
        with open(path, "wb") as file:
            file.write(picture(1))
    source = open_source(folder)
    for i in range(len(source)):
        key = source.key(i)
        assert not any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in key)
        assert os.path.join(os.fsencode(folder), urllib.parse.unquote_to_bytes(key)) in made
        assert not harmless(key).startswith(("=", "+", "-", "@", "\t", "\r"))
    for path in made:
        os.unlink(path)
    folder.rmdir()


HTML = b"<script>alert(1)</script>"


@pytest.mark.parametrize(
    "column", [[HTML.decode()], [{"bytes": HTML.decode(), "path": "x"}], [{"path": HTML.decode()}], [[1]]]
)
def test_a_parquet_column_that_is_no_bytes_is_named(tmp_path, column):
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="x.parquet has no column image or img") as caught:
        open_source(tmp_path / "x.parquet")
    assert is_one_line(caught.value)


def test_html_in_a_parquet_file_is_a_bad_image_and_a_class_name(tmp_path):
    table = pyarrow.table({"image": [{"bytes": HTML, "path": "../../x"}, {"bytes": picture(1), "path": "/etc/passwd"}],
                           "label": [HTML.decode(), "=cmd()"]})  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    photos = images(tmp_path / "x.parquet", size=8)
    assert photos.pixels().shape == (1, 3, 8, 8) and photos.classes == [HTML.decode(), "=cmd()"]
    assert photos.failed == [{"key": "x.parquet:0", "reason": "not an image (starts with '<script')"}]
    assert tree(tmp_path) == ["x.parquet"]


@pytest.mark.parametrize("claim", [b"\xfe\x7f", b"\xff\x7f"], ids=["8191 rows", "-8192 rows"])
@pytest.mark.parametrize("place", [*range(6), None])
def test_a_parquet_footer_that_lies_about_rows_is_one_error(tmp_path, claim, place):
    """Of 1,000 rows it says more, or less than none, in one of the six places that tell (None: in all)."""
    file, row = tmp_path / "x.parquet", {"bytes": picture(1), "path": ""}
    pyarrow.parquet.write_table(pyarrow.table({"image": [row] * 1000}), file)
    data = bytearray(file.read_bytes())
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [i for i in range(start, len(data)) if data[i : i + 2] == b"\xd0\x0f"]  # 1,000 as Thrift writes it
    for i in places if place is None else places[place : place + 1]:
        data[i : i + 2] = claim
    file.write_bytes(data)
    try:
        source = open_source(file)
        assert source.read(0) == source.read(len(source) - 1) == picture(1)
    except DataError as error:
        assert is_one_line(error)


@pytest.mark.parametrize("length", [0, 1, 100, 10**6, 2**31 - 1, 2**32 - 1])
def test_a_parquet_footer_that_lies_about_its_length_is_one_error(tmp_path, length):
    file = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [{"bytes": picture(1), "path": ""}]}), file)
    file.write_bytes(file.read_bytes()[:-8] + length.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match="x.parquet is not complete Parquet") as caught:
        open_source(file)
    assert is_one_line(caught.value)


# --- the report


def tags(page: Page) -> list:
    """Without the places where a long word may be broken."""
    return [tag for tag in page.shape() if tag[0] != "wbr"]


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory) -> Page:
    return Page(report(fake_run(tmp_path_factory.mktemp("plain") / "run", mapped=10)))


@few(2)
@given(
    words=some.lists(
        some.text("<>\"'&/={}%\\`; ascript\n\u2028\0", min_size=1, max_size=30), min_size=5, max_size=5, unique=True
    )
)
def test_no_class_name_makes_a_tag(tmp_path_factory, plain_page, words):
    names = tuple(
        f"{i}{word}" for i, word in enumerate(words)
    )  # as many classes, in the same order, as the plain page has
    page = Page(report(fake_run(tmp_path_factory.mktemp("hostile") / "run", classes=names, mapped=10)))
    assert tags(page) == tags(plain_page) and len(CLASSES) == len(names)
    assert [attributes for attributes, _ in page.scripts] == [attributes for attributes, _ in plain_page.scripts]
