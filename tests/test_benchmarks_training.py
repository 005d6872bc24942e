"""The benchmarks of whole steps, of evaluation and of growth run without their peers, and check what they compare."""

import pytest
import torch

from benchmarks import evaluation, growth, measure, training


@pytest.fixture
def alone(monkeypatch):
    """A machine without the peers."""
    peers = {"lightly", "tensorflow", "keras", "scikit-learn"}
    real = measure.version_of
    monkeypatch.setattr(measure, "version_of", lambda name: "" if name in peers else real(name))


QUICK = ["--quick", "--threads", "1", "--repeats", "1"]


def test_training(alone, capsys):
    training.main([*QUICK, "--xla"])
    said = capsys.readouterr().out
    for rival in (training.KERAS, training.XLA):
        assert f"{rival}: not measured: tensorflow, keras not installed" in said
    assert said.count(f"{training.PLAIN}: not measured: lightly not installed") == 2
    assert said.count(training.OURS_32) == 3 and "pairs/s" in said


def test_the_first_step_of_a_turn_is_not_counted():
    taken = []
    assert len(training.timed(lambda: taken.append(1), 3, "cpu")) == 3
    assert len(taken) == 4


def test_ours_is_what_users_call(monkeypatch):
    """As many seconds as steps, of the loop's own log, and the weights move on from turn to turn."""
    asked = growth.tiny(growth_arguments(), 8)
    seen, real = [], training.diptych.pretrain

    def pretrain(method, photos, *args, **options):
        seen.append((len(photos), method, float(next(method.parameters()).detach().sum())))
        return real(method, photos, *args, **options)

    monkeypatch.setattr(training.diptych, "pretrain", pretrain, raising=False)
    run = training.ours(asked, training.pictures(8, 32), "bfloat16", "cpu")
    seconds = [*run(2), *run(1)]
    assert len(seconds) == 3 and min(seconds) > 0
    assert [count for count, *_ in seen] == [24, 16]
    assert seen[0][1] is seen[1][1] and seen[0][2] != seen[1][2]


def growth_arguments():
    return measure.parser("growth").parse_args(QUICK)


def test_evaluation(alone, capsys):
    evaluation.main(QUICK)
    said = capsys.readouterr().out
    assert said.count("scikit-learn: not measured: scikit-learn not installed") == 3
    assert all(name in said for name in (evaluation.LOOP, evaluation.BARE, "objective", "100.00% of our answers"))


def test_another_objective_is_not_the_same_work(monkeypatch):
    pytest.importorskip("sklearn")
    evaluation.probe(1e-2, growth_arguments())
    monkeypatch.setattr(evaluation, "sklearn_probe", lambda x, *_: (torch.zeros(x.shape[1], 10), torch.zeros(10), 1))
    with pytest.raises(AssertionError, match="not the same work"):
        evaluation.probe(1e-2, growth_arguments())


def test_other_neighbours_are_not_the_same_work(alone, monkeypatch):
    monkeypatch.setattr(evaluation, "loop", lambda train, labels, test: labels[: len(test)])
    with pytest.raises(AssertionError, match="not the same work"):
        evaluation.knn(growth_arguments())


@pytest.mark.slow
def test_growth(capsys):
    growth.main(QUICK)
    said = capsys.readouterr().out
    for what in (
        "time per pair, steps,",
        "memory per pair,",
        "largest tensor at 64",
        "time per image",
        "bytes a path",
        "cores busy",
    ):
        assert what in said, what


def test_growth_is_told():
    assert "0 %, reached" in growth.spread_of("cost", [100, 110], 5)
    assert "25 %, MISSED" in growth.spread_of("cost", [100, 80, 100], 5)


def test_the_largest_tensor_is_seen():
    with growth.Largest() as largest:
        (torch.ones(100, 1) @ torch.ones(1, 100)).sum()
    assert largest.bytes == 4 * 100**2
    with growth.Largest() as largest:
        growth.loss_step(8, 64, "cpu")()
    assert 4 * 8 * 64 <= largest.bytes < 4 * 64**2  # no (D, D)


def test_what_a_forward_keeps():
    one, two = (growth.saved_bytes(growth.tiny(growth_arguments(), batch), "cpu") for batch in (8, 16))
    assert one > 8 * 2 * 3 * 32 * 32  # at least the views
    assert 1.8 < two / one < 2.2
