"""Pictures and charts as numbers: sheets, maps, ticks and lines are where they belong."""

import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from diptych.base.errors import DataError
from diptych.embeddings import plane
from diptych.reporting import charts, pictures
from diptych.reporting.pictures import line_picture


def flat(colours: list[tuple[int, int, int]], size: int) -> np.ndarray:
    """One image of `size` pixels for each colour."""
    return np.array(colours, np.uint8)[:, None, None].repeat(size, axis=1).repeat(size, axis=2)


@pytest.mark.parametrize("n, size, tile", [(1, 224, 192), (6, 96, 96), (7, 64, 128), (17, 32, 96)])
def test_contact_sheet_shows_each_image_beside_its_views(n, size, tile):
    reds, greens, blues = (
        [tuple(c * (i + 5) for c in unit) for i in range(n)] for unit in np.eye(3, dtype=int).tolist()
    )
    sheet = np.asarray(pictures.contact_sheet(flat(reds, size), [flat(greens, size), flat(blues, size)]))
    for i, colours in enumerate(zip(reds, greens, blues, strict=True)):
        (top, left), (top_1, left_1), (top_2, left_2) = (corner(sheet, colour, tile) for colour in colours)
        assert top == top_1 == top_2, f"image {i} and its views stand in one row"
        assert left + tile < left_1 and left_1 + tile < left_2
        assert left_2 - (left_1 + tile) < left_1 - (left + tile), "the views stand together"


def corner(sheet: np.ndarray, colour: tuple[int, int, int], tile: int) -> tuple[int, int]:
    """(top, left) of the one tile of this colour."""
    places = np.argwhere((sheet == colour).all(axis=-1))
    assert len(places) == tile**2 and (np.ptp(places, axis=0) == tile - 1).all(), "it is there once, whole"
    top, left = places.min(axis=0)
    return int(top), int(left)


@pytest.mark.parametrize("count, lines", [(1, [1]), (3, [3]), (8, [8]), (9, [5, 4]), (20, [7, 7, 6])])
@pytest.mark.parametrize("n", [1, 4])
def test_contact_sheet_shows_any_number_of_views(n, count, lines):
    """The first two views have 32 pixels, the others 16: all have tiles of one size, in lines of at most 8."""
    colours = [[(8 * k + 3, 11 * i + 2, 77) for i in range(n)] for k in range(count + 1)]
    views = [flat(shades, 32 if k < 2 else 16) for k, shades in enumerate(colours[1:])]
    sheet = np.asarray(pictures.contact_sheet(flat(colours[0], 64), views))
    for i in range(n):
        (top, left), *places = (corner(sheet, shades[i], 96) for shades in colours)
        tops = sorted({place[0] for place in places})
        assert tops[0] == top and [sum(place[0] == line for place in places) for line in tops] == lines
        assert places == sorted(places), "views stand in their order"
        assert all(place[1] > left + 96 for place in places)
    assert sheet.shape[1] < 1200, "a sheet of many views has few blocks"


def test_contact_sheet_has_headings_and_blocks():
    small, large = (sheet_of(flat([(0, 0, 0)] * n, 32), 2) for n in (6, 7))
    assert large.width == 2 * small.width and large.height < small.height
    heading = np.asarray(small)[:45].min(axis=(0, 2)) < 200
    starts = np.flatnonzero(np.diff(heading.astype(int)) == 1)
    assert any(20 <= start < 40 for start in starts) and any(130 <= start < 150 for start in starts)
    assert any(230 <= start < 250 for start in starts), "each view has a heading"
    one, three = (sheet_of(flat([(0, 0, 0)], 32), count) for count in (1, 3))
    assert three.width - one.width == 2 * (96 + 3)


def sheet_of(images: np.ndarray, count: int) -> Image.Image:
    return pictures.contact_sheet(images, [images] * count)


def test_contact_sheet_refuses_what_does_not_fit():
    images = flat([(0, 0, 0)] * 3, 32)
    for wrong in (images[:2], images[:0], images.astype(np.float32), images[..., :1]):
        with pytest.raises(DataError):
            pictures.contact_sheet(images, [images, wrong])
    with pytest.raises(DataError):
        pictures.contact_sheet(images[:0], [images[:0]])
    with pytest.raises(DataError, match=r"as many images as views, got \[3\]"):
        pictures.contact_sheet(images, [])


def test_enlarging_keeps_pixels_and_shrinking_filters():
    """A board of single black and white pixels: enlarged it stays black and white, shrunk it is grey."""
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, ..., None].repeat(3, axis=-1)
    sheet = np.asarray(sheet_of(board, 2))[50:146, 24:120]
    assert set(np.unique(sheet)) == {0, 255} and np.array_equal(sheet[1::3, 1::3], board[0])
    assert abs(pictures.shrink_to_fit(board, 16).astype(int) - 127).max() < 30
    assert pictures.shrink_to_fit(board, 32) is not None and np.array_equal(pictures.shrink_to_fit(board, 40), board)


def test_thumbnails_keep_the_proportions():
    wide = np.zeros((2, 30, 60, 3), np.uint8)
    small = pictures.shrink_to_fit(wide, 20)
    assert small.shape == (2, 20, 20, 3) and (small[:, 5:15] < 30).all() and (small[:, :5] == pictures.PAPER).all()
    assert pictures.shrink_to_fit(wide[:0], 20).shape == (0, 20, 20, 3)


@pytest.mark.parametrize("channels", [3, 4])
def test_data_uri_is_the_image(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    start, text = pictures.data_uri(image).split(",")
    assert start == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), image)


def test_principal_map_finds_the_directions():
    """An ellipse in 30 dimensions: the map gives it back, with the signs that the loadings decide."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(30, 2)))[0].T
    basis *= np.sign(basis[[0, 1], abs(basis).argmax(axis=1)])[:, None]
    angle = np.linspace(0, 2 * np.pi, 41)[:-1]
    axes = np.stack([5 * np.cos(angle), 2 * np.sin(angle)], axis=1)
    found = plane.principal_map(axes @ basis + 7)
    assert found.dtype == np.float32 and np.allclose(found, axes, atol=1e-5)
    assert np.allclose(plane.principal_map(-(axes @ basis)), -axes, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (2, 5), (6, 1)])
def test_maps_of_few_vectors(shape):
    vectors = np.random.default_rng(0).normal(size=shape)
    assert plane.principal_map(vectors).shape == (shape[0], 2)
    xy, how = plane.map_2d(vectors)
    assert xy.shape == (shape[0], 2) and np.isfinite(xy).all() and how == "principal components"


def test_vectors_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="finite"):
        plane.map_2d(np.array([[1.0, np.nan]] * 12))


def test_map_keeps_groups_together_and_comes_out_the_same():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    vectors = np.eye(8)[labels] * 10 + rng.normal(size=(60, 8))
    xy, how = plane.map_2d(vectors, seed=1)
    assert how == "t-SNE" and xy.shape == (60, 2) and xy.dtype == np.float32
    assert np.array_equal(xy, plane.map_2d(vectors, seed=1)[0])
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 1e9 * np.eye(60)
    assert (labels[distance.argmin(axis=1)] == labels).mean() > 0.95
    constant, how = plane.map_2d(np.ones((60, 8)))
    assert how == "principal components" and not constant.any(), "collapsed embeddings have no map, and no error"


def test_map_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    xy, how = plane.map_2d(np.random.default_rng(0).normal(size=(20, 4)))
    assert how == "principal components" and xy.shape == (20, 2)


def test_thinning_keeps_ends_and_spikes():
    points = [(step, 1.0) for step in range(100_000)]
    points[43_210] = (43_210, 99.0)
    points[77_777] = (77_777, -99.0)
    kept = charts.thin(points)
    assert len(kept) <= charts.POINTS_PER_LINE + 4 and kept == sorted(kept)
    assert {points[0], points[-1], points[43_210], points[77_777]} <= set(kept)
    assert charts.thin(points[:240]) == points[:240]


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 0), (3.2, 3.9), (-7, 1234), (5, 5), (0, 0), (1e-9, 3e-9), (0, 3e8)])
def test_linear_ticks_are_round_and_enclose(low, high):
    ticks, begin, end = charts.linear_ticks(low, high)
    assert begin <= low and high <= end and begin < end and 2 <= len(ticks) <= 8
    assert ticks[0] == pytest.approx(begin) and ticks[-1] == pytest.approx(end)
    assert all(len(f"{tick:.10e}".split("e")[0].rstrip("0")) <= 6 for tick in ticks if low != high)


def test_a_chart_puts_values_where_its_ticks_are():
    chart = charts.line_chart("x", "X", "", {"a": [(0, 0.0), (50, 0.5), (100, 1.0)], "b": [(0, 1.0)], "c": []})
    assert [tick for _, tick in chart["y_ticks"]] == ["0", "0.25", "0.5", "0.75", "1"]
    heights = {text: y for y, text in chart["y_ticks"]}
    across = {text: x for x, text in chart["x_ticks"]}
    assert chart["lines"][0]["hover"] == [
        [across[step], heights[value], int(step), value] for step, value in (("0", "0"), ("50", "0.5"), ("100", "1"))
    ]
    assert heights["0"] > heights["1"] and [line["label"] for line in chart["lines"]] == ["a", "b"]
    assert charts.line_chart("x", "X", "", {"a": []}) is None


def test_a_wide_range_is_drawn_logarithmically_where_allowed():
    points = [(i, 10.0**-i) for i in range(5)]
    chart = charts.line_chart("x", "X", "", {"a": points}, wide=True)
    heights = [point[1] for point in chart["lines"][0]["hover"]]
    assert chart["logarithmic"] and np.allclose(np.diff(heights), np.diff(heights)[0], atol=0.11)
    assert [text for _, text in chart["y_ticks"]] == ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert not charts.line_chart("x", "X", "", {"a": points})["logarithmic"]
    assert not charts.line_chart("x", "X", "", {"a": [*points, (9, -1.0)]}, wide=True)["logarithmic"]


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0"),
        (12345.6, "12,346"),
        (0.01234, "0.0123"),
        (3.14e-5, "3.1e-5"),
        (-0.5, "-0.5"),
        (2e9, "2e+09"),
    ],
)
def test_numbers_read_well(value, text):
    assert charts.number(value) == text


def test_heat_map_shows_sign_as_hue_and_size_as_strength():
    picture = charts.heat_map(np.array([[1.0, -1.0, 0.0], [0.25, -0.25, 0.04], [7.0, 1e-9, -1e-9]]))
    assert picture[..., 3].tolist() == [[255, 255, 0], [130, 130, 50], [255, 0, 0]]
    assert picture[0, 0, :3].tolist() == list(charts.POSITIVE) and picture[0, 1, :3].tolist() == list(charts.NEGATIVE)


def test_scatter_fills_the_map_and_gives_room_once():
    xy = np.array([[0.0, 0.0], [10.0, 5.0], [10.0, 5.0], [5.0, 2.5]])
    places, room = charts.scatter(xy)
    edge = charts.MAP_EDGE
    assert places[0] == (edge, charts.MAP_HEIGHT - edge) and places[1] == (charts.MAP_WIDTH - edge, edge)
    assert room == [True, True, False, True]
    assert charts.scatter(xy[:1])[0] == [(charts.MAP_WIDTH / 2, charts.MAP_HEIGHT / 2)]


def test_fifty_classes_have_fifty_marks():
    marks = {tuple(charts.mark(label).values()) for label in range(50)}
    assert len(marks) == 50 and charts.mark(-1)["colour"] == "none"


def test_a_curve_as_a_picture_goes_where_its_values_are():
    """At 3 pixels a unit, 26 units below the title: ink at each point, none half-way up where the line is not."""
    chart = charts.line_chart("loss", "Loss", "", {"a": [(0, 0.0), (10, 1.0)], "b": [(0, 1.0), (10, 1.0)]})
    picture = np.asarray(line_picture(chart, (charts.WIDTH, charts.HEIGHT))).astype(int)
    assert picture.shape == (3 * (charts.HEIGHT + 26), 3 * charts.WIDTH, 3)
    for line, ink in zip(chart["lines"], pictures.INKS[:2], strict=True):
        x, y = line["hover"][0][:2]
        seen = picture[round(3 * (y + 26)), round(3 * x) + 2]
        assert np.abs(seen - ink).max() < 30, (line["label"], seen)
    (x0, y0), (x1, y1) = chart["lines"][0]["hover"][0][:2], chart["lines"][0]["hover"][1][:2]
    middle = picture[round(3 * ((y0 + y1) / 2 + 26)), round(3 * (x0 + x1) / 2)]
    assert np.abs(middle - pictures.INKS[0]).max() < 30
    beside = picture[round(3 * (y0 * 0.75 + y1 * 0.25 + 26)), round(3 * x1) - 30]
    assert all(np.abs(beside - ink).max() > 60 for ink in pictures.INKS[:2])
