"""The leaderboard: a row is a run folder, what is done is not done again, and its table says what the numbers are."""

import json

import numpy as np
import pytest

import diptych
from benchmarks import leaderboard, method_costs
from benchmarks.backgrounds import backgrounds, cut
from benchmarks.leaderboard_table import interval, markdown, table
from diptych.runs.run import Run


def row(name: str, seed: int, method: str, linear: float, **more) -> dict:
    cost = {"verdict": "UNPROVEN", "epochs": 2.0, "seconds_per_epoch": 3.0, "peak_megabytes": 400.0}
    return (
        {"set": name, "seed": seed, "minutes": 1.0, "subjects": {method: {"linear": linear, "knn": linear - 5}}}
        | cost
        | more
    )


def test_means_intervals_and_ranks():
    rows = [row(name, seed, method, linear + seed) for name in ("a", "b") for seed in (0, 1, 2)
            for method, linear in (("byol", 40.0), ("swav", 30.0 if name == "a" else 50.0), ("dino", 20.0))]  # fmt: skip
    rows.append({"set": "a", "seed": 0, "minutes": 1.0, "subjects": {"chance": {"linear": 10.0, "knn": 10.0}}})
    text = table(rows)
    first = text.splitlines()
    assert [line.split()[0] for line in first[1:5]] == ["byol", "swav", "dino", "chance"]
    assert "41.0 +- 2.5" in first[1] and "36.0 +- 2.5" in first[1] and "UNPROVEN" in first[1]  # 4.303 / sqrt(3)
    assert first[4].split() == ["chance", "10.0", "10.0", "1"]
    ranked = {line.split()[0]: line.split()[1] for line in text.split("mean rank")[1].splitlines()[1:4]}
    assert ranked == {"byol": "1.5", "swav": "1.5", "dino": "3.0"}
    assert "cannot" in text and interval([3.0]) == "3.0" and table([]) == "no row is done yet"


def test_budgets_are_apart():
    rows = [row("a", seed, "byol", 40.0 + seed, minutes=minutes) for seed in (0, 1) for minutes in (2.0, 15.0)]
    text = table(rows)
    assert "a, 2 minutes of one core" in text and "a, 15 minutes of one core" in text and "40.5 +- 6.4" in text
    first, second = markdown(rows).split("\n\n")
    assert first.startswith("| 2 minutes | a: linear | kNN | mean rank |") and second.startswith("| 15 minutes |")
    assert first.splitlines()[2] == "| BYOL | 40.5 ± 6.4 | 35.5 ± 6.4 | 1.0 | 3 | 400 |"


def test_a_method_that_one_set_lacks_has_no_rank():
    rows = [row("a", 0, "byol", 1.0), row("b", 0, "byol", 1.0), row("a", 0, "swav", 2.0)]
    assert "swav" not in table(rows).split("mean rank")[1].split("\n\n")[0]


@pytest.fixture
def tiny(monkeypatch):
    """300 and 60 squares of 8 colours, a narrow network, and rows in this process."""
    rng = np.random.default_rng(0)

    def squares(count: int) -> diptych.data.images.Images:
        labels = np.arange(count) % 8
        colours = rng.integers(0, 256, (8, 1, 1, 3))
        pixels = np.clip(colours[labels] + rng.integers(-20, 20, (count, 32, 32, 3)), 0, 255).astype(np.uint8)
        return diptych.images(pixels, labels=labels)

    sets = squares(300), squares(60)
    monkeypatch.setitem(leaderboard.SETS, "demo", lambda arguments: sets)
    small = ("encoder.channels=[4, 4, 8, 8]", "pretrain.batch_size=32", "pretrain.precision=float32")
    task_of = leaderboard.task_of
    monkeypatch.setattr(leaderboard, "task_of", lambda *words: task_of(*words).__class__(
        **{**vars(task_of(*words)), "overrides": small}))  # fmt: skip
    monkeypatch.setattr(leaderboard, "in_a_process", lambda task, arguments, words: leaderboard.do(task, arguments))


@pytest.mark.slow
def test_rows_are_run_folders_and_done_once(tiny, tmp_path, capsys, monkeypatch):
    words = ["--sets", "demo", "--methods", "vicreg", "simclr", "--quick", "--runs", str(tmp_path / "runs")]
    leaderboard.main(words)
    text = capsys.readouterr().out
    for subject in ("vicreg", "simclr", "chance", "raw pixels", "untrained", "patch dictionary", "closed form"):
        assert f"  {subject} " in text, subject
    run = Run(tmp_path / "runs" / "demo-0.02min" / "vicreg-0")
    assert run.finished and run.recipe["method"]["name"] == "vicreg" and run.recipe["pretrain"]["seed"] == 0
    result = json.loads((tmp_path / "runs" / "demo-0.02min" / "vicreg-0.json").read_text())
    assert result["peak_megabytes"] > 50 and result["epochs"] > 0 and result["cpu_seconds"] > 0
    (tmp_path / "runs" / "demo-0.02min" / "simclr-0.json").unlink()
    done = []
    do = leaderboard.do
    monkeypatch.setattr(leaderboard, "do", lambda task, arguments: done.append(task.method) or do(task, arguments))
    leaderboard.main(words)
    assert done == ["simclr"], "and its run, which had finished, is only judged again"
    assert len(Run(tmp_path / "runs" / "demo-0.02min" / "simclr-0").lines("end")) == 1
    leaderboard.main([*words, "--table"])
    assert done == ["simclr"]


def test_a_set_without_its_source_is_a_line(tmp_path):
    with pytest.raises(SystemExit, match="needs --train SOURCE and --test SOURCE"):
        leaderboard.main(["--row", "cifar10", "byol", "0", "--runs", str(tmp_path)])


def test_backgrounds_are_cut_from_apart(tmp_path):
    """Training and test squares of a photograph share no pixel; a missing photograph is a line that names the packages."""
    columns = np.broadcast_to((np.arange(1000) // 4).astype(np.uint8)[None, :, None], (600, 1000, 3))
    shown = [np.unique(np.stack(cut(columns, "a", split, 40, 32))) for split in ("train", "test")]
    assert all(len(values) > 50 for values in shown)
    assert not np.intersect1d(*shown).size
    with pytest.raises(SystemExit, match="Aqua.jpg is missing: install mate-backgrounds"):
        backgrounds(tmp_path)


def test_costs_are_counted(capsys):
    method_costs.main(["--methods", "swav", "--one", "--quick", "--batch", "32"])
    row = json.loads(capsys.readouterr().out)
    assert row["views"] == 4 and len(row["seconds"]) == 1 and row["seconds"][0] > 0 and row["megabytes"] > 0
    assert 2e6 < row["parameters"] < 6e6
