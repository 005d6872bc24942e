"""The benchmarks run, say what they could not measure, and their books are right."""

import json
import sys
from contextlib import suppress

import pytest
import torch
from tiny import tiny_images

import diptych
from benchmarks import few_labels, loss, measure, search, startup, views
from diptych.downstream.tuning import Budget
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained


@pytest.fixture
def alone(monkeypatch):
    """A machine without the peers."""
    peers = {"lightly", "kornia", "torchvision", "tensorflow", "keras"}
    real = measure.version_of
    monkeypatch.setattr(measure, "version_of", lambda name: "" if name in peers else real(name))


def arguments(tmp_path, *words):
    return measure.parser("test").parse_args(["--out", str(tmp_path), "--threads", "1", *words])


def test_ratios_from_medians_of_one_run(tmp_path, capsys):
    rows = [
        measure.Row("ours", [1.0, 4.0, 2.0], work=100, unit="views/s"),
        measure.Row("slow", [8.0, 8.0, 80.0], work=100, unit="views/s", note="other draws"),
        measure.Row("quick", [1.0, 1.0, 1.0], work=200, unit="views/s"),
    ]
    measure.report("test", "views", rows, "ours", arguments(tmp_path), ["a note"])
    said = capsys.readouterr().out
    assert "4.00 x as fast  other draws" in said
    assert "0.25 x as fast" in said  # what we lose is told
    assert "a note" in said and "1 thread, cpu" in said
    assert measure.faster(measure.Row("ours", [2.0]), measure.Row("slow", [3.0])) == 1.5  # fewer seconds are better

    told = json.loads((tmp_path / "test-cpu.json").read_text())["views; 1 thread"]
    assert [row["median"] for row in told["rows"]] == [50, 12.5, 200]
    assert [(row["min"], row["max"]) for row in told["rows"]][:2] == [(25, 100), (1.25, 12.5)]
    assert told["machine"]["cores"] >= 1 and told["machine"]["libraries"]["torch"]
    assert told["commit"] and told["arguments"]["repeats"] == 5


def test_results_are_kept_beside_each_other(tmp_path):
    rows = [measure.Row("ours", [1.0])]
    for what, words in (("first", []), ("second", []), ("first", ["--threads", "2"])):
        measure.report("test", what, rows, "ours", arguments(tmp_path, *words))
    measure.report("test", "third", rows, "ours", arguments(tmp_path, "--quick"))
    told = json.loads((tmp_path / "test-cpu.json").read_text())
    assert set(told) == {"first; 1 thread", "second; 1 thread", "first; 2 threads"}


def test_a_row_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no row is called 'ours'"):
        measure.report("test", "what", [measure.Row("theirs", [1.0])], "ours", arguments(tmp_path))


def test_rivals_take_turns_after_a_warm_up():
    calls = []
    seconds = measure.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}


def test_goals():
    assert measure.goal("ratio", 15.2, 15, " x") == "goal: ratio at least 15 x: 15.2 x, reached"
    assert measure.goal("time", 0.4, 0.3, " s", at_most=True) == "goal: time at most 0.3 s: 0.4 s, MISSED"


def test_what_is_installed(monkeypatch):
    known = {"torch": "2", "tensorflow-cpu": "3"}

    def version(name):
        if name not in known:
            raise measure.importlib.metadata.PackageNotFoundError
        return known[name]

    monkeypatch.setattr(measure.importlib.metadata, "version", version)
    assert measure.missing("torch", "tensorflow") == ""
    assert measure.missing("torch", "kornia").startswith("not measured: kornia not installed")


def test_the_commit_tells_of_changes(monkeypatch):
    answers = {"rev-parse": "abc1234\n", "status": ""}

    def run(command, **_):
        return type("Ended", (), {"stdout": answers[command[1]]})

    monkeypatch.setattr(measure.subprocess, "run", run)
    assert measure.commit() == "abc1234"
    answers["status"] = " M src/diptych/losses.py\n"
    assert measure.commit() == "abc1234+"
    answers["rev-parse"] = answers["status"] = ""
    assert measure.commit() == "unknown"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' /proc")
def test_peak_memory():
    wanted = 64 * 2**20
    peak = measure.peak_bytes(lambda: torch.ones(wanted // 4).sum())
    assert 0.9 * wanted < peak < 1.5 * wanted


def test_views(alone, capsys):
    views.main(["--quick", "--repeats", "1", "--threads", "1", "--sizes", "32"])
    said = capsys.readouterr().out
    for rival in (views.LIGHTLY, views.V2, views.V2_BATCH, views.KORNIA):
        assert f"{rival}: not measured: " in said
    assert "Diptych, crop and blur as lightly's" in said
    assert all(name in said for name in ("RandomResizedCrop", "GaussianBlur", "Solarize", "Normalize"))  # the profile
    assert "views/s" in said and "nothing is to be quoted" in said


def test_views_are_checked_before_they_are_timed():
    pixels = views.pictures(128, 8)
    ours = views.diptych(pixels, 64, views.barlow_twins(8, "original"))
    darker = lambda: ([view - 1 for view in pair] for pair in ours())  # noqa: E731
    views.same_work({views.OURS: ours, "also ours": ours}, 128, 8)
    with pytest.raises(AssertionError, match="not the same work"):
        views.same_work({views.OURS: ours, "darker": darker}, 128, 8)
    with pytest.raises(AssertionError, match="views, "):
        views.check("too few", ours, 129, 8)


def test_losses(alone, capsys):
    loss.main(["--quick", "--repeats", "1", "--threads", "1"])
    said = capsys.readouterr().out
    assert said.count("lightly: not measured: ") == 2
    assert all(name in said for name in (loss.OURS, loss.MATRIX, loss.PLAIN, "negative cosine"))


def test_losses_are_compared_before_they_are_timed():
    pair = loss.projections(8, 32, "cpu")
    loss.same_answer({loss.OURS: loss.ours, "plain": loss.plain, "matrix": loss.ours_with_matrix}, pair)
    value_only = lambda a, b: loss.ours(a, b) - loss.plain(a, b).detach() + loss.plain(a, b).detach() + 0 * a.sum()  # noqa: E731
    loss.same_answer({loss.OURS: loss.ours, "the same": value_only}, pair)
    with pytest.raises(AssertionError, match="value"):
        loss.same_answer({loss.OURS: loss.ours, "wrong": lambda a, b: 1.01 * loss.plain(a, b)}, pair)
    wrong_gradient = lambda a, b: 2 * loss.plain(a, b) - loss.plain(a, b).detach()  # noqa: E731
    with pytest.raises(AssertionError, match="gradient"):
        loss.same_answer({loss.OURS: loss.ours, "wrong": wrong_gradient}, pair)


def test_startup(alone, capsys):
    startup.main(["--quick", "--threads", "1"])
    said = capsys.readouterr().out
    assert "import lightly adds: not measured: lightly not installed" in said
    assert "import diptych adds" in said and "python -m diptych --help" in said


def test_startup_waits_for_the_first_step(tmp_path):
    program = "import time; time.sleep(0.2); open({!r}, 'w').write('{{\"event\": \"step\"}}'); time.sleep(600)"
    command = [sys.executable, "-c", program.format(str(tmp_path / "log.jsonl"))]
    assert startup.until_logged(command, tmp_path, {}) >= 0.2
    with suppress(FileNotFoundError):
        (tmp_path / "log.jsonl").unlink()
    with pytest.raises(RuntimeError, match="logged no step in .*no such recipe"):
        startup.until_logged([sys.executable, "-c", "raise SystemExit('no such recipe')"], tmp_path, {})


@pytest.mark.slow
def test_the_plain_loop_learns_as_training_from_scratch_does():
    """Both rivals of `few_labels` on a task that few steps solve; the goal compares with the better plain loop."""
    torch.manual_seed(0)
    network = diptych.encoder("resnet18", "small", 12, channels=(8, 8, 16, 16))
    trained = Trained(network, Preprocessing(12, few_labels.MEAN, few_labels.STD))
    train, test = tiny_images(96).subset(range(64)), tiny_images(96).subset(range(64, 96))
    budget = Budget(steps=600)
    plain = few_labels.plain(trained, train, test, budget=budget, flip=True, seed=0, device="cpu")
    ours = few_labels.scratch(trained, train, test, budget, 0, "cpu")
    assert plain > 0.9 and ours > 0.9
    rows = {"from scratch": [0.6], "plain loop": [0.5], "plain loop, flips": [0.8]}
    assert few_labels.reached({"accuracies": rows}) == pytest.approx(0.75)


def test_search(capsys, monkeypatch):
    search.main(["--quick", "--repeats", "1", "--threads", "1"])
    said = capsys.readouterr().out
    assert (
        said.count("goal: search") + said.count("faiss-cpu not installed") == 2 and said.count("goal: all pairs") == 2
    )
    assert "nothing is to be quoted" in said
    monkeypatch.setattr(search, "nearest", lambda queries, bank, k: (queries[:, :k], None))
    with pytest.raises(AssertionError, match="not the same work"):
        search.main(["--quick", "--repeats", "1", "--threads", "1"])
