"""Rows 28 to 30 of docs/faults.md, and the odd places a command is started from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spoiled import SMALL, diptych, photographs, refusal
from tiny import tiny_images, tiny_run

import diptych as package
from diptych.base.device import choose_device
from diptych.base.errors import RecipeError
from diptych.commands import cli, ending

SRC = Path(package.__file__).parents[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return photographs(tmp_path_factory.mktemp("data") / "photos")


# ---- 28: mistyped


TYPED = {
    "pretrian": "no such command 'pretrian'. Did you mean 'pretrain'? (see `diptych --help`)",
    "pretrain": "missing argument 'SOURCE' (see `diptych pretrain --help`)",
    "pretrain x --devices 9": "no such option: --devices",
    "pretrain x --gpus none": "invalid value for '--gpus'",
    "views x --count many": "invalid value for '--count'",
    "evaluate run": "missing option '--train'",
    "doctor --hash": "option '--hash' requires an argument",
}


def test_28_a_mistyped_command_is_one_line_before_torch_is_imported():
    """One process for all of them: each must leave torch, timm and numpy unimported."""
    program = "import sys\nfrom diptych.commands import cli\n"
    program += "for words in sys.argv[1:]:\n    sys.argv = ['diptych', *words.split()]\n"
    program += "    try: cli.main()\n    except SystemExit as end: print(end.code, flush=True)\n"
    program += "    heavy = {'torch', 'timm', 'numpy', 'diptych.commands.recipe'} & set(sys.modules)\n"
    program += "    assert not heavy, heavy\n"
    env = os.environ | {"PYTHONPATH": f"{SRC}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-c", program, *TYPED], env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["2"] * len(TYPED), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(TYPED)
    for line, told in zip(lines, TYPED.values(), strict=True):
        assert line.startswith(f"diptych: {told}"), line
        assert line.endswith("--help`)")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("optimizer.lr=abc", 2, "demo.yaml: optimizer.lr is 'abc', which is not a number"),
        ("optim.lr=1", 2, "there is no section 'optim'; did you mean optimizer?"),
        ("pretrain.epochs=-1", 2, "epochs is -1; it must be at least 1"),
        ("pretrain.batch_size=0", 2, "batch_size is 0; it must be at least 2"),
        ("pretrain.batch_size=1", 2, "batch_size is 1; it must be at least 2"),
        ("--gpus 9", 2, "--gpus 9 needs 9 GPUs, but torch sees 0; add pretrain.device=cpu"),
        ("NOWHERE", 3, "nowhere"),
    ],
)
def test_28_a_value_that_cannot_be_is_one_line(words, code, told, photos, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    source = tmp_path / "nowhere" if words == "NOWHERE" else photos
    more = [] if words == "NOWHERE" else words.split()
    small = [word for word in SMALL if "=" not in words or not word.startswith(words.split("=")[0])]
    got, out, err = diptych("pretrain", source, *small, *more, "--out", tmp_path / "run")
    assert got == code and told in refusal(err) and out == ""
    assert not (tmp_path / "run").exists()


# ---- 29: too few images


def test_29_a_batch_larger_than_the_set_names_the_largest(photos, tmp_path):
    code, _, err = diptych("pretrain", photos, *SMALL, "pretrain.batch_size=256", "--out", tmp_path / "run")
    assert code == 2 and refusal(err) == "diptych: batch_size 256 is larger than the 24 images; use at most 24"
    assert not (tmp_path / "run").exists()


def test_29_fewer_images_than_can_be_compared(tmp_path):
    with pytest.raises(RecipeError, match="batch_size 12 is larger than the 1 images; bring more images, at least 2"):
        tiny_run(tmp_path / "run", photos=tiny_images().subset([0]))


def test_29_on_several_processes_the_batch_must_divide(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.training.ends.world_size", lambda: 5)
    with pytest.raises(RecipeError, match="batch_size 12 must be at least 2 and divide by the 5 processes"):
        tiny_run(tmp_path / "run")


# ---- 30: devices and memory


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cuda", "device cuda was requested, but torch sees no GPU; use device=cpu or auto"),
        ("cuda:3", "device cuda:3 was requested, but torch sees no GPU; use device=cpu or auto"),
        ("cuda:x", "device is 'cuda:x'; it must be auto, cpu, cuda or cuda:N"),
        ("gpu", "device is 'gpu'; it must be auto, cpu"),
    ],
)
def test_30_an_absent_gpu_is_never_a_silent_cpu_run(device, told, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = diptych("pretrain", photos, *SMALL, f"pretrain.device={device}", "--out", tmp_path / "run")
    assert code == 2 and told in refusal(err) and not (tmp_path / "run").exists()


def test_30_the_third_gpu_of_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(RecipeError, match="device cuda:3 was requested, but there are 1 GPUs; use cuda or cuda:0"):
        choose_device("cuda:3")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139 GiB"),
         "the GPU is out of memory (tried to allocate 20.00 MiB, peak use 0.0 GB): halve pretrain.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
         "this machine is out of memory: halve pretrain.batch_size, or set pretrain.micro_batch"),
        (MemoryError(), "this machine is out of memory: halve pretrain.batch_size"),
    ],
    ids=["GPU", "CPU", "numpy"],
)  # fmt: skip
def test_30_no_memory_left_is_one_line_with_what_to_do(error, told, photos, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("diptych.training.pretrain.loop", full)
    code, _, err = diptych("pretrain", photos, *SMALL, "--out", tmp_path / "run")
    assert code == 2 and refusal(err).startswith(f"diptych: {told}")
    monkeypatch.undo()
    assert (
        diptych("pretrain", photos, *SMALL, "--out", tmp_path / "run", "--resume")[0] == 0
    )  # the folder is free again


def test_our_own_bugs_are_not_dressed_up(monkeypatch):
    def bug(*arguments, **options):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(cli, "app", bug)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        diptych("recipes")
    assert ending.as_diptych_error(OSError(2, "No such file")) is None


# ---- odd places


@pytest.mark.slow  # python -O compiles torch anew; test_place_faults has most of it
def test_it_runs_from_anywhere(tmp_path):
    """Spaces in paths, another folder, locale C, no home to write to, 64 open files, python -O, nobody reading its output."""
    home = tmp_path / "a home"
    home.mkdir(mode=0o555)
    photographs(home.parent / "my photos")
    words = ["pretrain", "my photos", *SMALL, "images.size=32", "--out", "a run/one"]
    keep = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    env = keep | {"PYTHONPATH": f"{SRC}{os.pathsep}{os.environ['PYTHONPATH']}", "LC_ALL": "C", "HOME": str(home)}
    limited = 'ulimit -n 64; "$0" -O -m diptych "$@" | true; exit ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", limited, sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True,
                          timeout=200)  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
    assert (tmp_path / "a run" / "one" / "encoder" / "model.safetensors").is_file()
    assert list(home.iterdir()) == []
