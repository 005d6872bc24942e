"""Checkpoints: whole or absent, verified by hash, never the last good one lost."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from diptych.base import files
from diptych.base.errors import CheckpointError, OutputError
from diptych.runs import checkpoints
from diptych.runs.run import Run
from diptych.training.optimizers import adamw, lamb, lars, sgd


def tensors(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    made = torch.Generator().manual_seed(seed)
    return {"model": {"a": torch.randn(3, 4, generator=made), "b": torch.randn(2, generator=made)}}


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20, 30):
        checkpoints.save(tmp_path, step, tensors(step), {"elapsed_seconds": step / 3})
    return tmp_path


def test_what_was_saved_comes_back(folder):
    newest = checkpoints.newest(folder)
    assert newest.name == "step_0000030" == (folder / "last").read_text()
    assert checkpoints.read_state(newest) == {"step": 30, "elapsed_seconds": 10.0}
    for name, value in checkpoints.read_tensors(newest / "model.safetensors").items():
        assert torch.equal(value, tensors(30)["model"][name])


def test_the_two_newest_are_kept(folder):
    assert [path.name for path in checkpoints.steps(folder)] == ["step_0000020", "step_0000030"]


def test_a_broken_one_of_a_later_step_takes_no_place(folder):
    """The run has resumed from step 20: what it saves now must not push step 20 out beside a broken step 30."""
    flip(folder / "step_0000030" / "model.safetensors")
    checkpoints.save(folder, 25, tensors(25), {})
    assert [path.name for path in checkpoints.steps(folder)] == ["step_0000020", "step_0000025"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("hello"),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.unlink(),
    ],
    ids=["bit flipped", "truncated", "empty", "text", "zeros", "missing"],
)
def test_a_damaged_checkpoint_is_passed_over_and_told(folder, file, damage):
    damage(folder / "step_0000030" / file)
    with pytest.warns(UserWarning, match="step_0000030: .* looking for an older checkpoint"):
        assert checkpoints.newest(folder).name == "step_0000020"


def test_when_all_are_damaged_it_does_not_start_over_silently(folder):
    for path in checkpoints.steps(folder):
        flip(path / "model.safetensors")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="no checkpoint in .* is intact"):
        checkpoints.newest(folder)


def test_none_at_all_is_a_start(tmp_path):
    assert checkpoints.newest(tmp_path) is None


def test_what_a_killed_writer_left_is_deleted_by_who_holds_the_run(folder):
    stray = folder / ".step_0000040.tmp-123"
    stray.mkdir()
    (stray / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest(folder).name == "step_0000030"
    assert stray.exists(), "a reader cannot know that nobody is writing it"
    checkpoints.clear(folder)
    assert not stray.exists() and checkpoints.newest(folder).name == "step_0000030"


def test_a_reader_does_not_disturb_a_run_that_saves(folder, monkeypatch):
    write, read = checkpoints.write_file, []

    def read_meanwhile(path, data):
        write(path, data)
        read.append(checkpoints.newest(folder).name)

    monkeypatch.setattr(checkpoints, "write_file", read_meanwhile)
    checkpoints.save(folder, 40, tensors(40), {})
    assert read == ["step_0000030"] * 3 + ["step_0000040"]  # the last one after the rename


def test_a_full_disk_leaves_the_checkpoints_before_it(folder, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"no space left.*it needs 0.00 MB, [\d,]+ MB are free; make room.*--resume"):
        checkpoints.save(folder, 40, tensors(40), {})
    monkeypatch.undo()
    assert checkpoints.newest(folder).name == "step_0000030"
    assert not list(folder.glob(".*tmp*"))


def test_too_little_room_is_told_before_training(tmp_path):
    with pytest.raises(OutputError, match="needs about .* MB for checkpoints"):
        files.require_space(tmp_path, 10**18)


def test_weights_that_do_not_fit_are_named(tmp_path):
    module = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"w.st does not fit this network: missing bias \(1\); unexpected other"):
        checkpoints.load_exactly(module, {"weight": torch.zeros(2, 3), "other": torch.zeros(1)}, "w.st")
    with pytest.raises(CheckpointError, match=r"of another shape weight"):
        checkpoints.load_exactly(module, {"weight": torch.zeros(3, 3), "bias": torch.zeros(2)}, "w.st")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_is_one_error(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="x.safetensors is not a readable safetensors file"):
        checkpoints.read_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("make", [sgd, adamw, lars, lamb])
def test_an_optimizer_goes_on_as_if_never_stopped(make, tmp_path):
    def steps(module, optimizer, count):
        for i in range(count):
            optimizer.zero_grad()
            module(torch.full((4, 3), 0.1 * (i + 1))).square().sum().backward()
            optimizer.step()

    def twin():
        module = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(module.weight, 0.3)
        torch.nn.init.constant_(module.bias, 0.1)
        return module, make(module, lr=0.05)

    module, optimizer = twin()
    steps(module, optimizer, 3)
    memory, rest = checkpoints.pack_optimizer(optimizer)
    saved = checkpoints.save(tmp_path, 3, {"model": module.state_dict(), "optimizer": memory}, {"optimizer": rest})
    steps(module, optimizer, 4)

    again, second = twin()
    checkpoints.load_exactly(again, checkpoints.read_tensors(saved / "model.safetensors"), saved)
    state = json.loads((saved / "state.json").read_text())
    checkpoints.unpack_optimizer(second, checkpoints.read_tensors(saved / "optimizer.safetensors"), state["optimizer"])
    steps(again, second, 4)
    assert torch.equal(module.weight, again.weight) and torch.equal(module.bias, again.bias)


@pytest.mark.parametrize("killed_at", [1, 2])
def test_saving_a_step_again_never_leaves_none(killed_at, tmp_path, monkeypatch):
    """A run that ends saves its last step again. It may be the only one: killed at either rename, one of the two is left."""
    checkpoints.save(tmp_path, 7, {"model": {"a": torch.ones(3)}}, {"finished": False})
    replace, renames = os.replace, []

    def mortal(source, target):
        if Path(target).name.startswith(("step_", ".step_")) and Path(source).is_dir():
            renames.append(target)
            if len(renames) == killed_at:
                raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(os, "replace", mortal)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, 7, {"model": {"a": torch.ones(3)}}, {"finished": True})
    monkeypatch.undo()
    checkpoints.clear(tmp_path)
    found = checkpoints.newest(tmp_path)
    assert found.name == "step_0000007" and checkpoints.read_state(found)["finished"] is False
    assert not list(tmp_path.glob(".step*"))
    again = checkpoints.save(tmp_path, 7, {"model": {"a": torch.ones(3)}}, {"finished": True})
    assert checkpoints.read_state(again)["finished"] is True and not list(tmp_path.glob(".step*"))


def test_what_an_evaluation_takes_is_free_in_a_resumed_run(tmp_path):
    """Its defaults may change from version to version, and no step of the training depends on them."""
    record = {"pretrain": {"seed": 0}, "evaluate": {"k": 5, "precision": "float32"}}
    Run.start(tmp_path / "run", record).release()
    Run.start(tmp_path / "run", record | {"evaluate": {"k": None, "precision": "auto"}}, resume=True).release()
    with pytest.raises(CheckpointError, match="another recipe"):
        Run.start(tmp_path / "run", record | {"pretrain": {"seed": 1}}, resume=True)
