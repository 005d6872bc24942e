"""What the contract promises to methods that nobody here wrote: names of their own, three views, a queue and a target network.

And to those of the package that have targets, queues, centres and prototypes, most of them in the slow tests.
"""

import own_process
import pytest
import torch
from own_methods import OWN, SIBLINGS, one_of_two, own_run
from test_distributed import run_two_processes
from tiny import SIGKILL, told, weights_of

from diptych.reporting.report import report
from diptych.runs import checkpoints
from diptych.runs.run import Run


def quick_for(*names: str) -> pytest.MarkDecorator:
    """All methods, the others in the slow tests."""
    rows = [pytest.param(name, marks=[] if name in names else [pytest.mark.slow]) for name in [*OWN, *SIBLINGS]]
    return pytest.mark.parametrize("name", rows)


every_method = quick_for(*OWN, "swav")
with_processes = quick_for("queue_and_target")  # the quick suite starts them for one method


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance, msg=name)


@with_processes
def test_it_is_killed_and_ends_bit_equal_with_a_report(name, tmp_path):
    assert own_process.run(own_run, name, str(tmp_path / "run"), 5) == -SIGKILL
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").name == "step_0000005"
    resumed, quiet = own_run(name, tmp_path / "run"), own_run(name, tmp_path / "quiet")
    ours, theirs = weights_of(resumed), weights_of(quiet)
    assert ours.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert told(resumed) == told(quiet)
    page = report(quiet).read_text("utf-8")
    assert "loss" in page and len(page) > 10_000


@every_method
def test_in_pieces_it_is_the_batch(name, tmp_path):
    """Pieces of 4 of 12 images, float64: the same weights, queue and target. Moving averages of statistics move once a piece.

    One epoch: groups of two rows magnify rounding up to thirtyfold a step.
    """
    if name == "moco":
        pytest.skip("its key network sees the images of a piece in another order: other groups share statistics")
    batch, pieces = (
        own_run(name, tmp_path / str(size), precision="float64", epochs=1, micro_batch=size) for size in (None, 4)
    )
    ours, theirs = (
        {key: value for key, value in weights_of(run).items() if "running" not in key and "tracked" not in key}
        for run in (pieces, batch)
    )
    close(ours, theirs, 1e-9)
    for ours, theirs in zip(pieces.lines("step"), batch.lines("step"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-9)


@with_processes
def test_in_two_processes_it_is_one(name, tmp_path):
    run_two_processes(tmp_path, one_of_two, name, str(tmp_path / "two"))
    one = own_run(name, tmp_path / "one", precision="float64", epochs=1)
    close(weights_of(Run(tmp_path / "two")), weights_of(one), 1e-8)  # groups of two rows magnify rounding step by step
    first = [run.lines("step")[0] for run in (one, Run(tmp_path / "two"))]
    assert first[1]["gradient_norm"] == pytest.approx(first[0]["gradient_norm"], rel=1e-12)
