"""Commands that are proposed: they name what is known, can be pasted as they are, and do what they say."""

import shlex
from pathlib import Path

import pytest
import torch
from page import Page
from PIL import Image
from test_quick import textures

import diptych
from diptych.commands import cli
from diptych.downstream.comparison import verdict_on_labels
from diptych.embeddings.scores import Score
from diptych.networks.encoders import built_with, encoder
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained, save_encoder
from diptych.runs.proposed import Proposed


def test_paths_are_quoted_and_the_folder_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my run").mkdir()
    proposed = Proposed("it's/photos", Path("my run"))
    assert shlex.split(proposed.joined) == [
        "diptych",
        "quick",
        "it's/photos",
        "--join",
        "my run",
        "--out",
        "my run-joined",
    ]
    (tmp_path / "my run-joined").write_text("")
    (tmp_path / "my run-joined-2").symlink_to("nowhere")
    assert shlex.split(proposed.joined)[-1] == "my run-joined-3"
    assert shlex.split(proposed.closed_form) == ["diptych", "quick", "it's/photos", "--out", "my run-quick"]


@pytest.mark.parametrize(("folder", "words"), [
    ("-r", ["--join", "./-r", "--out", "./-r-joined"]),
    ("run/encoder", ["--join", "run/encoder", "--out", "run-joined"]),
    (".", ["--join", ".", "--out", "{here}-joined"]),
    (None, ["--join", "RUN", "--out", "BOTH"]),
])  # fmt: skip
def test_a_run_of_any_name(folder, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "encoder").mkdir(parents=True)
    (tmp_path / "run" / "log.jsonl").write_text("")
    command = Proposed(None, folder and Path(folder)).joined
    assert shlex.split(command)[2:] == ["SOURCE", *(word.format(here=tmp_path) for word in words)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with stripes of four directions, and an encoder that knows little of them."""
    place = tmp_path_factory.mktemp("proposed")
    for number, (pixels, label) in enumerate(zip(*textures(120), strict=True)):
        (place / "my photos" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / "my photos" / str(label) / f"{number}.png")
    torch.manual_seed(0)
    network = encoder("small_convolutions", widths=(4, 4, 8)).eval()
    save_encoder(place / "an encoder", network, Preprocessing(16), fit="crop")
    return place


@pytest.mark.parametrize("named", [True, False])
def test_what_evaluate_advises_can_be_pasted(named, place, capsys, monkeypatch):
    """The advice, then what it makes: its row says what it is, and is not compared with itself."""
    monkeypatch.chdir(place)
    photos = diptych.images("my photos" if named else textures(120)[0], labels="auto" if named else textures(120)[1])
    train, test = diptych.split(photos, 0.5)
    evaluation = diptych.evaluate(Path("an encoder"), train, test, protocols=["knn"], show=False)
    advice = evaluation.diagnosis.advice[0]
    [command] = advice.split("`")[1::2]
    if not named:
        assert "quick SOURCE " in command and "an encoder-" in command
        return
    assert "closed form" in advice and shlex.split(command)[1:3] == ["quick", "my photos"]
    monkeypatch.setattr("sys.argv", [*shlex.split(command), "--size", "16"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    out = Path(shlex.split(command)[-1])
    name = "joined" if "--join" in command else "closed form"
    again = diptych.evaluate(out, train, test, protocols=["knn"], show=False)
    subjects = [score.subject for score in again.scores]
    assert subjects.count(name) == 1 and "trained" not in subjects and again.score("knn").subject == name
    assert "points above raw pixels" in again.diagnosis.lamps["worth"]["text"] or name == "joined"
    assert not any(gain == name for line in again.lines() for gain in line.get("gains", ()))
    page = Page(diptych.report(out))
    assert f"The {name}" in page.text and "trained encoder" not in page.text.split("Accuracy")[0]


def test_the_verdict_on_labels_names_the_command():
    scores = [
        Score("finetune", right / 40, (0.0, 1.0), 40, 40, 2, subject=name, correct=torch.arange(40) < right)
        for name, right in (("closed form", 38), ("trained", 12))
    ]
    [text, *_] = verdict_on_labels(scores, proposed=Proposed("my photos", Path("a run")))
    assert "`diptych quick 'my photos' --out 'a run-quick'` and `diptych classify`" in text
    [text, *_] = verdict_on_labels(scores, main="closed form")
    assert text.endswith("the fine-tuned encoder is better than every other row")


@pytest.mark.parametrize("join", [False, True])
def test_an_encoder_of_quick_has_a_row_of_its_name(join, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    photos = diptych.images("my photos")
    train, test = diptych.split(photos, 0.5)
    network = encoder("small_convolutions", widths=(4, 4, 8)).eval()
    other = Trained(network, Preprocessing(16), built_with(network)) if join else None
    out = tmp_path / "run"
    diptych.quick(photos, out=out, join=other, show=False)
    evaluation = diptych.evaluate(out, train, test, show=False)
    name = "joined" if join else "closed form"
    rows = ["chance", "raw pixels", *(["closed form"] if join else []), name]
    assert [score.subject for score in evaluation.scores] == rows * 2
    assert not any("--join" in text for text in evaluation.diagnosis.advice)
    worth = evaluation.diagnosis.lamps["worth"]
    assert worth["word"] != "NOT MEASURED" and ("closed form" in worth["text"]) <= join
    page = Page(diptych.report(out))
    own = [attributes for tag, attributes in page.tags if tag == "tr" and attributes.get("class") == "own"]
    assert len(own) == 1 and "The trained encoder" not in page.text and "same encoder before training" not in page.text
    assert ("The joined encoder reaches" if join else "The closed form reaches") in page.text
    assert (
        "A closed form beside a trained encoder" if join else "Computed in closed form, without training"
    ) in page.text
    compared = diptych.compare(out)
    assert set(compared.accuracies) == {"knn", "linear"}
