"""What was measured of the machine is remembered in the user's cache; no state of that file is an error."""

import json
import os
import stat

import pytest
import torch

from diptych.base import arithmetic, machine
from diptych.base.machine import remembered


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own, in which things are remembered."""
    monkeypatch.delenv(machine.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diptych"


@pytest.fixture
def measure():
    """Gives 1.0, 2.0, ...: how often it was measured."""

    def counted() -> float:
        counted.calls += 1
        return float(counted.calls)

    counted.calls = 0
    return counted


def test_it_is_measured_once_for_a_machine(home, measure, monkeypatch):
    assert remembered("gain", measure) == remembered("gain", measure) == 1.0
    assert remembered("other", measure) == 2.0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert remembered("gain", measure) == 3.0, "another number of threads is another machine"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent))
    monkeypatch.delenv(machine.VARIABLE)
    assert remembered("gain", measure) == 1.0
    assert remembered("gain", measure, again=True) == remembered("gain", measure) == 4.0
    assert [path.name for path in home.iterdir()] == ["machine.json"], "no temporary file stays"
    assert all(f"{torch.get_num_threads()} threads" in key or "7 threads" in key
               for key in json.loads((home / "machine.json").read_text()))  # fmt: skip


@pytest.mark.parametrize("change", ["model name\t: Other\n", "flags\t\t: amx_bf16\n", "stepping\t: 9\n"])
def test_another_processor_is_measured_for_itself(change, home, measure, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: One\nflags\t\t: avx2\nstepping\t: 1\n\nmodel name\t: Second core\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert remembered("gain", measure) == remembered("gain", measure) == 1.0
    info.write_text(info.read_text().split("\n\n")[0] + "\n" + change)
    assert remembered("gain", measure) == 2.0
    info.unlink()
    assert remembered("gain", measure) == remembered("gain", measure) == 3.0


FOREIGN = {
    "cut short": b'{"gain": 1.',
    "no object": b"[1, 2]",
    "no text": b"\xff\xfe\x00",
    "empty": b"",
    "deep": b"[" * 100_000,
    "other values": None,
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_damaged_or_foreign_file_is_measured_again(what, home, measure):
    home.mkdir(parents=True)
    key = f"gain; {machine.machine()}"
    values = ["2", None, True, [3.0], -1.0, 0, float("inf"), float("nan")]
    for content in (
        [FOREIGN[what]] if FOREIGN[what] is not None else [json.dumps({key: value}).encode() for value in values]
    ):
        (home / "machine.json").write_bytes(content)
        before = measure.calls
        assert remembered("gain", measure) == remembered("gain", measure) == before + 1.0
        assert json.loads((home / "machine.json").read_text())[key] == before + 1.0


def test_a_place_that_cannot_be_used_is_no_error(home, measure, monkeypatch):
    home.parent.mkdir()
    home.write_text("a file where a folder should be")
    assert [remembered("gain", measure) for _ in "ab"] == [1.0, 2.0]
    home.unlink()
    (home / "machine.json").mkdir(parents=True)
    assert [remembered("gain", measure) for _ in "ab"] == [3.0, 4.0]
    (home / "machine.json").rmdir()
    os.mkfifo(home / "machine.json")  # opening it in the usual way would wait for ever
    assert remembered("gain", measure) == 5.0
    assert not stat.S_ISDIR((home / "machine.json").stat().st_mode)
    monkeypatch.setenv(machine.VARIABLE, "off")
    (home / "machine.json").unlink()
    assert [remembered("gain", measure) for _ in "ab"] == [6.0, 7.0] and list(home.iterdir()) == []


@pytest.mark.parametrize("named", ["", "relative/cache"])
def test_where_the_cache_is(named, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / ".cache" / "diptych"


def test_auto_is_what_was_measured_of_the_machine(home, monkeypatch):
    gains = iter([2.0, 0.5])
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda where: next(gains))
    chosen = [arithmetic.choose_precision("auto", torch.device("cpu")) for _ in "abc"]
    assert chosen == ["bfloat16"] * 3 and next(gains) == 0.5
