"""`--seeds N`: N runs in folders of their own, those unfinished are continued, and a table of them."""

import re

import pytest
from test_cli import SMALL, diptych, photos  # noqa: F401  (photos: a fixture)

from diptych.commands.demo import run_demos
from diptych.commands.pretraining import run_pretrainings
from diptych.runs.run import Run


def test_seeds_make_runs_and_their_table(photos, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "runs"
    words = ["pretrain", photos, "--recipe", "demo", "--out", out, *SMALL, "watch.knn=false", "pretrain.seed=4"]
    code, text, _ = diptych(capsys, *words, "--seeds", "1")
    assert code == 0 and "seed 4" in text
    log = (out / "seed-4" / "log.jsonl").read_bytes()
    last = Run(out / "seed-4").lines("step")[-1]
    code, text, _ = diptych(capsys, *words, "--seeds", "2")
    assert code == 0 and f"A  {out}, seeds 4, 5" in text and re.search(r"loss +[0-9.]+ \+- [0-9.]+", text)
    assert (out / "seed-4" / "log.jsonl").read_bytes() == log  # it had finished
    other = Run(out / "seed-5")
    assert other.finished and other.recipe["pretrain"]["seed"] == 5 and other.lines("step")[-1]["loss"] != last["loss"]
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "seed-4", "seed-5"]
    (out / "notes.txt").write_text("mine")
    code, _, err = diptych(capsys, *words, "--seeds", "2")
    assert code == 6 and "holds notes.txt, which is not a run of --seeds" in err
    code, _, err = diptych(capsys, *words[:5], out / "seed-4", *words[6:], "--seeds", "2")
    assert code == 6 and "holds a run: --seeds writes runs into" in err
    code, _, err = diptych(capsys, *words, "--seeds", "2", "--extend", "3")
    assert code == 2 and "--extend continues one run" in err


def test_seeds_of_the_demo_share_their_squares(tmp_path, monkeypatch):
    """All are judged on the test squares of the first; a run that has finished and was judged is left alone."""
    calls = []
    monkeypatch.setattr(
        "diptych.commands.demo.train_and_judge", lambda *given, **options: calls.append((given, options))
    )
    monkeypatch.setattr("diptych.commands.seeds.compare", lambda *folders, out: [folder.name for folder in folders])
    assert run_demos(tmp_path / "demo", 3, 2, False) == "['seed-3', 'seed-4']"
    assert [given[1:] for given, _ in calls] == [(3, 3), (4, 3)]
    assert all(options["record"] == {"squares": 3} and not options["resume"] for _, options in calls)


@pytest.mark.parametrize("seeds", ["0", "-1"])
def test_the_number_of_seeds_is_above_0(seeds, photos, capsys):  # noqa: F811
    assert diptych(capsys, "pretrain", photos, "--seeds", seeds)[0] == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_each_seed_is_continued_unless_it_is_replaced(overwrite, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "diptych.commands.pretraining.run_pretraining", lambda *given, **options: calls.append((given, options))
    )
    monkeypatch.setattr("diptych.commands.seeds.compare", lambda *folders, out: len(folders))
    options = {"overwrite": overwrite, "gpus": None, "extend": None, "start_from": None}
    assert run_pretrainings(3, "photos", ["pretrain.seed=7"], "demo", tmp_path / "out", **options) == "3"
    assert [given[1][-1] for given, _ in calls] == [f"pretrain.seed={seed}" for seed in (7, 8, 9)]
    assert [given[3].name for given, _ in calls] == ["seed-7", "seed-8", "seed-9"]
    assert all(options["resume"] is not overwrite and options["overwrite"] is overwrite for _, options in calls)
