"""Rows 35 and 39 of docs/faults.md: a disk that refuses, and two runs in one folder. What was saved before stays whole."""

import errno
import os
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import own_process
import pytest
import struck
from spoiled import SMALL, diptych, photographs, refusal
from struck import in_own_process
from tiny import tiny_method, tiny_run

from diptych.base.errors import OutputError
from diptych.base.signals import Preempted
from diptych.runs import checkpoints, run
from diptych.runs.run import Run


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Run:
    """A run that nothing disturbed."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "quiet", checkpoint_minutes=5.0)


@pytest.fixture
def halfway(tmp_path) -> Path:
    """A run that was stopped at step 6."""
    method = tiny_method()
    method.signal_at = (5, signal.SIGTERM)
    with pytest.raises(Preempted):
        tiny_run(tmp_path / "run", method)
    return tmp_path / "run"


def weights(folder: Path) -> bytes:
    return (checkpoints.newest(folder / "checkpoints") / "model.safetensors").read_bytes()


# ---- 35: the disk refuses


@pytest.mark.parametrize("file", [
    "optimizer.safetensors", *(pytest.param(file, marks=pytest.mark.slow) for file in ("model.safetensors", "state.json"))
])  # fmt: skip
def test_35_a_quota_on_files_stops_with_what_it_needs_and_goes_on_later(file, halfway, quiet, tmp_path):
    limit = (checkpoints.newest(halfway / "checkpoints") / file).stat().st_size - 1
    before = weights(halfway)
    assert in_own_process(struck.limited, str(halfway), str(tmp_path / "said"), limit) == 6
    said = (tmp_path / "said").read_text()
    assert said.startswith("diptych: cannot write ") and said.count("\n") == 1
    assert "file too large" in said and " MB are free; make room and run again (pretrain: with --resume)" in said
    assert weights(halfway) == before and not list(halfway.rglob("*.tmp-*"))
    assert all(line["event"] for line in Run(halfway).lines())  # the log can be read to its end
    assert weights(tiny_run(halfway).folder) == weights(quiet.folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_35_a_full_disk(small_disk, quiet, tmp_path):
    method = tiny_method()
    method.signal_at = (5, signal.SIGTERM)
    with pytest.raises(Preempted):
        tiny_run(small_disk / "run", method)
    with open(small_disk / "somebody's", "wb") as file:
        free = shutil.disk_usage(small_disk).free
        file.write(bytes(free - 16384))  # enough to begin with, not for long
    with pytest.raises(OutputError, match=r"no space left on device.*it needs .* MB are free; make room"):
        tiny_run(small_disk / "run")
    assert checkpoints.newest(small_disk / "run" / "checkpoints").name >= "step_0000006"
    (small_disk / "somebody's").unlink()
    assert weights(tiny_run(small_disk / "run").folder) == weights(quiet.folder)


def test_35_a_disk_that_may_only_be_read(small_disk, tmp_path):
    (small_disk / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for out, told in ((small_disk / "run", "cannot write to"), (small_disk / "new", "cannot create the folder")):
        with pytest.raises(OutputError, match=f"{told} .*read-only file system.; choose another --out"):
            tiny_run(out)


def test_35_too_little_room_is_told_before_a_step_is_made(tmp_path, monkeypatch):
    photos = photographs(tmp_path / "photos")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    code, _, err = diptych("pretrain", photos, *SMALL, "--out", tmp_path / "run")
    assert code == 6 and "MB for checkpoints, 0.02 MB are free; make room, or choose another --out" in refusal(err)
    assert Run(tmp_path / "run").lines("step") == []


def test_35_the_log_and_a_table_on_a_full_disk_are_told_as_one_line(tmp_path, monkeypatch):
    writer = Run.start(tmp_path / "run", {"a": 1})
    (tmp_path / "run" / "log.jsonl").unlink()
    (tmp_path / "run" / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"log.jsonl \(no space left on device\)"):
        writer.log("step", step=1)
    writer.release()


# ---- 39: two runs, one folder


def test_39_a_second_run_is_told_who_is_writing_and_a_dead_one_holds_nothing(tmp_path):
    out = tmp_path / "run"
    Run.start(out, {"a": 1}).release()
    first = own_process.start(struck.hold, str(out))
    try:
        while not (out / "held").exists():
            assert first.is_alive()
            time.sleep(0.02)
        with pytest.raises(
            OutputError, match=f"another run is writing .*process {first.pid} on {os.uname().nodename}.; wait"
        ):
            Run.start(out, {"a": 1}, resume=True)
    finally:
        first.kill()
        first.join()
        first.close()
    Run.start(out, {"a": 1}, resume=True).release()  # the file .lock is still there, and names a dead process


def test_39_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch):
    def unable(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run.fcntl, "flock", unable)
    with pytest.warns(UserWarning, match="cannot be locked .No locks available.: do not start a second run there"):
        Run.start(tmp_path / "run", {"a": 1}).release()


def test_39_steps_order_checkpoints_not_clocks(halfway):
    folder = halfway / "checkpoints"
    for age, path in enumerate(checkpoints.steps(folder)):
        os.utime(path, (2e9 - 1e8 * age, 2e9 - 1e8 * age))  # the newest seems the oldest, and all from the future
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoints.newest(folder).name == "step_0000006"
    checkpoints.save(folder, 7, struck.tensors(7), {})
    assert [path.name for path in checkpoints.steps(folder)] == ["step_0000006", "step_0000007"]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EXDEV])
def test_39_a_rename_that_fails_leaves_what_was_there(number, halfway, monkeypatch):
    before, renamed = weights(halfway), os.replace

    def fail(source, target):
        if str(target).endswith("step_0000007"):
            raise OSError(number, os.strerror(number))
        return renamed(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=f"cannot write .*step_0000007 .{os.strerror(number).lower()}"):
        tiny_run(halfway)
    assert weights(halfway) == before and not list(halfway.rglob("*.tmp-*"))
