"""Row 46 of docs/faults.md: missing extras, odd locales, temporary folders, other processes and threads, a diverging recipe."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from spoiled import SMALL, diptych, photographs, refusal
from test_place_faults import start, variables

from diptych.runs.run import Run


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("skimage", ["demo", "--out", "OUT"], "diptych[demo]"),
        ("pyarrow", ["doctor", "photos.parquet"], "diptych[parquet]"),
        (
            "tensorboard",
            ["pretrain", "photos", *SMALL, "pretrain.tensorboard=true", "--out", "OUT"],
            "diptych[tensorboard]",
        ),
    ],
)
def test_46_a_missing_extra_is_one_line_that_names_it(missing, words, extra, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    for name in (missing, f"{missing}.compat", f"{missing}.parquet", f"torch.utils.{missing}"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", count=10)
    (tmp_path / "photos.parquet").write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    code, _, err = diptych(*words)
    assert code in (2, 3) and extra in refusal(err)
    assert not list(tmp_path.glob("OUT/checkpoints/step_*"))


@pytest.mark.slow
def test_46_turkish_letters_stay_four_classes(tmp_path):
    """In that locale the lower case of I is a letter of its own; names are compared as they are."""
    if (
        shutil.which("localedef") is None
        or subprocess.run(
            ["localedef", "-i", "tr_TR", "-f", "UTF-8", tmp_path / "tr_TR.UTF-8"], capture_output=True
        ).returncode
    ):
        pytest.skip("no Turkish locale can be made here")
    photographs(tmp_path / "photos", ("I", "ı", "İ", "i"), count=20)
    locale = {"LOCPATH": str(tmp_path), "LC_ALL": "tr_TR.UTF-8"}
    done = start("pretrain", "photos", *SMALL, "--out", "RUN.JSON", cwd=tmp_path, environment=locale)
    assert done.returncode == 0, done.stderr.decode()
    assert Run(tmp_path / "RUN.JSON").finished


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "full"])
def test_46_a_temporary_folder_that_is_missing_or_full(kind, tmp_path):
    """What other processes say is written to a temporary file; another folder serves."""
    folder = tmp_path / "temporary"
    if kind == "full":
        folder.mkdir()
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "full", folder]).returncode:
            pytest.skip("no full disk can be made here")
        (folder / "filler").write_bytes(bytes(4096))
    try:
        photographs(tmp_path / "photos", count=20)
        done = start("pretrain", "photos", *SMALL, "pretrain.device=cpu", "--gpus", 2, "--out", "run", cwd=tmp_path,
                     environment={"TMPDIR": str(folder)})  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        assert Run(tmp_path / "run").finished
    finally:
        if kind == "full":
            subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_46_another_number_of_processes_goes_on(tmp_path):
    """Loss and gradient are those of the same global batch, so that the number of processes is no part of a run."""
    photographs(tmp_path / "photos", count=20)
    words = ["pretrain", "photos", *SMALL, "pretrain.device=cpu", "pretrain.epochs=60", "--out", "run"]
    command = [sys.executable, "-m", "diptych", *words, "--gpus", "2"]
    process = subprocess.Popen(command, env=variables(), cwd=tmp_path, stderr=subprocess.PIPE)
    log, end = tmp_path / "run" / "log.jsonl", time.monotonic() + 90
    while not (log.exists() and '"event": "step"' in log.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, process.stderr.read().decode()
    process.stderr.close()
    done = start(*words, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    steps = [line["step"] for line in Run(tmp_path / "run").lines("step")]
    assert steps == sorted(set(steps)) and Run(tmp_path / "run").finished


def test_46_a_recipe_that_diverges_does_so_again_at_the_same_step(tmp_path):
    """Going on without another rate changes nothing, and loses nothing."""
    photographs(tmp_path / "photos", count=48)
    out = tmp_path / "run"
    words = ["pretrain", tmp_path / "photos", *SMALL, "pretrain.epochs=3", "optimizer.lr=1e6", "--out", out]
    first = diptych(*words)
    steps = [line["step"] for line in Run(out).lines("step")]
    again = diptych(*words, "--resume")
    assert first[0] == again[0] == 5 and "lower optimizer.lr" in refusal(first[2])
    assert refusal(first[2]) == refusal(again[2])
    assert steps == [line["step"] for line in Run(out).lines("step")] and Run(out).finished is False
