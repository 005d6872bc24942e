"""`--encoder package.module:function`: a network of the user's own on the command line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_cli import diptych
from tiny import TinyEncoder, tiny_images, tiny_run

from diptych.base import strict_yaml
from diptych.runs.encoder import load

NETWORKS = '''
from torch import nn

class Tiny(nn.Sequential):
    """The network of tests/tiny.py."""
    num_features = 8

    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())

def tiny():
    return Tiny()

def wider():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def needy(width):
    return Tiny()

def broken():
    return undefined

def text():
    return "a network"

ready = Tiny()
number = 7
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`run/`, trained on a module of the user's own; `photos.npz`; `mine/networks.py`."""
    root = tmp_path_factory.mktemp("own")
    photos = tiny_images()
    tiny_run(root / "run", epochs=1)
    np.savez(root / "photos.npz", images=photos.pixels().permute(0, 2, 3, 1).numpy(), labels=np.array(photos.labels))
    (root / "mine").mkdir()
    (root / "mine" / "__init__.py").write_text("")
    (root / "mine" / "networks.py").write_text(NETWORKS)
    (root / "mine" / "unfinished.py").write_text("def tiny(:\n")
    (root / "mine" / "lacking.py").write_text("import a_package_that_is_not_there\n")
    return root


@pytest.fixture
def here(place, monkeypatch):
    """The user stands in that folder, and no test leaves a module or a path behind."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(place))])
    before = set(sys.modules)
    yield place
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "mine":
            del sys.modules[name]


OWN = ["--encoder", "mine.networks:tiny"]
SETS = ["--train", "photos.npz", "--test", "photos.npz"]


def test_the_verbs_take_it(here, capsys, tmp_path):
    code, out, err = diptych(capsys, "evaluate", "run", *SETS, *OWN)
    assert code == 0, err
    assert "\nuntrained " in out and "\ntrained " in out and "48 test and 48 training images of 4 classes" in out
    code, out, err = diptych(capsys, "embed", "run", "photos.npz", "--out", tmp_path / "vectors", *OWN)
    assert code == 0 and "48 x 8 float32, 0 images failed" in out, err
    code, out, err = diptych(
        capsys, "classify", "run", "photos.npz", "--train", "photos.npz", "--out", tmp_path / "labels.csv", *OWN
    )
    assert code == 0 and "held-out accuracy" in out, err
    code, out, err = diptych(capsys, "finetune", "run", *SETS, "--share", "3pc", "--epochs", 1, *OWN)
    assert code == 0 and "\nfrom scratch " in out, err
    code, out, err = diptych(capsys, "export", "run", "--to", "torch-export", "--out", tmp_path / "exported", *OWN)
    assert code == 0 and (tmp_path / "exported" / "encoder.pt2").is_file(), err


def test_the_folders_weights_are_loaded(here, capsys, tmp_path):

    code, _, err = diptych(capsys, "embed", "run", "photos.npz", "--out", tmp_path / "vectors", *OWN)
    assert code == 0, err
    wanted = load(here / "run", TinyEncoder())(tiny_images().pixels())
    np.testing.assert_allclose(np.load(tmp_path / "vectors" / "vectors.npy"), wanted.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("own", "code", "words"),
    [
        ("mine.networks", 2, ["'mine.networks' names no function: write package.module:function"]),
        (":tiny", 2, ["write package.module:function"]),
        ("mine.other:tiny", 2, ["cannot import mine.other (ModuleNotFoundError: No module named 'mine.other'"]),
        ("mine.unfinished:tiny", 2, ["cannot import mine.unfinished (SyntaxError", "unfinished.py"]),
        ("mine.lacking:tiny", 2, ["cannot import mine.lacking", "a_package_that_is_not_there", "lacking.py line 1"]),
        ("mine.networks:tony", 2, ["mine.networks has no tony"]),
        ("mine.networks:number", 2, ["number is a int; give a function that returns the network"]),
        ("mine.networks:ready", 2, ["ready is a Tiny; give a function that returns the network"]),
        ("mine.networks:needy", 2, ["calling needy() failed (TypeError", "width"]),
        ("mine.networks:broken", 2, ["calling broken() failed (NameError", "networks.py line"]),
        ("mine.networks:text", 2, ["text() returns a str, not a torch.nn.Module"]),
        ("mine.networks:wider", 4, ["model.safetensors"]),
    ],
)
def test_a_network_that_cannot_be_made_is_one_line(here, capsys, own, code, words):
    got, out, err = diptych(capsys, "evaluate", "run", *SETS, "--encoder", own)
    line = err.splitlines()[-1]
    assert got == code and out == "" and "Traceback" not in err, err
    assert line.startswith("diptych: ") and all(word in line for word in words), line


def test_without_it_the_message_names_it(here, capsys):
    code, _, err = diptych(capsys, "evaluate", "run", *SETS)
    assert code == 4 and "holds a custom TinyEncoder" in err and "--encoder MODULE:FUNCTION" in err


def test_a_program_of_its_own_imports_from_its_folder(here, tmp_path):
    """As `python -m` does, also where `diptych` was started as an installed script."""
    program = "import sys; sys.path = [p for p in sys.path if p]; from diptych.commands.cli import main; main()"
    words = ["embed", "run", "photos.npz", "--out", str(tmp_path / "vectors"), *OWN]
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_the_help_says_that_code_is_run(capsys):
    for verb in ("evaluate", "embed", "classify", "finetune", "export"):
        _, out, _ = diptych(capsys, verb, "--help")
        words = " ".join(out.replace("│", " ").split())
        assert "--encoder" in words and "This runs its code." in words, verb


def test_a_run_of_an_older_version_is_evaluated(here, capsys):
    """Its recipe has an argument that `evaluate` no longer takes, and lacks those that came later."""
    shutil.copytree("run", "older")
    recipe = strict_yaml.read(here / "older" / "recipe.yaml") | {
        "evaluate": {"encoder": None, "protocols": ["knn"], "k": 7}
    }
    (here / "older" / "recipe.yaml").write_text(strict_yaml.write(recipe))
    code, out, err = diptych(capsys, "evaluate", "older", *SETS, *OWN)
    assert code == 0 and "linear" not in out, err
    lines = [json.loads(text) for text in (here / "older" / "evaluations.jsonl").read_text().splitlines()]
    last = [line for line in lines if "subject" in line][-1]
    assert last["subject"] == "trained" and last["details"]["k"] == 7
