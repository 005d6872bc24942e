"""Every error a user can cause, collected: one line that names the thing and the fix, with the exit code of the README.

`python -m pytest tests/faults/test_messages.py -s` prints the list, to be read as a user would.
"""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from spoiled import SMALL, diptych, photographs

from diptych.commands import pretraining
from diptych.runs import checkpoints
from diptych.training import pretrain

README = Path(__file__).parents[2] / "README.md"
FIX = re.compile(
    r"--\w+|did you mean|;|: (use|lower|halve|give|leave)|\b(use|choose|add|bring|give|make|run|point|install|write|known|"
    r"copy|must be|which is not|near)\b",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """photos/ with two classes, run/ trained on them, and things that are not what they should be."""
    root = tmp_path_factory.mktemp("place")
    photos = photographs(root / "photos", count=6)
    assert diptych("pretrain", photos, *SMALL, "--out", root / "run")[0] == 0
    photographs(root / "birds", classes=("bird", "cat"), count=2)
    (root / "empty").mkdir()
    (root / "letters").mkdir()
    (root / "letters" / "dear.txt").write_text("dear")
    (root / "spoiled").mkdir()
    for name in "abcdefgh":
        (root / "spoiled" / f"{name}.jpg").write_bytes(b"")
    (root / "not.zip").write_text("PK, not")
    (root / "mine.yaml").write_text("images: {size: 32\n")
    torch.save({"a": torch.ones(1)}, root / "other.pth")
    (root / "noise.pth").write_bytes(bytes(range(200)))
    np.save(root / "flat.npy", np.zeros(4))
    shutil.copytree(root / "run", root / "unfinished")
    shutil.rmtree(root / "unfinished" / "encoder")
    shutil.copytree(root / "run", root / "damaged")
    for checkpoint in checkpoints.steps(root / "damaged" / "checkpoints"):
        (checkpoint / "model.safetensors").write_bytes(b"")
    return root


TRAIN = ["pretrain", "photos", *SMALL, "--out", "new"]
ERRORS = [  # exit code, what must be named, the command
    (2, "pretrian", ["pretrian"]),
    (2, "SOURCE", ["pretrain"]),
    (2, "--recipes", ["pretrain", "photos", "--recipes", "demo"]),
    (2, "--count", ["views", "photos", "--count", "many"]),
    (2, "demp", ["pretrain", "photos", "--recipe", "demp"]),
    (2, "none.yaml", ["pretrain", "photos", "--recipe", "none.yaml"]),
    (2, "mine.yaml, line", ["pretrain", "photos", "--recipe", "mine.yaml"]),
    (2, "lrr", [*TRAIN, "optimizer.lrr=1"]),
    (2, "optimizer.lr", [*TRAIN, "optimizer.lr=fast"]),
    (2, "'optimizer.lr'", [*TRAIN, "optimizer.lr"]),
    (2, "larz", [*TRAIN, "optimizer.name=larz"]),
    (2, "optim", [*TRAIN, "optim.lr=1"]),
    (2, "resnet18000", [*TRAIN, "encoder.name=resnet18000"]),
    (2, "float8", [*TRAIN, "pretrain.precision=float8"]),
    (2, "epochs", [*TRAIN, "pretrain.epochs=0"]),
    (2, "batch_size", [*TRAIN, "pretrain.batch_size=1"]),
    (2, "batch_size", [*TRAIN, "pretrain.batch_size=99"]),
    (2, "micro_batch", [*TRAIN, "pretrain.micro_batch=3"]),
    (2, "cuda:99", [*TRAIN, "pretrain.device=cuda:99"]),
    (2, "tpu", [*TRAIN, "pretrain.device=tpu"]),
    (2, "--gpus", [*TRAIN, "--gpus", "99"]),
    (2, "knnn", ["evaluate", "run", "--train", "photos", "--test", "photos", "--protocol", "knnn"]),
    (2, "labels", ["finetune", "run", "--train", "photos", "--test", "photos", "--share", "lots"]),
    (2, "demp", ["recipes", "demp"]),
    (2, "resnet51", ["download", "resnet51"]),
    (2, "tensorflow", ["export", "run", "--to", "tensorflow", "--out", "new"]),
    (2, "stem", ["export", "run", "--to", "onnx", "--to", "torchvision", "--out", "new"]),
    (2, "licence", ["export", "run", "--to", "torch-export", "--licence", "my own", "--out", "new"]),
    (3, "nowhere", ["pretrain", "nowhere", *SMALL]),
    (3, "empty", ["pretrain", "empty", *SMALL]),
    (3, "letters", ["pretrain", "letters", *SMALL]),
    (3, "a.jpg", ["pretrain", "spoiled", *SMALL]),
    (3, "not.zip", ["pretrain", "not.zip", *SMALL]),
    (3, "flat.npy", ["pretrain", "flat.npy", *SMALL]),
    (3, "bird", ["evaluate", "run", "--train", "photos", "--test", "birds"]),
    (3, "labels", ["evaluate", "run", "--train", "photos/cat", "--test", "photos/cat"]),
    (3, "letters", ["report", "letters"]),
    (3, "nowhere", ["doctor", "nowhere"]),
    (4, "letters", ["embed", "letters", "photos", "--out", "new"]),
    (4, "unfinished", ["embed", "unfinished", "photos", "--out", "new"]),
    (4, "other.pth", ["embed", "other.pth", "photos", "--out", "new"]),
    (4, "other.pth", ["import-weights", "other.pth", "--out", "new"]),
    (4, "noise.pth", ["import-weights", "noise.pth", "--out", "new"]),
    (4, "nowhere.pth", ["import-weights", "nowhere.pth", "--out", "new"]),
    (4, "damaged", ["pretrain", "photos", *SMALL, "--out", "damaged", "--resume"]),
    (4, "pretrain.seed", ["pretrain", "photos", *SMALL, "--out", "run", "--resume", "pretrain.seed=3"]),
    (6, "run", ["pretrain", "photos", *SMALL, "--out", "run"]),
    (6, "letters", ["pretrain", "photos", *SMALL, "--out", "letters"]),
    (6, "mine.yaml", ["pretrain", "photos", *SMALL, "--out", "mine.yaml/run"]),
    (6, "letters", ["embed", "run", "photos", "--out", "letters"]),
    (6, "views.xyz", ["views", "photos", "--recipe", "demo", "--out", "views.xyz"]),
    (6, "letters", ["import-weights", "other.pth", "--out", "letters"]),
    (6, "letters", ["export", "run", "--to", "onnx", "--out", "letters"]),
    (6, "photos", ["export", "run", "--to", "onnx", "--images", "photos", "--out", "photos/exported"]),
    (6, "labels.txt", ["classify", "run", "photos", "--train", "photos", "--out", "labels.txt"]),
]


def memory_is_full(*arguments, **options):
    raise MemoryError


def befallen(number: int):
    return lambda *arguments, **options: os.kill(os.getpid(), number)


BEFALLEN = [  # what comes from outside: exit code, what is named, where it strikes, what it does
    (2, "memory", (pretrain, "loop"), memory_is_full),
    (75, "SIGTERM", (pretraining, "open_images"), befallen(signal.SIGTERM)),
    (75, "SIGUSR1", (pretraining, "open_images"), befallen(signal.SIGUSR1)),
    (130, "interrupted", (pretraining, "open_images"), befallen(signal.SIGINT)),
]


def judge(code: int, named: str, words: list, got: int, out: str, err: str) -> None:
    assert "Traceback" not in err, err
    line = err.splitlines()[-1]  # before it, at most warnings and progress
    print(f"\n{got:>3}  diptych {' '.join(words)}\n     {line}")
    assert got == code, f"{got}: {err}"
    assert named in line, line
    assert FIX.search(line.removeprefix("diptych: ")), f"no fix: {line}"
    assert line.count("\n") == 0 and out == "" and 20 < len(line) < 400, line
    documented = re.search(r"\*\*Exit codes\*\*:(.*?)torchrun", README.read_text(), re.DOTALL)
    assert documented and re.search(rf"\b{code}\b", documented[1])


@pytest.mark.parametrize(
    ("code", "named", "words"), ERRORS, ids=[f"{i:02}-{row[2][0]}-{row[1]}" for i, row in enumerate(ERRORS)]
)
def test_one_line_names_the_thing_and_the_fix(code, named, words, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("RANK", raising=False)
    before = sorted(path.name for path in place.iterdir())
    got, out, err = diptych(*words)
    judge(code, named, words, got, out, err)
    assert sorted(path.name for path in place.iterdir()) == before  # and nothing is left behind


@pytest.mark.parametrize(("code", "named", "where", "does"), BEFALLEN, ids=["memory", "TERM", "USR1", "Ctrl-C"])
def test_what_comes_from_outside_is_one_line_too(code, named, where, does, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    monkeypatch.setattr(*where, does)
    words = ["pretrain", "photos", *SMALL, "--out", str(tmp_path / "new")]
    judge(code, named, words, *diptych(*words))


def test_divergence_is_one_line_too(place, monkeypatch, tmp_path):
    from diptych.methods import BarlowTwins

    compare = BarlowTwins.compare

    def broken(method, projections, progress):
        compared = compare(method, projections, progress)
        return compared._replace(loss=compared.loss * float("nan"))

    monkeypatch.chdir(place)
    monkeypatch.setattr(BarlowTwins, "compare", broken)
    words = ["pretrain", "photos", *SMALL, "--out", str(tmp_path / "new")]
    judge(5, "loss nan", words, *diptych(*words))
    assert json.loads(next((tmp_path / "new" / "crash").iterdir()).read_text())["loss"] == "nan"
