"""The benchmark of the goals for a GPU: what is measured, that a call ends in time and goes on where the last one was."""

import argparse
import json
import time

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_session, measure
from benchmarks.gpu_profile import Profiled, covered
from benchmarks.gpu_session import Question, Unmeasured, run_questions

QUICK = ["--quick", "--threads", "1", "--repeats", "1", "--device", "cpu"]


def call(arguments: argparse.Namespace, rows: dict, seconds: float = 60.0) -> int:
    """A call with made-up questions: rows by name, each a function that yields some."""
    questions = {name: Question(1, f"what {name} does", ask, (1.0, 0.5, 0.1)) for name, ask in rows.items()}
    arguments.seconds = seconds
    return run_questions(questions, lambda question: question.rows(), arguments, time.monotonic())


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "commit", lambda: "0123456")  # git takes its time
    monkeypatch.setattr(gpu_session, "free_memory", lambda: None)
    return argparse.Namespace(threads=1, device="cpu", repeats=1, quick=False, out=tmp_path, known=None, compile=False,
                              train=None, test=None, epochs=1)  # fmt: skip


def quickly():
    yield measure.Row("quickly", [0.7, 0.8, 0.6], extra={"profile": {"launches": 3}})


def slowly():
    yield measure.Row("the first of two", [0.05])
    time.sleep(60)
    yield measure.Row("the second", [0.05])


def broken():
    raise ValueError("no such thing")
    yield


def impossible():
    raise Unmeasured("it needs images")
    yield


def test_a_call_ends_in_time_and_keeps_what_was_measured(arguments, capsys):
    began = time.monotonic()
    rows = {"broken": broken, "quick": quickly, "impossible": impossible, "slow": slowly, "late": quickly}
    assert call(arguments, rows, seconds=3.0) == 1
    assert time.monotonic() - began < 9
    lines = capsys.readouterr().out.splitlines()
    tables, summary = lines.index("what quick does"), next(i for i, line in enumerate(lines) if "moonshot" in line)
    assert max(i for i, line in enumerate(lines) if line.startswith(("quick: ", "late: "))) < tables < summary
    assert "goal: what quick does at most 1 s: 0.7 s, reached" in lines
    assert "goal: what quick does at most 0.5 s: 0.7 s, MISSED" in lines
    assert lines[-4:] == [
        "not complete: broken: failed with ValueError: ['no such thing']",
        "not complete: impossible: it needs images",
        "not complete: slow: did not fit into the time of this call: call again",
        "not complete: late: did not fit into the time of this call: call again",
    ]
    written = json.loads((arguments.out / "gpu-cpu.json").read_text())
    assert [row["name"] for row in written["what slow does; 1 thread"]["rows"]] == ["the first of two"]
    assert [path.name for path in arguments.out.iterdir()] == ["gpu-cpu.json"], "nothing half written"


@pytest.mark.parametrize(("change", "again"), [
    ({}, False), ({"compile": True}, True), ({"device": "cuda"}, True), ({"quick": True}, True), ({"code": "other"}, True),
    ({"known": "elsewhere"}, True), ({"machine": {"cpu": "another"}}, True),
])  # fmt: skip
def test_a_call_goes_on_where_the_last_one_was(change, again, arguments, capsys, monkeypatch):
    calls = []

    def counted():
        calls.append(1)
        yield from quickly()

    assert call(arguments, {"quick": counted, "unfinished": broken}) == 1
    first = capsys.readouterr().out
    for name in ("code", "machine"):
        if name in change:
            value = change[name]
            monkeypatch.setattr(gpu_session if name == "code" else measure, name, lambda value=value: value)
    changed = argparse.Namespace(
        **vars(arguments) | {key: value for key, value in change.items() if key in vars(arguments)}
    )
    assert call(changed, {"quick": counted, "unfinished": counted}) == 0
    said = capsys.readouterr().out
    assert len(calls) == (3 if again else 2), "and what was not finished is done"
    assert ("quick: known" in said) != again
    if not again:
        table = first[first.index("what quick does\n") : first.index("MISSED")]
        assert table in said, "the same table"


def test_quick_numbers_are_not_kept_among_the_results(arguments, monkeypatch):
    monkeypatch.setattr(gpu_session, "RESULTS", arguments.out)
    arguments.quick = True
    assert call(arguments, {"quick": quickly}) == 0 and not list(arguments.out.iterdir())


def test_a_profile_counts_what_is_done_at_once_once():
    assert covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert Profiled("cpu").summary() == {}


def test_questions_are_what_users_call(capsys, tmp_path):
    """Views and evaluation, the quickest of the questions, end to end; a GPU that is not there is said."""
    with pytest.raises(SystemExit) as ended:
        gpu.main([*QUICK, "--only", "views", "judge", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "views without graph" in said and "embedding, kNN and probe" in said
    assert {question.part for question in gpu.QUESTIONS.values()} == {1, 2}
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no GPU here: nothing was measured"):
            gpu.main([])


@pytest.mark.slow
def test_all_questions_are_tried_on_a_cpu(capsys, tmp_path):
    """Every table with next to no work, in two calls; the second goes on after the first."""
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        np.savez(
            tmp_path / name, images=rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), labels=np.arange(24) % 3
        )
    words = [*QUICK, "--out", str(tmp_path / "results"), "--epochs", "1",
             "--train", str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz")]  # fmt: skip
    for part in (["--part", "1"], []):
        with pytest.raises(SystemExit) as ended:
            gpu.main([*words, *part])
        assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.count(": known") == 6 and "NOT the 90 %" in said and "operations a step, busy" in said
    entries = json.loads((tmp_path / "results" / "gpu-cpu.json").read_text())
    assert len(entries) == len(gpu.QUESTIONS)
    profile = entries[f"{gpu.QUESTIONS['barlow'].what}; 1 thread"]["rows"][0]["profile"]
    assert profile["launches"] > 100 and 0 < profile["busy"] <= 1 and profile["largest"]


def test_without_a_profile_the_seconds_are_there(arguments, monkeypatch):
    """A machine may allow no profile; what was measured before it is not lost."""

    def refused(profiled):
        raise RuntimeError("CUPTI is not permitted here\nfor this user")

    monkeypatch.setattr(gpu, "ours", lambda *words: lambda readings: [0.5] * readings)
    monkeypatch.setattr(gpu.Profiled, "__enter__", refused)
    arguments.without_profile = False
    row = gpu.step_row("a step", {"pretrain": {"batch_size": 2, "precision": "float32"}}, 8, 3, arguments)
    assert row.seconds == [0.5] * 3 and row.note == "no profile: ['CUPTI is not permitted here']"
