"""Row 44 of docs/faults.md: every damage of a run folder is one line with exit code 4, before an image is read; a report of it
says what it leaves out."""

import json
import multiprocessing
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from fake_run import fake_run
from hostile import few
from hypothesis import given
from hypothesis import strategies as st
from spoiled import SMALL, diptych, photographs, put, refusal

from diptych.base.errors import CheckpointError, OutputError
from diptych.commands import pretraining
from diptych.commands.tables import run_summary
from diptych.downstream import evaluate
from diptych.reporting.report import report
from diptych.runs.contents import require_place
from diptych.runs.run import Run, take_lock


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """photos/ and a finished run/ of them."""
    place = tmp_path_factory.mktemp("place")
    code, _, err = diptych("pretrain", photographs(place / "photos"), *SMALL, "--out", place / "run")
    assert code == 0, err
    return place


@pytest.fixture
def run(place, tmp_path) -> Path:
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def resume(place: Path, run: Path) -> tuple[int, str, str]:
    return diptych("pretrain", place / "photos", *SMALL, "--out", run, "--resume")


def instead(path: Path, make) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    make(path)


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has at most a hundred bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


STEP = b'{"event": "step", "step": 1, "loss": 1.0}\n'
TEXTS = {
    "null": STEP + b"null",
    "a number": STEP + b"5\n",
    "a number, no line end": STEP + b"5",
    "a list": STEP + b"[1]\n",
    "bytes": STEP + b'{"event": "\xff", "step": 2}\n' + STEP,
    "bytes in the last line": STEP + b"\xff\n",
    "no JSON": STEP + b"{}}\n" + STEP,
    "step is a text": STEP + b'{"event": "step", "step": "2"}\n',
    "no event": STEP + b'{"step": 2}\n',
    "event is a list": b'{"event": [], "step": 2}\n',
    "deep": STEP + b'{"event": "step", "step": 2, "x": ' + b"[" * 5000 + b"]" * 5000 + b"}\n",
    "less deep": STEP + b'{"event": "step", "step": 2, "x": ' + b"[" * 300 + b"]" * 300 + b"}\n",
    "a long number": STEP + b'{"event": "step", "step": ' + b"9" * 5000 + b"}\n" + STEP,
}
DAMAGES = {
    **{f"log {name}": ("log.jsonl", lambda path, data=data: path.write_bytes(data)) for name, data in TEXTS.items()},
    "log a folder": ("log.jsonl", Path.mkdir),
    "log a pipe": ("log.jsonl", os.mkfifo),
    "log a socket": ("log.jsonl", bind),
    "bad files without key": ("bad_files.jsonl", lambda path: path.write_text('{"reason": "x"}\n')),
    "bad files a list": ("bad_files.jsonl", lambda path: path.write_text('["a"]\n')),
    "bad files, key a number": ("bad_files.jsonl", lambda path: path.write_text('{"key": 5}\n')),
    "bad files a pipe": ("bad_files.jsonl", os.mkfifo),
    "evaluations a text": ("evaluations.jsonl", lambda path: path.write_text('"x"\n')),
    "evaluations, diagnosis null": ("evaluations.jsonl", lambda path: path.write_text('{"diagnosis": null}\n')),
    "evaluations, verdict missing": ("evaluations.jsonl", lambda path: path.write_text('{"diagnosis": {}}\n')),
    "evaluations a device": ("evaluations.jsonl", lambda path: path.symlink_to("/dev/zero")),
    "environment a pipe": ("environment.json", os.mkfifo),
    "recipe binary": ("recipe.yaml", lambda path: path.write_bytes(b"\x00\xff")),
    "recipe cut": ("recipe.yaml", lambda path: path.write_text("images: {size: 3")),
    "recipe a list": ("recipe.yaml", lambda path: path.write_text("[1, 2]")),
    "recipe empty": ("recipe.yaml", Path.touch),
    "recipe missing": ("recipe.yaml", lambda path: None),
    "recipe a folder": ("recipe.yaml", Path.mkdir),
    "encoder a file": ("encoder", Path.touch),
    "untrained a file": ("untrained", Path.touch),
    "pictures a file": ("pictures", Path.touch),
    "checkpoints a file": ("checkpoints", Path.touch),
    "crash a pipe": ("crash", os.mkfifo),
    "weights a folder": ("encoder/model.safetensors", Path.mkdir),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_44_damage_is_told_before_an_image_is_read(name, place, run, monkeypatch):
    if "evaluations, " not in name:  # what a last line means is read at the end, where training has added its own
        monkeypatch.setattr(pretraining, "open_images", lambda *arguments: pytest.fail("the images were opened"))
    file, make = DAMAGES[name]
    instead(run / file, make)
    began = time.monotonic()
    code, _, err = resume(place, run)
    assert code == 4 and str(run / file) in refusal(err)
    assert time.monotonic() - began < 20 and len(refusal(err)) < 600


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "log a folder"])
def test_44_a_report_of_a_damaged_run_says_so_or_refuses(name, run):
    file, make = DAMAGES[name]
    instead(run / file, make)
    began = time.monotonic()
    code, _, err = diptych("report", run)
    assert code in (0, 4) and "Traceback" not in err
    assert time.monotonic() - began < 20


PROJECTIONS = {
    "bytes": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)),
    "another array": lambda path: np.savez(path, z1=np.zeros((4, 3))),
    "texts": lambda path: np.savez(path, z1=np.array(["a"]), z2=np.array(["b"])),
    "other shapes": lambda path: np.savez(path, z1=np.zeros((4, 3)), z2=np.zeros((4, 2))),
    "objects": lambda path: np.savez(path, z1=np.array([{}]), z2=np.zeros((4, 2))),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_44_damaged_projections_are_told_before_an_image_is_embedded(name, place, run, monkeypatch):
    monkeypatch.setattr(evaluate, "embed_sets", lambda *arguments, **options: pytest.fail("images were embedded"))
    instead(run / "pictures" / "projections.npz", PROJECTIONS[name])
    code, _, err = diptych("evaluate", run, "--train", place / "photos", "--test", place / "photos")
    assert code == 4 and "pictures/projections.npz: " in refusal(err)


@pytest.mark.parametrize("damage", ["a pipe", "a folder", "cut"])
def test_44_a_damaged_checkpoint_is_passed_over_never_waited_for(damage, place, run):
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    make = {"a pipe": os.mkfifo, "a folder": Path.mkdir, "cut": lambda path: path.write_text("{")}[damage]
    instead(newest / "manifest.json", make)
    code, _, err = resume(place, run)
    assert (
        code == 4 and "manifest.json" in err and "restore one, or start over with --overwrite" in err.splitlines()[-1]
    )


def test_44_a_line_that_a_kill_has_cut_is_left_out_and_not_glued_to_the_next(run):
    whole = Run(run).lines()
    for rest in (b'{"event": "st', b'{"event": "\xff', bytes(40)):
        with open(run / "log.jsonl", "ab") as file:
            file.write(rest)
        assert Run(run).lines() == whole
        Run(run).append("log.jsonl", [{"event": "note", "step": 0}])
        whole.append({"event": "note", "step": 0})
        assert Run(run).lines() == whole
    (run / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes().rstrip(b"\n"))  # an editor's
    Run(run).append("log.jsonl", [{"event": "note", "step": 0}])
    assert Run(run).lines() == [*whole, {"event": "note", "step": 0}]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from([1e300, -1e308, 5e-324, 10**400, 2**53, -0.0, "step", "end", "watch", "OK", "trained", "chance"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = {
    "log.jsonl": ["event", "step", "epoch", "progress", "loss", "parts", "gradient_norm", "lr", "elapsed_seconds", "rank",
                  "images_per_second", "knn_accuracy", "epochs"],
    "evaluations.jsonl": ["protocol", "subject", "accuracy", "interval", "details", "diagnosis", "train_images", "seed"],
    "bad_files.jsonl": ["key", "reason"],
}  # fmt: skip


@st.composite
def damaged_lines(draw) -> tuple[str, list]:
    """A file and its lines: arbitrary values, and lines that Diptych writes with some values replaced."""
    name = draw(st.sampled_from(sorted(KEYS)))
    line = st.dictionaries(st.sampled_from(KEYS[name]), JSON, max_size=6)
    steps = line.map(lambda values: {"event": "step", "step": 1, "loss": 1.0} | values)
    scores = line.map(lambda values: {"protocol": "knn", "subject": "trained", "accuracy": 0.5} | values)
    verdicts = JSON.map(
        lambda value: {"diagnosis": {"verdict": "OK", "readings": value, "reasons": value, "advice": value}}
    )
    return name, draw(st.lists(JSON | line | steps | scores | verdicts, max_size=6))


@given(damaged=damaged_lines())
@few(50)
def test_44_any_lines_end_in_a_report_or_one_line(damaged, tmp_path_factory):
    read_damaged(damaged, tmp_path_factory)


@pytest.mark.slow
@given(damaged=damaged_lines())
@few(150)
def test_44_any_of_more_lines_end_in_a_report_or_one_line(damaged, tmp_path_factory):
    read_damaged(damaged, tmp_path_factory)


def read_damaged(damaged, tmp_path_factory):
    name, lines = damaged
    folder = tmp_path_factory.mktemp("any") / "run"
    fake_run(folder, mapped=4) if not lines else put(folder, {"recipe.yaml": b"{}", "log.jsonl": b""})
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(folder)
    for question in (
        lambda: require_place(folder, resume=True),
        lambda: Run(folder).finished,
        lambda: run_summary(Run(folder)),
    ):
        try:
            question()
        except CheckpointError as error:
            assert "\n" not in str(error) and str(folder) in str(error)


SLOW_KEYS = [pytest.param(key, marks=pytest.mark.slow) for key in ("step", "loss", "images_per_second")]


@pytest.mark.parametrize("value", [1e300, -1.7e308, 5e-324, 1e16, 2.0**53])
@pytest.mark.parametrize(
    "key", ["lr", *(pytest.param(key, marks=pytest.mark.slow) for key in ("step", "loss", "images_per_second"))]
)
def test_44_numbers_at_the_edge_of_what_can_be_drawn(key, value, tmp_path):
    run = fake_run(tmp_path / "run")
    line = {"event": "step", "step": 1, "loss": 1.0, "lr": [0.1], "images_per_second": 5.0}
    for others in (
        [],
        [line | {"step": 2}],
        [line | {"step": 2}, line | {"step": 10**9, key: 1e-3 if key != "lr" else [1]}],
    ):
        lines = [line | {key: [value] if key == "lr" else value}, *others]
        (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        assert report(run).is_file()


# ---- two at a time, and a folder that may only be read


def test_44_a_second_resume_is_refused_and_leaves_the_first_alone(place, run):
    holder = take_lock(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, err = resume(place, run)
    assert code == 6 and f"another run is writing to {run} (process {os.getpid()} on " in refusal(err)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    holder.close()


def report_as_nobody(run: str, said) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    for attempt in (
        lambda: report(run),
        lambda: Run.start(run, {}, resume=True),
        lambda: Run.start(run, {}, overwrite=True),
    ):
        try:
            attempt()
            said.send("nothing")
        except OutputError as error:
            said.send(str(error))


def test_44_a_folder_that_may_only_be_read(run):
    """For a user who is not root, as most are."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    for path in (run, *run.parents):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    there, said = multiprocessing.Pipe()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process = multiprocessing.get_context("fork").Process(target=report_as_nobody, args=(str(run), said))
    process.start()
    process.join(60)
    lines = [there.recv() for _ in range(3)]
    assert process.exitcode == 0 and all("permission denied" in line and str(run) in line for line in lines), lines
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
