"""Rows 41 to 43 of docs/faults.md: nothing of the user's is deleted or replaced, and no run lands among its own images."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_run import fake_run
from hostile import tree
from PIL import Image
from spoiled import SMALL, diptych, jpeg, photographs, put, refusal
from tiny import tiny_method, tiny_run

from diptych.base.errors import DivergedError, OutputError
from diptych.reporting import figures
from diptych.reporting.report import report
from diptych.runs.contents import list_contents
from diptych.runs.pictures import FIGURES
from diptych.runs.run import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "finished").folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy to put something into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder with their bytes, but for the lock's."""
    return {name: (folder / name).read_bytes() if (folder / name).is_file() else b"" for name in tree(folder)
            if not name.endswith(".lock")}  # fmt: skip


# ---- 41: --overwrite


def test_41_a_folder_with_a_recipe_is_no_run(tmp_path):
    """The folder of a project, with its recipe, photographs and a thesis in it."""
    place = tmp_path / "project"
    photographs(place / "photos")
    code, text, _ = diptych("recipes", "demo")
    put(place, {"recipe.yaml": text.encode(), "thesis.txt": b"three years"})
    before = everything(tmp_path)
    for flag in ("--overwrite", "--resume"):
        words = ["pretrain", place / "photos", "--recipe", place / "recipe.yaml", *SMALL[2:], "--out", place, flag]
        code, _, err = diptych(*words)
        assert code == 6 and "is not empty and not a run (it has no log.jsonl)" in refusal(err)
        assert everything(tmp_path) == before


STRANGERS = {
    "a file": lambda run, mine: put(run, {"notes.txt": b"mine"}),
    "embeddings": lambda run, mine: put(run, {"vectors/vectors.npy": b"mine"}),
    "in checkpoints": lambda run, mine: put(run, {"checkpoints/step_0000009_copy/model.safetensors": b"mine"}),
    "in a checkpoint": lambda run, mine: put(run, {"checkpoints/step_0000012/notes.txt": b"mine"}),
    "in the encoder": lambda run, mine: put(run, {"encoder/model.onnx": b"mine"}),
    "in figures": lambda run, mine: put(run, {"figures/for_the_paper.png": b"mine"}),
    "hidden": lambda run, mine: put(run, {".git/config": b"mine"}),
    "a linked folder": lambda run, mine: linked(run / "checkpoints", mine),
    "a link in a folder": lambda run, mine: linked(run / "encoder" / "model.safetensors", mine / "thesis.txt"),
    "a link beside": lambda run, mine: (run / "pictures" / "map.npz").symlink_to(mine / "thesis.txt"),
    "a pipe": lambda run, mine: os.mkfifo(run / "bad_files.jsonl"),
    "a folder for a file": lambda run, mine: put(run, {"report.html/thesis.txt": b"mine"}),
}


def linked(path: Path, target: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("name", STRANGERS)
def test_41_a_run_with_anything_else_in_it_is_not_deleted(name, run, tmp_path):
    mine = put(tmp_path / "mine", {"thesis.txt": b"three years", "step_0000001/model.safetensors": b"mine"})
    STRANGERS[name](run, mine)
    before = everything(tmp_path)
    with pytest.raises(
        OutputError, match="nothing has been deleted; move it out of .*, or choose another --out"
    ) as error:
        tiny_run(run, resume=False, overwrite=True)
    assert "\n" not in str(error.value) and str(run) in str(error.value)
    assert everything(tmp_path) == before


def test_41_all_that_runs_leave_behind_is_overwritten(run, tmp_path):
    """Reported, evaluated by hand, diverged, mirrored, killed while writing: every name is one that is known."""
    method = tiny_method()
    method.nan_at = 1
    with pytest.raises(DivergedError):
        tiny_run(tmp_path / "diverged", method)
    report(fake_run(tmp_path / "evaluated"))
    photographs(tmp_path / "photos", count=30)
    assert diptych("quick", tmp_path / "photos", "--out", tmp_path / "quick", "--size", 12)[0] == 0
    put(run, {"tensorboard/events.out.tfevents.1.host.2.0": b"", "evaluations_3_epochs.jsonl": b"", ".log.jsonl.tmp-12": b"",
              "bad_files.jsonl": b"",
              "pictures/.map.npz.tmp-7": b"", "checkpoints/.step_0000012.tmp-3-old/state.json": b"",
              "checkpoints/.step_0000012.tmp-3/.state.json.tmp-3": b"",
              "checkpoints/step_0000012/best.safetensors": b""})  # fmt: skip
    for folder in (run, tmp_path / "diverged", tmp_path / "evaluated", tmp_path / "quick"):
        listed = list_contents(folder)
        assert listed.files and not listed.strangers and not listed.misfits
        Run.start(folder, {"a": 1}, overwrite=True).release()
        assert tree(folder) == [".lock", "environment.json", "log.jsonl", "recipe.yaml"]


def test_41_what_is_named_as_a_figure_is_a_figure():
    assert set(FIGURES) == {*figures.TITLES, "views"}


@pytest.mark.parametrize("make", [lambda path, mine: path.write_text("the lock of another program"),
                                  lambda path, mine: path.symlink_to(mine)], ids=["file", "link"])  # fmt: skip
def test_41_a_lock_that_is_not_ours_stays(make, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("three years")
    make(tmp_path / "run" / ".lock", tmp_path / "mine")
    before = (tmp_path / "run" / ".lock").read_text()
    with pytest.raises(OutputError):
        Run.start(tmp_path / "run", {"a": 1})
    assert (tmp_path / "run" / ".lock").read_text() == before


def test_41_a_copy_of_a_checkpoint_under_another_name_is_kept(run):
    shutil.copytree(run / "checkpoints" / "step_0000012", run / "checkpoints" / "step_0000012_keep")
    (run / "checkpoints" / "step_0000012_keep" / "manifest.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_0000012")  # it goes on from step 11
    log = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(line for line in log if '"end"' not in line))
    tiny_run(run)
    assert (run / "checkpoints" / "step_0000012_keep" / "model.safetensors").is_file()


# ---- 42: files that exist


@pytest.mark.parametrize("words", [["views", "PHOTOS", "-r", "demo"], ["report", "RUN"]], ids=["views", "report"])
@pytest.mark.parametrize("name", ["thesis.png", "thesis.html", "link.png"])
def test_42_a_file_of_the_users_is_not_replaced(words, name, run, tmp_path):
    photographs(tmp_path / "photos")
    mine = put(tmp_path / "mine", {"thesis.png": jpeg(), "thesis.html": b"<html><head></head>three years"})
    (mine / "link.png").symlink_to(mine / "thesis.png")
    places, before = {"PHOTOS": tmp_path / "photos", "RUN": run}, everything(tmp_path)
    code, _, err = diptych(*(places.get(word, word) for word in words), "--out", mine / name)
    assert code == 6 and str(mine / name) in refusal(err)
    assert everything(tmp_path) == before


def test_42_their_own_files_are_written_again(run, tmp_path):
    photographs(tmp_path / "photos")
    for words in (["report", run], ["report", run, "--out", tmp_path / "page.html"],
                  ["views", tmp_path / "photos", "-r", "demo", "--out", tmp_path / "sheet.png"]):  # fmt: skip
        for _ in range(2):
            code, _, err = diptych(*words)
            assert code == 0, err
    assert Image.open(tmp_path / "sheet.png").text == {"Software": "Diptych"}
    assert (run / "report.html").is_file() and (run / "figures" / "loss.png").is_file()


@pytest.mark.parametrize("name", ["report.html", "figures/loss.png"])
def test_42_a_file_of_the_users_in_a_run_is_not_replaced_by_its_report(name, run):
    put(run, {name: b"mine"})
    before = everything(run)
    with pytest.raises(OutputError, match=f"{name} exists already and was not written by diptych"):
        report(run)
    assert {**everything(run), "figures": b""} == {**before, "figures": b""}


# ---- 43: --out


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "PHOTOS", *SMALL, "--out", "IN"],
        ["pretrain", "PHOTOS", *SMALL, "--out", "PHOTOS"],
        ["quick", "PHOTOS", "--out", "IN"],
        ["embed", "RUN", "PHOTOS", "--out", "IN"],
        ["classify", "RUN", "PHOTOS", "--train", "OTHER", "--out", "IN.csv"],
        ["classify", "RUN", "OTHER", "--train", "PHOTOS", "--out", "IN.csv"],
        ["views", "PHOTOS", "-r", "demo", "--out", "IN.png"],
        ["pretrain", "LINK", *SMALL, "--out", "IN"],
    ],
    ids=lambda words: " ".join(word for word in words if "=" not in word),
)
def test_43_nothing_is_written_among_the_images(words, tmp_path):
    """The figures of a report would be images of the next run, and `--resume` would not know its images any more."""
    photographs(tmp_path / "photos")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    put(tmp_path, {"other/a.jpg": jpeg()})
    places = {"PHOTOS": "photos", "IN": "photos/new", "IN.csv": "photos/new.csv", "IN.png": "photos/new.png",
              "RUN": "run", "OTHER": "other", "LINK": "link"}  # fmt: skip
    before = everything(tmp_path)
    code, _, err = diptych(*(tmp_path / places[word] if word in places else word for word in words))
    assert code == 6 and re.search("is inside the source|not empty", refusal(err))
    assert everything(tmp_path) == before


def test_43_the_home_folder_is_expanded_in_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    photographs(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    code, _, err = diptych("views", tmp_path / "photos", "-r", "demo", "--out", "~/sheet.png")
    assert code == 0, err
    code, _, err = diptych("pretrain", tmp_path / "photos", *SMALL, "--out", "~/run")
    assert code == 0, err
    assert tree(tmp_path / "home")[0] == "run" and not (tmp_path / "~").exists()
    assert np.asarray(Image.open(tmp_path / "home" / "sheet.png")).ndim == 3
