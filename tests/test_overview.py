"""What an encoder has learned of a set of images, without labels: map, neighbours, clusters, copies, oddities."""

import json

import numpy as np
import pytest
import torch
from page import Page
from torch import nn

from diptych.base.errors import DataError
from diptych.data.images import images
from diptych.downstream.overview import FEWEST, MAPPED, chosen_rows, overview, overview_of
from diptych.embeddings.scores import linear_probe
from diptych.networks.encoders import encoder
from diptych.reporting.mistakes import confident_errors, confused_pairs, confusion, neighbouring_order
from diptych.reporting.report import report
from diptych.runs.encoder import Preprocessing, save_encoder
from diptych.runs.pictures import read_picture
from diptych.runs.run import Run
from diptych.runs.subjects import RAW_PIXELS, TRAINED

SIDE = 16


def blobs(count: int, seed: int = 0) -> np.ndarray:
    """Images (count, 3, 16, 16) of four kinds, in turns: two colours, stripes across and along."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 40, (count, 3, SIDE, SIDE)).astype(np.uint8)
    pictures[0::4, 0] += 180
    pictures[1::4, 2] += 180
    pictures[2::4, :, ::4] += 200
    pictures[3::4, :, :, ::4] += 200
    return pictures


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"event": "end", "step": 1}\n')
    (tmp_path / "run" / "recipe.yaml").write_text("source: blobs\n")
    run = Run(tmp_path / "run")
    save_encoder(run.folder / "encoder", encoder("resnet18", channels=[8, 8, 8, 8]), Preprocessing(SIDE))
    save_encoder(run.folder / "untrained", encoder("resnet18", channels=[8, 8, 8, 8]), Preprocessing(SIDE))
    return run


def test_an_unlabelled_set_gets_map_neighbours_clusters_and_a_page(run):
    pictures = blobs(60)
    pictures[59] = pictures[3]  # a copy
    overview(run, images(pictures), show=False)
    arrays = read_picture(run.folder, "map")
    assert arrays["xy"].shape == (60, 2) and (arrays["labels"] == -1).all() and "predicted" not in arrays
    rows = [int(name) for name in arrays["names"]]
    assert sorted(rows) == list(range(60)), "every image once"
    for space in ("trained", "untrained", "pixels"):
        near = arrays[f"near_{space}"]
        assert near.shape == (60, 8) and (near != np.arange(60)[:, None]).all(), "no image is its own neighbour"
    assert {tuple(sorted(rows[place] for place in pair)) for pair in arrays["copies"].tolist()} == {(3, 59)}
    assert arrays["oddness"].shape == (60,) and (arrays["oddness"] > 0).all()
    sizes = np.bincount(arrays["cluster"])
    assert (np.diff(sizes) <= 0).all() and sizes.sum() == 60, "the largest cluster first"
    for number, members in enumerate(arrays["members"]):
        assert (arrays["cluster"][members[members >= 0]] == number).all()
    page = Page(report(run))
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert {"map", "neighbours", "contents"} < set(sections) and "errors" not in sections
    data = json.loads(page.scripts[1][1])
    assert not data["labelled"] and len(data["near"]) == 3 and data["groups"][0] == "cluster 1"


def test_the_same_images_give_the_same_overview(run):
    first = {}
    for _ in range(2):
        overview(run, images(blobs(40)), show=False)
        arrays = read_picture(run.folder, "map")
        assert all(np.array_equal(arrays[key], first.setdefault(key, arrays[key])) for key in arrays)


def test_images_that_are_all_alike(run):
    overview(run, images(np.zeros((20, 3, SIDE, SIDE), np.uint8)), show=False)
    assert "Map of the images" in Page(report(run)).text


@pytest.mark.parametrize("count", [FEWEST - 1, FEWEST])
def test_few_images(run, count):
    if count < FEWEST:
        with pytest.raises(DataError, match=r"there are 2 images; a map needs at least 3"):
            overview(run, images(blobs(count)), show=False)
    else:
        overview(run, images(blobs(count)), show=False)
        assert len(read_picture(run.folder, "map")["xy"]) == count


def test_most_bounds_the_map():
    assert len(chosen_rows(10 * MAPPED, 0)) == MAPPED and len(set(chosen_rows(MAPPED + 7, 1).tolist())) == MAPPED


def test_predictions_are_those_of_the_probe(run):
    """Of a test set that lacks a class that can be predicted."""
    pictures, names = blobs(80), ["red", "blue", "rows", "columns"] * 20
    z = torch.from_numpy(pictures.reshape(80, -1).astype(np.float32))
    score = linear_probe(z, names, z[:39], ["red", "blue", "rows", "red"] * 9 + ["red", "blue", "rows"])
    some = images(pictures[:39], labels=["red", "blue", "rows", "red"] * 9 + ["red", "blue", "rows"])
    rows = chosen_rows(39, 0)
    arrays = overview_of(some, rows, {TRAINED: z[rows], RAW_PIXELS: z[rows]}, pixels=torch.from_numpy(pictures)[rows], shows="x",
                       seed=0, score=score)  # fmt: skip
    classes = arrays["classes"].tolist()
    assert classes == ["blue", "red", "rows", "columns"]
    wanted = [["red", "blue", "rows", "columns"][row % 4] for row in rows.tolist()]  # the probe separates all four
    assert [classes[number] for number in arrays["predicted"]] == wanted
    assert (arrays["confidence"] > 0.25).all() and (arrays["confidence"] <= 1).all()


def test_errors_by_confidence_and_pairs():
    labels, predicted = np.array([0, 0, 1, 1, 2, -1]), np.array([0, 1, 0, 0, 2, 1])
    assert confident_errors(labels, predicted, np.array([0.9, 0.4, 0.5, 0.8, 0.9, 0.99]), 2) == [3, 2]
    first, second = confused_pairs(labels, predicted, 5)
    assert (first.truth, first.predicted, first.rows, first.share) == (1, 0, [2, 3], 1.0)
    assert (second.truth, second.predicted, second.share) == (0, 1, 0.5)
    assert confusion(labels[:5], predicted[:5], 3).tolist() == [[1, 1, 0], [2, 0, 0], [0, 0, 1]]


def test_confused_classes_stand_beside_each_other():
    """Two groups of three classes, mixed: each is in one piece afterwards."""
    counts = 50 * np.eye(6, dtype=int)
    group = np.array([0, 1, 0, 1, 1, 0])
    counts += 5 * (group[:, None] == group)
    order = group[neighbouring_order(counts)]
    assert order.tolist() in ([0] * 3 + [1] * 3, [1] * 3 + [0] * 3)
    assert len(neighbouring_order(np.eye(2, dtype=int))) == 2


def test_an_encoder_that_gives_nothing_useful_is_still_drawn(run):
    """All embeddings equal: a collapse must be seen on the page, not stop it."""
    collapsed = encoder("resnet18", channels=[8, 8, 8, 8])
    nn.init.zeros_(next(collapsed.parameters()))
    save_encoder(run.folder / "encoder", collapsed, Preprocessing(SIDE))
    overview(run, images(blobs(30)), show=False)
    assert Page(report(run)).text
