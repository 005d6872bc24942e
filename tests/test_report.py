"""The report: everything is there and right, and what a run lacks is told kindly."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_run import DIAGNOSIS, evaluation_lines, fake_run, log_lines, write_lines
from page import Page
from PIL import Image

from diptych.base.errors import DataError, OutputError
from diptych.reporting import pictures
from diptych.reporting.pictures import line_picture
from diptych.reporting.report import report

SECTIONS = [
    "verdict",
    "accuracy",
    "next",
    "map",
    "neighbours",
    "contents",
    "errors",
    "training",
    "watched",
    "views",
    "correlation",
    "run",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page(report(finished))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def page_alone(run: Path) -> Page:
    """Without the PNG files, which cost five times as much and show nothing of the evaluation."""
    return Page(report(run, run.parent / "page.html"))


def test_everything_is_there_in_order(page, finished):
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == SECTIONS
    assert page.tags[0] == ("html", {"lang": "en"})
    assert "first barlow twins resnet18 shapes/ Finished after 1,200 steps." in page.text
    for text in (
        *(lamp["text"][1:] + "." for lamp in DIAGNOSIS["lamps"].values()),
        *DIAGNOSIS["advice"],
        "Worth its cost OK",
        "Collapse OK Do different images have different embeddings?",
        "ignore the axes and the distances between groups. Placed by t-SNE.",
    ):
        assert text in page.text
    for text in (
        "38 min 39 s",
        "2,648",
        "307,200",
        "NVIDIA H200",
        "off_diagonal_weight",
        "versions.torch 2.15.0",
    ):
        assert text in page.text
    assert [path.name for path in finished.iterdir() if path.name.startswith("report")] == ["report.html"]
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert links == SECTIONS[1:]


def test_accuracies_stand_in_the_right_cells(page):
    table = page.source[page.source.index("<table") : page.source.index("</table>")]
    rows = [re.sub(r"<[^>]+>", " ", row) for row in table.split("<tr")[1:]]
    assert [re.findall(r"(\d+\.\d)&#8239;%", row) for row in rows] == [
        [], ["20.0", "20.0"], ["35.2", "39.4"], ["42.1", "46.8"], ["83.1", "86.8"],
    ]  # fmt: skip
    assert re.findall(r"(\d+\.\d) to (\d+\.\d)", rows[4]) == [("82.2", "83.9"), ("86.0", "87.6")]
    assert re.findall(r"([+\d.]+) over ([a-z ]+) \[([^]]+)\]", rows[4]) == [
        ("+41.0", "untrained", "+39.5, +42.5"), ("+40.0", "untrained", "+38.5, +41.5"),
    ]  # fmt: skip
    assert "86.8 % (linear accuracy), 40.0 points more than the same encoder untrained" in page.text
    assert "50,000 training images, 10,000 test images, 5 classes. k 200, temperature 0.1, seed 0" in page.text


def test_pictures_are_the_arrays(page, finished):
    """Bit for bit, for the first image and its views; and one picture for each that was offered."""
    arrays = np.load(finished / "pictures" / "views.npz")
    shown = [a["src"] for tag, a in page.tags if tag == "img" and re.search("^image|^view", a["alt"])]
    assert len(shown) == 36
    for uri, name in zip(shown, ("originals", "view_0", "view_1"), strict=False):
        image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        assert np.array_equal(np.asarray(image), arrays[name][0])


def test_neighbours_in_three_spaces(page, finished):
    arrays = np.load(finished / "pictures" / "map.npz")
    texts = [
        text for text in page.attributes("aria-label") if re.match(r"(trained|untrained|raw pixels) neighbour", text)
    ]
    assert len(texts) == 8 * 3 * 4, "of eight images, four in each space"
    near = arrays["near_trained"][0, :4]
    assert texts[:4] == [f"trained neighbour {i + 1}: {arrays['names'][row]}" for i, row in enumerate(near)]
    labels = arrays["labels"]
    share = 100 * np.mean(labels[arrays["near_trained"]] == labels[:, None])
    assert f"(of the 8 nearest of all 60 images): trained {share:.1f}" in page.text
    shown = np.concatenate([arrays[f"near_{space}"][:8, :4] for space in ("trained", "untrained", "pixels")], axis=1)
    right = int((labels[shown] == labels[:8, None]).sum())
    assert page.text.count("✓") == right + 1 and page.text.count("✗") == 96 - right + 1


def test_errors_are_counted(page, finished):
    arrays = np.load(finished / "pictures" / "predictions.npz")
    wrong = int((arrays["labels"] != arrays["predicted"]).sum())
    assert wrong and f"{wrong} of 60 test images are predicted wrongly" in page.text
    table = page.source[page.source.index('<table class="matrix">') :]
    cells = re.findall(r'<td class="(right|wrong)[^>]*>(\d*)</td>', table[: table.index("</table>")])
    assert len(cells) == 25
    diagonal = sorted(int(text or 0) for kind, text in cells if kind == "right")
    labels, predicted = arrays["labels"], arrays["predicted"]
    assert diagonal == sorted(round(100 * (predicted[labels == c] == c).mean()) for c in range(5))


def test_views_of_any_number_and_size_are_shown(run):
    """Two of 32 pixels and six of 16, as the arrays are; an image's row names each."""
    arrays = dict(np.load(run / "pictures" / "views.npz"))
    arrays |= {f"view_{index}": arrays["originals"][:, index : 16 + index, :16] for index in range(2, 8)}
    np.savez(run / "pictures" / "views.npz", **arrays)
    page = Page(report(run))
    shown = {a["alt"]: a["src"] for tag, a in page.tags if tag == "img" and re.search("^image|^view", a["alt"])}
    assert len(shown) == 12 * 9 and "Each row shows an image and its 8 views" in page.text
    for index in range(8):
        image = Image.open(io.BytesIO(base64.b64decode(shown[f"view {index + 1} of image 12"].split(",")[1])))
        assert np.array_equal(np.asarray(image), arrays[f"view_{index}"][11])
    assert any(a.get("style") == "--across:8;--narrow:4" for _, a in page.tags)
    with Image.open(run / "figures" / "views.png") as sheet:
        assert sheet.width > 9 * 96


def test_a_gap_in_the_views_ends_them(run):
    arrays = dict(np.load(run / "pictures" / "views.npz"))
    np.savez(run / "pictures" / "views.npz", **arrays | {"view_3": arrays["view_1"][:2]})
    page = Page(report(run))
    assert "its 2 views" in page.text and "cannot be drawn" not in page.text


def test_one_view_and_none(run):
    arrays = dict(np.load(run / "pictures" / "views.npz"))
    one = {key: arrays[key] for key in ("originals", "view_0")}
    np.savez(run / "pictures" / "views.npz", **one)
    assert "an image and its 1 view, which" in Page(report(run)).text
    np.savez(run / "pictures" / "views.npz", originals=arrays["originals"])
    assert "pictures/views.npz cannot be drawn ('view_0 is not a file in the archive')" in Page(report(run)).text


def test_figures_are_told_to_those_who_do_not_see_them(page):
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
        if tag == "img":
            assert "alt" in attributes
    label = next(text for text in page.attributes("aria-label") if text.startswith("Effective rank"))
    assert label == "Effective rank. rank: 20 at step 0, 172 at step 1,200, lowest 20, highest 172"


MISSING = {
    "evaluations.jsonl": ("No verdict yet", "diptych evaluate {run} --train SOURCE --test SOURCE"),
    "recipe.yaml": ("recipe.yaml is absent", ""),
    "environment.json": ("environment.json is absent", ""),
    "log.jsonl": ("Nothing is logged yet", "diptych pretrain shapes/ --out runs/first --resume"),
    "pictures/views.npz": ("No views were saved", "diptych pretrain shapes/ --out runs/first --resume"),
    "pictures/correlation.npz": ("No correlation matrix was saved", "--resume"),
    "pictures/map.npz": ("There is no map yet", "diptych report {run} --images shapes/"),
    "pictures/predictions.npz": ("Map of the images", ""),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_told_with_its_command(run, name):
    (run / name).unlink()
    text, command = MISSING[name]
    page = Page(report(run))
    assert text in page.text and command.format(run=run) in page.text
    gone = {"pictures/map.npz": {"neighbours", "contents"}, "pictures/predictions.npz": {"errors"}}.get(name, set())
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert set(sections) == set(SECTIONS) - gone
    assert [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"] == sections[1:]


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "log.jsonl").touch()
    page = Page(report(tmp_path / "new"))
    assert "No verdict yet" in page.text and "Nothing is logged yet" in page.text
    assert f"diptych pretrain SOURCE --out {tmp_path / 'new'} --resume" in page.text


def test_a_killed_run(run):
    """The last line is cut in the middle, as a kill leaves it: that is normal and not noted."""
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(text[: text.index('{"event": "step", "step": 620') + 40])
    page = Page(report(run))
    assert "Training is unfinished: 600 steps logged, 50 % of the way." in page.text
    assert "could not be read" not in page.text
    assert "Finish the training." in page.text


def test_a_broken_line_in_the_middle_is_noted(run):
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([*lines[:5], "\x00\x00{", "[1]", *lines[5:]]))
    page = Page(report(run))
    assert "log.jsonl: 2 line(s) could not be read" in page.text and "Finished after 1,200 steps." in page.text


def test_a_resumed_run_tells_each_step_once_and_the_latest_evaluation(run):
    lines = log_lines()
    again = [line | {"loss": 5.0} for line in lines if line["event"] == "step" and line["step"] > 1000]
    write_lines(run / "log.jsonl", [*lines, *again])
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), evaluation_lines()[-2] | {"accuracy": 0.5}])
    page = page_alone(run)
    assert "Training is unfinished: 1,200 steps" in page.text, "it went on after its end"
    loss = json.loads(page.scripts[0][1])["loss"][0]
    assert len(loss) == 60 and [point[3] for point in loss][-10:] == ["5"] * 10
    assert "reaches 50.0 % (linear accuracy)" in page.text
    assert "Measured 2 times; the latest is shown." in page.text


def test_numbers_that_are_not_finite_are_left_out(run):
    lines = [line | {"loss": float("nan"), "lr": [None, "x", 0.1]} for line in log_lines()]
    write_lines(run / "log.jsonl", lines)
    page = Page(report(run))
    assert "NaN" not in page.scripts[0][1] and "nan" not in page.text
    drawn = set(json.loads(page.scripts[0][1]))
    assert "loss" not in drawn and drawn > {"lr", "parts.on_diagonal", "gradient_norm", "rank"}


@pytest.mark.parametrize("trained, words", [(0.47, "cannot be distinguished from"), (0.40, "6.8 points less than")])
def test_training_that_did_not_pay_is_said_so(run, trained, words):
    lines = evaluation_lines()
    ends = [trained - 0.468 - 0.01, trained - 0.468 + 0.01]
    lines[-2] |= {"accuracy": trained, "gains": {"untrained": {"difference": trained - 0.468, "interval": ends}}}
    write_lines(run / "evaluations.jsonl", lines)
    page = page_alone(run)
    assert words in page.text and "has learned little" in page.text and "diptych embed" not in page.text


@pytest.mark.parametrize("word, title", [("WARNING", "Needs a look"), ("COLLAPSED", "The encoder has collapsed")])
def test_bad_verdicts(run, word, title):
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), {"diagnosis": DIAGNOSIS | {"verdict": word}}])
    page = page_alone(run)
    assert f"{title} {word}" in page.text and "Follow the advice above" in page.text and "Worth its" not in page.text


@pytest.mark.parametrize("exact, near", [(2, 1), (0, 0), ("x", None)])
def test_leaks_stand_above_the_accuracies(run, exact, near):
    clean = [{"protocol": "knn", "subject": subject, "accuracy": 0.412} for subject in ("untrained", "trained")]
    leaks = {"exact": exact, "near": near, "test_images": 1800, "pairs": [], "without": [*clean, 5]}
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), {"leaks": leaks}])
    page = page_alone(run)
    text = "3 of 1,800 test images are in the training set: 2 with the same pixels, 1 as near copies. Without them the trained"
    assert (text in page.text and "encoder has kNN 41.2 %." in page.text) == (exact == 2)
    assert ("are in the training set" in page.text) == (exact == 2)
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), {"leaks": leaks | {"undecided": 30, "alike": 0.055}}])
    page = page_alone(run)
    assert ("30 test images that are not counted are as similar as copies" in page.text) == (exact != "x")


def test_without_labels_nothing_is_called_useful(run):
    lamps = DIAGNOSIS["lamps"] | {"worth": {"word": "NOT MEASURED", "text": "it needs labelled images"}}
    judged = DIAGNOSIS | {"verdict": "UNPROVEN", "lamps": lamps}
    write_lines(run / "evaluations.jsonl", [{"diagnosis": judged}])
    page = page_alone(run)
    assert "Not yet shown to be useful UNPROVEN" in page.text and "Worth NOT MEASURED" in page.text
    assert "diptych evaluate" in page.text and "diptych embed" in page.text


def test_an_older_verdict_speaks_of_a_collapse_alone(run):
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), {"diagnosis": DIAGNOSIS | {"lamps": {}}}])
    assert "Not yet shown to be useful UNPROVEN" in Page(report(run)).text


@pytest.mark.parametrize(
    "lamps", [None, [], {"worth": None}, {"worth": {"word": ["OK"]}}, {"worth": {"word": "<b>", "text": 5}}]
)
def test_damaged_lamps_are_left_out(run, lamps):
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), {"diagnosis": DIAGNOSIS | {"lamps": lamps}}])
    assert "Is it better than references" not in page_alone(run).text


def test_a_warning_without_a_collapse_speaks_of_none(run):
    lamps = DIAGNOSIS["lamps"] | {"learning": {"word": "WARNING", "text": "nearer than 92.1 % of 72 held-out images"}}
    judged = DIAGNOSIS | {"verdict": "WARNING", "advice": [], "lamps": lamps}
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), {"diagnosis": judged}])
    page = Page(report(run))
    assert "undo a collapse" not in page.text and "Follow the advice" not in page.text and "diptych embed" in page.text


@pytest.mark.parametrize("advice, command", [
    ("use the closed form: `diptych quick SOURCE --out RUN`", "diptych quick shapes/ --out {run}-quick"),
    ("join both: `diptych quick SOURCE --join RUN --out BOTH`", "diptych quick shapes/ --join {run} --out {run}-joined"),
    ("join both: `diptych quick 'my photos' --join r --out b` (knn: 1 point)", "diptych quick 'my photos' --join r --out b"),
])  # fmt: skip
def test_what_to_do_where_training_was_not_worth_it(run, advice, command):
    judged = DIAGNOSIS | {"verdict": "WORSE", "advice": [advice]}
    write_lines(run / "evaluations.jsonl", [*evaluation_lines(), {"diagnosis": judged}])
    page = page_alone(run)
    assert "Not worth its training" in page.text and command.format(run=run) in page.text


def test_a_run_without_labels(run):
    """Accuracy comes last, and no command is proposed that would refuse these images."""
    places = dict(np.load(run / "pictures" / "map.npz"))
    places["labels"][:] = -1
    np.savez(
        run / "pictures" / "map.npz", **{key: places[key] for key in places if key not in ("predicted", "confidence")}
    )
    (run / "pictures" / "predictions.npz").unlink()
    write_lines(run / "evaluations.jsonl", evaluation_lines()[-1:])
    page = page_alone(run)
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections.index("contents") < sections.index("accuracy") and "errors" not in sections
    assert "These images have no labels" in page.text and "marked by cluster" in page.source
    todo = page.source[page.source.index('class="todo"') :]
    todo = todo[: todo.index("</ol>")]
    assert "diptych embed" in todo and "diptych audit shapes/ --run" in todo and "evaluate" not in todo
    assert "✗" not in page.text


def test_folders_and_files_that_cannot_be(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not a run folder .*diptych pretrain"):
        report(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        report(tmp_path / "absent")
    with pytest.raises(OutputError, match="is a folder"):
        report(run, tmp_path / "empty")
    with pytest.raises(OutputError, match="does not exist; create it"):
        report(run, tmp_path / "absent" / "report.html")
    assert report(run, tmp_path / "elsewhere.html") == tmp_path / "elsewhere.html"


def test_figures_lie_beside_the_page(finished, run, monkeypatch):
    monkeypatch.setattr(pictures, "line_picture", line_picture)  # at its own size
    report(finished)
    names = {path.name for path in (finished / "figures").iterdir()}
    assert {
        "loss.png",
        "lr.png",
        "gradient_norm.png",
        "knn_accuracy.png",
        "rank.png",
        "spread.png",
        "views.png",
    } <= names
    with Image.open(finished / "figures" / "loss.png") as loss:
        assert loss.format == "PNG" and loss.width > 900
    shutil.rmtree(run / "figures", ignore_errors=True)
    report(run, out=run.parent / "page.html")
    assert not (run / "figures").exists(), "a page that goes elsewhere writes nothing here"


def test_readings_that_are_no_names_for_files_write_none(run):
    lines = (run / "log.jsonl").read_text().replace('"rank"', '"../../rank"').replace('"on_diagonal"', '"../on"')
    (run / "log.jsonl").write_text(lines)
    before = {path for path in run.parent.rglob("*")}
    report(run)
    fresh = {path.relative_to(run).parts[0] for path in set(run.parent.rglob("*")) - before}
    assert fresh <= {"figures", "report.html"}
    assert not any("on" == path.stem for path in run.parent.rglob("*.png"))
