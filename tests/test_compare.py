"""Runs side by side: arms of seeds, paired differences on the same test images, refusals, the page and the table."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_run import fake_run
from page import Page
from test_cli import diptych as command

import diptych
from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.data.groups import group_numbers
from diptych.downstream.arms import Arm, differing_settings
from diptych.runs.answers import Answers, digest_of, read_answers, save_answers

IMAGES = 600
NAMES = [f"video_{i % 30:02d}/frame_{i:04d}.png" for i in range(IMAGES)]
LABELS = [str(i % 5) for i in range(IMAGES)]


def answers(right: dict[tuple[str, str], np.ndarray], names=NAMES, contents="0", train="t") -> Answers:
    labels = LABELS[: len(names)]
    return Answers(names, labels, digest_of(names, labels), contents, train, right)


def right(accuracy: float, seed: int, images: int = IMAGES) -> np.ndarray:
    """Images of the same difficulty for every run, and noise of the run's own."""
    easy = np.random.default_rng(100).random(images)
    return ((0.8 * easy + 0.2 * np.random.default_rng(seed).random(images)) < np.quantile(easy, accuracy))[None]


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("template") / "run")


@pytest.fixture
def run(template, tmp_path):
    """Makes a run: name, accuracy or None, seed, learning rate."""

    def make(name: str, accuracy: float | None, seed: int = 0, lr: str = "0.002", **options) -> Path:
        folder = tmp_path / name
        shutil.copytree(template, folder)
        text = (folder / "recipe.yaml").read_text()
        (folder / "recipe.yaml").write_text(text.replace("seed: 0", f"seed: {seed}").replace("lr: 0.002", f"lr: {lr}"))
        if accuracy is not None:
            rows = right(accuracy, seed + int(10 * accuracy))
            save_answers(folder, answers({("linear", "trained"): rows, ("linear", "untrained"): ~rows}, **options))
        return folder

    return make


def test_one_run_each_is_mcnemar(run):
    a, b = run("a", 0.8), run("b", 0.6, lr="0.1")
    result = diptych.compare(a, b)
    assert [arm.letter for arm in result.arms] == ["A", "B"] and result.settings == [("optimizer.lr", ["0.002", "0.1"])]
    (pair,) = result.pairs
    assert pair.decided and pair.p == pair.paired.p < 0.001 and pair.paired.over == "test images"
    direct = read_answers(a).right[("linear", "trained")].mean() - read_answers(b).right[("linear", "trained")].mean()
    assert pair.paired.difference == pytest.approx(direct)
    text = str(result)
    assert "linear: A minus B +" in text and "A is better" in text
    assert "one run of a recipe shows which encoder is better, not which recipe" in text


def test_runs_that_differ_in_their_seed_are_one_arm(run):
    folders = [run(f"{arm}/seed-{seed}", accuracy, seed, lr) for arm, accuracy, lr in (("a", 0.8, "0.1"), ("b", 0.6, "1"))
               for seed in (2, 0, 1)]  # fmt: skip
    result = diptych.compare(*folders)
    assert [arm.seeds for arm in result.arms] == [[0, 1, 2], [0, 1, 2]]
    assert [record.folder.name for record in result.arms[0].records] == ["seed-0", "seed-1", "seed-2"]
    assert [arm.folder for arm in result.arms] == [str(folders[0].parent), str(folders[3].parent)]
    assert result.pairs[0].paired.over == "test images and seeds" and "over 600 test images and seeds" in str(result)
    expected = np.mean([read_answers(folder).right[("linear", "trained")].mean() for folder in folders[:3]])
    assert result.accuracies["linear"][0][0] == pytest.approx(expected)
    assert not result.notes


def test_answers_follow_the_order_of_seeds(run):
    folders = [run(f"seed-{seed}", accuracy, seed) for seed, accuracy in ((1, 0.9), (0, 0.5))]
    rows = diptych.compare(*folders).arms[0].right("linear")
    assert rows[0].mean() < rows[1].mean()


def test_no_difference_can_be_told_says_how_many_images_would_tell(run):
    result = diptych.compare(run("a", 0.71), run("b", 0.70, lr="0.1"))
    (pair,) = result.pairs
    assert not pair.decided and "no significant difference: these images would show" in str(pair)
    assert pair.paired.needed is None or pair.paired.needed > IMAGES


def test_several_pairs_are_adjusted(run):
    runs = [run("a", 0.7), run("b", 0.66, lr="0.1"), run("c", 0.5, lr="0.3")]
    pairs = {(pair.a, pair.b): pair for pair in diptych.compare(*runs).pairs}
    assert set(pairs) == {("A", "B"), ("A", "C"), ("B", "C")}
    raw = sorted(pair.paired.p for pair in pairs.values())
    assert min(pair.p for pair in pairs.values()) == pytest.approx(min(1, 3 * raw[0]))
    assert "(Holm)" in str(diptych.compare(*runs))


@pytest.mark.parametrize("key", ["folder", "(video_[0-9]+)", "CSV"])
def test_groups_widen_the_interval(key, run, tmp_path):
    folders = run("a", None), run("b", None, lr="0.1")
    lucky = np.repeat([i % 3 == 0 for i in range(30)], 20).reshape(30, 20).T.reshape(-1)  # whole videos
    rows = {folders[0]: right(0.5, 0) | lucky, folders[1]: right(0.5, 1)}
    for folder, row in rows.items():
        save_answers(folder, answers({("linear", "trained"): row}))
    if key == "CSV":
        lines = ["file,video", *(f"{name},{name.split('/')[0]}" for name in NAMES)]
        (tmp_path / "groups.csv").write_text("\n".join(lines))
        key = f"{tmp_path / 'groups.csv'}:video"
    by_image, by_group = diptych.compare(*folders), diptych.compare(*folders, group_by=key)
    assert by_group.covers == "30 groups of 600 test images"
    width = [result.pairs[0].paired.interval[1] - result.pairs[0].paired.interval[0] for result in (by_image, by_group)]
    assert width[1] > 1.5 * width[0]
    assert by_image.pairs[0].paired.difference == by_group.pairs[0].paired.difference


@pytest.mark.parametrize(
    "key, error, message",
    [("(a", RecipeError, "is not a regular expression"), ("a", RecipeError, "is not `folder`, FILE.csv:COLUMN"),
     ("none.csv:x", DataError, "none.csv is missing"), ("(slide_[0-9])", DataError, "600 of 600 images have no group"),
     ("(video_[01])", DataError, "400 of 600")],
)  # fmt: skip
def test_groups_that_cannot_be_read(key, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(").replace(".", r"\.")):
        group_numbers(key, [*NAMES[:0], *NAMES] if key != "(video_[01])" else ["video_0"] * 200 + ["other"] * 400)


def test_refusals(run, tmp_path):
    a = run("a", 0.7)
    with pytest.raises(RecipeError, match="given twice"):
        diptych.compare(a, a)
    with pytest.raises(RecipeError, match="name the runs"):
        diptych.compare()
    with pytest.raises(DataError, match=r"b has not been evaluated image by image: run `diptych evaluate"):
        diptych.compare(a, run("b", None, lr="0.1"))
    with pytest.raises(DataError, match=r"different test images \(other names or labels, 600 and 400 images\)"):
        few = run("c", None, lr="0.1")
        save_answers(few, answers({("linear", "trained"): right(0.7, 0, 400)}, names=NAMES[:400]))
        diptych.compare(a, few)
    with pytest.raises(DataError, match=r"\(same names and labels, other contents\)"):
        diptych.compare(a, run("d", 0.7, lr="0.1", contents="1"))
    with pytest.raises(DataError, match="is not a run folder|does not exist"):
        diptych.compare(a, tmp_path / "nothing")
    with pytest.raises(DataError, match="8 groups of test images at least"):
        diptych.compare(a, group_by="(vid)")


def test_a_section_that_an_arm_lacks_is_one_row():
    quick = Arm("A", [], [], {"source": "photos", "quick.size": 32, "images.size": 32}, [])
    trained = Arm("B", [], [], {"source": "photos", "method.name": "simsiam", "method.width": 8, "images.size": 64}, [])
    assert differing_settings([quick, trained]) == [
        ("quick", ["set", ""]),
        ("images.size", ["32", "64"]),
        ("method", ["", "simsiam"]),
    ]


def test_runs_without_an_evaluation_are_compared_by_recipe_and_readings(run):
    result = diptych.compare(run("a", None), run("b", None, lr="0.1"))
    assert not result.pairs and "have not been evaluated" in str(result) and "online kNN accuracy" in str(result)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_recipe_has_a_table_and_nothing_that_differs(seeds, run, tmp_path):
    folders = [run(f"a {seed}", 0.7, seed=seed) for seed in range(seeds)]
    result = diptych.compare(*folders, out=tmp_path / "page.html")
    assert set(result.accuracies) == {"linear"} and not result.pairs
    page = Page(tmp_path / "page.html")
    assert "What differs" not in page.text and "compared" not in page.text
    alone = f"this is only one run: name another to compare it with; for its own page: `diptych report '{folders[0]}'`"
    assert (alone in str(result)) == (alone.replace("`", "") in page.text) == (seeds == 1)
    assert ("One run" if seeds == 1 else "2 runs of one recipe") in page.text
    assert ("standard deviation" in page.text) == (seeds > 1)


def test_damaged_answers_are_one_line(run):
    folder = run("a", 0.7)
    arrays = dict(np.load(folder / "pictures" / "answers.npz"))
    np.savez(folder / "pictures" / "answers.npz", **arrays | {"names": arrays["names"][:-3]})
    with pytest.raises(CheckpointError, match=r"answers\.npz: .*remove it and evaluate again") as error:
        read_answers(folder)
    assert "\n" not in str(error.value)


def test_a_later_evaluation_replaces_its_own_rows_only(run):
    folder = run("a", 0.7)
    row = right(0.2, 5)
    save_answers(folder, answers({("knn", "trained"): row, ("linear", "trained"): row}))
    kept = read_answers(folder)
    assert set(kept.right) == {("linear", "trained"), ("linear", "untrained"), ("knn", "trained")}
    assert (kept.right[("linear", "trained")] == row).all() and kept.names == NAMES and kept.labels == LABELS
    save_answers(folder, answers({("knn", "trained"): row}, contents="other"))
    assert set(read_answers(folder).right) == {("knn", "trained")}


def test_the_page_and_the_command(run, capsys, tmp_path):
    folders = [run("a", 0.8), run("b<i>", 0.6, lr="0.1")]
    code, out, _ = command(capsys, "compare", *folders, "--out", tmp_path / "page.html")
    assert code == 0 and f"page: {tmp_path / 'page.html'}" in out and "A is better" in out
    page = Page(tmp_path / "page.html")
    assert "Accuracy (linear)" in page.text and "A is better" in page.text and "optimizer.lr" in page.text
    assert "b<i>" in page.text and not page.scripts
    assert not [
        value for name in ("src", "href") for value in page.attributes(name) if not value.startswith(("data:", "#"))
    ]
    code, _, err = command(capsys, "compare", *folders, "--out", folders[0] / "recipe.yaml")
    assert code == 6 and "was not written by diptych" in err
    code, _, err = command(capsys, "compare", folders[0], folders[0])
    assert code == 2 and err.count("\n") == 1
