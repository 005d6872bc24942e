"""Accuracy over the number of labels: the sizes, the fitted curve and its band, the page, the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from page import Page
from test_cli import diptych as command
from tiny import TinyEncoder, tiny_images, tiny_run

import diptych
from diptych.base.errors import DataError, RecipeError
from diptych.downstream.label_curve import label_sizes
from diptych.embeddings.learning_curve import fit_learning_curve
from diptych.runs.encoder import load
from diptych.runs.run import Run


def test_sizes_are_numbers_of_each_class_and_shares():
    names = ["a"] * 300 + ["b"] * 250
    sizes = label_sizes(names)
    assert list(sizes) == [2, 4, 5, 10, 20, 40, 55, 100, 200, 400, 550]
    assert sizes[5] == ("1 %", 0.01) and sizes[55] == ("10 %", 0.1) and sizes[550] == ("100 %", 1.0)
    assert sizes[400] == ("200 a class", 200)
    assert label_sizes(["a", "b"]) == {2: ("100 %", 1.0)}


def curve_of(rng, a, b, c, sizes, draws=5, noise=0.03):
    return [[1 - c - a * n**-b + rng.normal(0, noise * (n / sizes[0]) ** -0.5) for _ in range(draws)] for n in sizes]


@pytest.mark.parametrize("a, b, c", [(0.9, 0.3, 0.0), (0.8, 0.5, 0.1), (1.5, 0.8, 0.25)])
def test_the_band_holds_the_curve_at_twice_the_labels(a, b, c):
    rng, sizes, held = np.random.default_rng(0), [20, 50, 100, 200, 500, 1000], 0
    for _ in range(20):
        forecast = fit_learning_curve(sizes, curve_of(rng, a, b, c, sizes)).at(2000)
        held += forecast.low <= 1 - c - a * 2000**-b <= forecast.high
        assert forecast.beyond and 0 < forecast.high - forecast.low < 0.1
    assert held >= 18


def test_the_band_widens_beyond_what_was_measured_and_with_noise():
    rng, sizes = np.random.default_rng(1), [10, 20, 50, 100, 200]
    quiet, noisy = (
        fit_learning_curve(sizes, curve_of(rng, 0.9, 0.4, 0.05, sizes, noise=noise)) for noise in (0.01, 0.1)
    )
    widths = [(point := quiet.at(n)).high - point.low for n in (200, 400, 1600, 12800)]
    assert widths == sorted(widths) and not quiet.at(200).beyond
    assert (point := noisy.at(400)).high - point.low > widths[1]
    # a bend that no power law has is misfit, and widens the band too
    bent = curve_of(rng, 0.9, 0.4, 0.05, sizes, noise=0.01)
    bent[2] = [value - 0.08 for value in bent[2]]
    assert (point := fit_learning_curve(sizes, bent).at(400)).high - point.low > widths[1]


def test_labels_for_a_target():
    rng, sizes = np.random.default_rng(2), [10, 20, 50, 100, 200, 500]
    curve = fit_learning_curve(sizes, curve_of(rng, 0.9, 0.5, 0.0, sizes, noise=0.005))
    needed = curve.labels_for(0.95)
    assert needed is not None and 200 < needed < 600  # 324 by the formula
    assert curve.at(needed).accuracy >= 0.95 > curve.at(needed - 5).accuracy
    assert fit_learning_curve(sizes, curve_of(rng, 0.5, 0.8, 0.3, sizes, noise=0.002)).labels_for(0.95) is None


def test_too_few_sizes_fit_anything():
    with pytest.raises(DataError, match="takes 5 numbers of labels at least"):
        fit_learning_curve([10, 20, 50, 100], [[0.5], [0.6], [0.7], [0.8]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def result(run):
    trained = load(run.folder, TinyEncoder())
    page = run.folder.parent / "labels.html"
    train, test = tiny_images(80), tiny_images(60)
    return diptych.labels(trained, train, test, scratch_steps=2, target=0.9, device="cpu", out=page, show=False)


def test_rows_of_every_subject_and_size(result, run):
    curve = result.line["label_curve"]
    subjects = {"raw pixels", "closed form", "untrained", "trained", "from scratch"}
    assert {row["subject"] for row in curve["rows"]} == subjects == set(result.curves)
    for row in curve["rows"]:
        assert len(row["accuracies"]) == (1 if row["labels"] == 80 else 5)
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        assert ("gain" in row) == (row["subject"] != "trained")
    assert {row["labels"] for row in curve["rows"]} == {4, 8, 20, 40, 80}
    fit = curve["fits"]["trained"]
    assert fit["twice"]["labels"] == 160 and fit["twice"]["beyond"] and "needed" in fit
    stored = [line for line in map(json.loads, (run.folder / "evaluations.jsonl").read_text().splitlines())]
    assert stored[-1] == json.loads(json.dumps(result.line))
    assert Run(run.folder).recipe  # the folder is still a run that can be read
    report = Page(diptych.report(run.folder, run.folder.parent / "report.html"))
    assert "How many labels?" in report.text and "160, forecast" in report.text
    assert "#labels" in report.attributes("href")


def test_the_scores_are_those_of_the_probe_on_the_same_labels(result, run):
    """At all labels, the row of raw pixels is that of `evaluate`."""
    trained = load(run.folder, TinyEncoder())
    direct = diptych.evaluate(trained, tiny_images(80), tiny_images(60), protocols=["linear"], device="cpu", show=False)
    rows = [row for row in result.line["label_curve"]["rows"] if row["labels"] == 80 and row["subject"] == "raw pixels"]
    assert rows[0]["accuracy"] == pytest.approx(direct.score("linear", "raw pixels").accuracy, abs=0.04)


def test_the_text_and_the_page_say_what_is_beyond(result):
    text = str(result)
    assert "160 (forecast)" in text and "forecasts are beyond what was measured" in text and "raw pixels at" in text
    assert "90 %" in text
    page = Page(result.page)
    assert "beyond what was measured" in page.text and "How many labels?" in page.text and not page.scripts
    assert not [
        value for name in ("src", "href") for value in page.attributes(name) if not value.startswith(("data:", "#"))
    ]
    numbers = [part for value in page.attributes("d") for part in value.replace("M", " ").replace("L", " ").split()]
    assert "nan" not in numbers


@pytest.mark.parametrize("damage", [{}, {"rows": 5}, {"rows": [{}]}, {"fits": []}, {"rows": [{"subject": "<b>"}]}])
def test_a_damaged_curve_is_left_out_of_the_report(result, run, tmp_path, damage):
    copy = Path(shutil.copytree(run.folder, tmp_path / "run"))
    curve = {} if damage == {} else result.line["label_curve"] | damage
    Run(copy).append("evaluations.jsonl", [{"label_curve": curve}])
    report = Page(diptych.report(copy))
    assert "the curve of labels cannot be drawn" in report.text and "How many labels?" not in report.text


def test_the_command(capsys, tmp_path):
    code, _, err = command(
        capsys, "labels", tmp_path / "none", "--train", "a", "--test", "b", "--out", tmp_path / "x.html"
    )
    assert code in (2, 3, 4) and err.count("\n") == 1
    (tmp_path / "mine.html").write_text("mine")
    code, _, err = command(capsys, "labels", tmp_path, "--train", "a", "--test", "b", "--out", tmp_path / "mine.html")
    assert code == 6 and "was not written by diptych" in err


def test_one_labelled_folder_is_split(run, capsys, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("diptych.downstream.label_curve.labels", lambda *arguments, **options: given.append(arguments))
    monkeypatch.setattr("diptych.commands.cli_encoders.open_encoder", lambda *_: load(run.folder, TinyEncoder()))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", images=pixels, labels=np.arange(20) % 2)
    words = ["--train", tmp_path / "photos.npz", "--split", "0.3", "--out", tmp_path / "x.html"]
    code, _, err = command(capsys, "labels", run.folder, *words)
    assert code == 0, err
    _, train, test = given[0]
    assert len(train) == 14 and len(test) == 6 and not set(train.rows) & set(test.rows)


@pytest.mark.parametrize("options", [{"draws": 4}, {"target": 1.0}, {"target": 0.0}, {"scratch_steps": 0}])
def test_arguments_have_ranges(options, run):
    with pytest.raises(RecipeError, match="must be"):
        diptych.labels(load(run.folder, TinyEncoder()), tiny_images(8), tiny_images(8), **options)


def test_labels_are_needed(run):
    with pytest.raises(DataError, match="no labels"):
        pixels = torch.zeros(8, 3, 12, 12, dtype=torch.uint8)
        diptych.labels(load(run.folder, TinyEncoder()), diptych.images(pixels), tiny_images(8), show=False)
