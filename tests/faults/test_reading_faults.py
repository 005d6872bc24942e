"""Rows 14 to 16 of docs/faults.md: images that change, vanish or never come while they are read."""

import json
import os
import signal
import threading

import numpy as np
import own_process
import pytest
from dying import streamed_run
from fake_source import Fake
from spoiled import diptych, photographs, refusal
from tiny import tiny_run

from diptych.base import threads
from diptych.data.decode import BadImage, decode
from diptych.data.images import images


def damaged_in_silence(data: bytes) -> bytes:
    """A JPEG with one bit flipped in its scan that decodes to another picture without a word."""
    whole = decode(data)
    for place in range(data.index(b"\xff\xda") + 40, len(data) - 2):
        damaged = bytearray(data)
        damaged[place] ^= 4
        try:
            if (decode(bytes(damaged)) != whole).any():
                return bytes(damaged)
        except BadImage:
            continue
    raise AssertionError("every flipped bit was found out")


def test_14_silent_damage_shows_in_the_hashes_of_the_second_scan(tmp_path):
    source, hashes = photographs(tmp_path / "photos", count=4), tmp_path / "hashes.txt"
    code, out, _ = diptych("doctor", source, "--hash", hashes)
    assert code == 0 and f"the hashes of 8 images are saved in {hashes}" in out
    assert "8 with the same content, 0 changed, 0 new, 0 gone" in diptych("doctor", source, "--hash", hashes)[1]

    spoilt = source / "dog" / "02.jpg"
    spoilt.write_bytes(damaged_in_silence(spoilt.read_bytes()))
    (source / "cat" / "00.jpg").rename(source / "cat" / "new.jpg")
    noted = hashes.read_bytes()
    code, out, _ = diptych("doctor", source, "--hash", hashes)
    assert code == 0 and "8 of 8 images can be read" in out
    assert "6 with the same content, 1 changed, 1 new, 1 gone or unreadable" in out
    assert "    changed: dog/02.jpg\n    new: cat/new.jpg\n    gone or unreadable: cat/00.jpg\n" in out
    assert hashes.read_bytes() == noted, "what was noted first stays"


def test_14_a_file_of_hashes_must_be_one(tmp_path):
    source = photographs(tmp_path / "photos", count=1)
    (tmp_path / "letter.txt").write_text("Dear all,\n")
    code, _, err = diptych("doctor", source, "--hash", tmp_path / "letter.txt")
    assert code == 3 and "letter.txt is not a list of hashes" in refusal(err)
    code, _, err = diptych("doctor", "--hash", tmp_path / "letter.txt")
    assert code == 2 and "SOURCE" in refusal(err)
    code, _, err = diptych("doctor", source, "--hash", tmp_path / "no" / "folder.txt")
    assert code == 6 and "folder.txt" in refusal(err)


@pytest.mark.parametrize(("how", "reason"), [("deleted", "ENOENT: No such file"), ("chmod 000", "EACCES: Permission")])
def test_15_a_file_that_goes_away_during_a_run(how, reason, tmp_path, monkeypatch):
    source = photographs(tmp_path / "photos")
    real = open

    def refusing(path, *rest, **options):  # nothing is refused to root, under whom tests may run
        if not isinstance(path, int) and os.fsencode(path).endswith(b"dog/03.jpg"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)

    def after_an_epoch(step, encoder):
        if step == 2 and how == "deleted":
            (source / "dog" / "03.jpg").unlink()
        elif step == 2:
            monkeypatch.setattr("builtins.open", refusing)
        return {}

    photos = images(source, size=12, resident=False)  # read anew in each epoch
    run = tiny_run(tmp_path / "run", photos=photos, epochs=3, watch=[after_an_epoch])
    monkeypatch.undo()
    assert run.finished and [line["step"] for line in run.lines("step")] == [1, 2, 3, 4, 5, 6]
    (bad,) = [json.loads(line) for line in (run.folder / "bad_files.jsonl").read_text().splitlines()]
    assert bad["key"] == "dog/03.jpg" and bad["reason"].startswith(reason)


def test_15_the_list_of_bad_files_names_each_once(tmp_path):
    def stop(step, encoder):
        if step == 8:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path / "run", photos=images(Fake(60, [5, 20]), size=12), watch=[stop])
    assert (tmp_path / "run" / "bad_files.jsonl").exists(), "told from the start"
    again = tiny_run(tmp_path / "run", photos=images(Fake(60, [5, 20]), size=12))
    listed = [json.loads(line)["key"] for line in (again.folder / "bad_files.jsonl").read_text().splitlines()]
    assert listed == ["fake/5", "fake/20"]


class Odd(Fake):
    """Image 7 raises what no source should, or is waited for."""

    def __init__(self, open: threading.Event | None = None):
        super().__init__(20)
        self.open = open

    def read(self, i: int) -> bytes:
        if i == 7 and self.open is None:
            raise ZeroDivisionError("a bug in a source")
        if i == 7:
            self.open.wait(60)
        return super().read(i)


@pytest.mark.parametrize("resident", [True, False])
def test_16_a_reading_thread_that_fails_names_the_image(resident):
    """Threads share one process: an error in one is the command's error, with the image beside it."""
    found = images(Odd(), size=4, resident=resident)
    with pytest.raises(ZeroDivisionError) as caught:
        list(found.read(range(20), 5, workers=2))
    assert caught.value.__notes__ == ["while reading image fake/7"]
    assert found.squares.reading == {}


@pytest.mark.parametrize("resident", [True, False])
def test_16_a_read_that_hangs_is_told_with_the_images_in_flight(resident, monkeypatch):
    """A dead network disk: no thread can be stopped, so the wait is told, again and again, and goes on."""
    monkeypatch.setattr(threads, "SLOW_SECONDS", 0.05)
    gate = threading.Event()
    found = images(Odd(gate), size=4, resident=resident)
    threading.Timer(0.4, gate.set).start()
    with pytest.warns(UserWarning, match=r"no image came for 0 s; still being read: fake/7$") as told:
        batches = list(found.read(range(20), 5, workers=2))
    assert len(told) >= 2 and len(batches) == 4


def test_16_a_process_that_dies_while_reading_resumes_bit_equal(tmp_path):
    assert own_process.run(streamed_run, tmp_path / "run", 110) == -signal.SIGSEGV
    died, quiet = streamed_run(tmp_path / "run"), streamed_run(tmp_path / "quiet")
    assert died.finished and [line["step"] for line in died.lines("step")] == list(range(1, 13))
    weights = [np.fromfile(run.folder / "encoder" / "model.safetensors", np.uint8) for run in (died, quiet)]
    np.testing.assert_array_equal(*weights)
