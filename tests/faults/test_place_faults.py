"""The last line of docs/faults.md's table: places and circumstances a command may meet, each in a process of its own."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from spoiled import SMALL, jpeg, photographs, png_bomb, put

SOURCE = Path(__file__).resolve().parents[2] / "src"


def variables() -> dict[str, str]:
    """The environment of a command in a process of its own."""
    found = {"PYTHONPATH": f"{SOURCE}{os.pathsep}{os.environ['PYTHONPATH']}", "OMP_NUM_THREADS": "1"}
    return os.environ | found


def start(*words: object, python: tuple[str, ...] = (), **options) -> subprocess.CompletedProcess:
    """A command in a process of its own, from its own folder."""
    environment = variables() | options.pop("environment", {})
    command = [sys.executable, *python, "-m", "diptych", *map(str, words)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(command, env=environment, timeout=120, **streams)


BAD = {"empty\n😀.jpg": b"", "html.jpg": b"<html>", "bomb.png": png_bomb(9487, 9487), "tail.jpg": jpeg()[:-2]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`my photos`, with names no ASCII holds and four bad images, and a home without the right to write."""
    root = tmp_path_factory.mktemp("two words")
    source = photographs(root / "my photos", ("ümlaut", "犬"), count=150)
    put(source, {f"犬/{name}": data for name, data in BAD.items()})
    (root / "home").mkdir(mode=0o500)
    return root


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def test_extra_locale_c_read_only_home_optimised_python_spaces_other_folder_and_256_files(place):
    """One launch under all of them: python -O, LC_ALL=C, HOME of mode 500, spaces in paths, another cwd, 256 descriptors.

    `python -O` drops assertions: nothing that guards against bad images may be one.
    """
    home = {"HOME": str(place / "home"), "LC_ALL": "C", "LANG": "C"}
    done = start("pretrain", "my photos", *SMALL, "pretrain.batch_size=100", "--out", "a run", python=("-O",), cwd=place,
                 environment=home, preexec_fn=few_files)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr and b"Warning" not in done.stderr
    told = [json.loads(line) for line in (place / "a run" / "log.jsonl").read_text().splitlines()]
    assert told[-1]["event"] == "end"
    bad = [json.loads(line) for line in (place / "a run" / "bad_files.jsonl").read_text().splitlines()]
    assert {row["key"] for row in bad} == {f"犬/{name}".replace("\n", "%0A") for name in BAD}
    assert os.listdir(place / "home") == [] and sorted(os.listdir(place)) == ["a run", "home", "my photos"]


def test_extra_doctor_shows_any_name_where_the_terminal_is_ascii(place):
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = start("doctor", "my photos", cwd=place, environment=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert b"300 of 304 images can be read" in done.stdout and b"empty file" in done.stdout


@pytest.mark.parametrize("words", [["recipes"], ["recipe"], ["--help"]])
def test_extra_a_reader_that_stops_early(words):
    """`diptych recipes | head -1` ends quietly, and a mistake is told all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = start(*words, stdout=writing)
    finally:
        os.close(writing)
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr, done.stderr.decode()
    assert (done.returncode, done.stderr[:9]) == {"recipes": (0, b""), "recipe": (2, b"diptych: "), "--help": (0, b"")}[
        words[-1]
    ]


def test_extra_standard_streams_that_are_closed(place):
    def close() -> None:
        os.close(1)
        os.close(2)

    done = start("doctor", "my photos", "--hash", "hashes", cwd=place, stdout=None, stderr=None, preexec_fn=close)
    assert done.returncode == 0
    assert len((place / "hashes").read_text("utf-8").splitlines()) == 304, "and nothing else in it"
