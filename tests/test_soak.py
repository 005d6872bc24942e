"""The soak's plan comes from its seed alone, and three of its faults end as promised."""

import json

import pytest

from benchmarks.soak import PATTERN, differences, main, plan
from benchmarks.soak_faults import groups_for
from diptych.runs import checkpoints


def test_a_seed_makes_the_same_plan_again_and_another_one_another():
    assert plan(3, 30) == plan(3, 30)
    assert plan(3, 30) != plan(4, 30) and plan(3, 30)[:12] == plan(3, 12)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_fifty_faults_hold_every_kind_at_rising_steps(seed, processes):
    faults, groups = plan(seed, 50, processes), groups_for(processes)
    assert len(faults) == 50 and {fault.name for fault in faults} == {
        name for group in groups.values() for name in group
    }
    steps = [fault.step for fault in faults]
    assert steps == sorted(set(steps))
    for i, fault in enumerate(faults):
        assert fault.name in groups[fault.group] and fault.group == PATTERN[i % len(PATTERN)]
    resting = [i for i, fault in enumerate(faults) if fault.group == "rest"]
    assert all(faults[i - 1].group == "stop" for i in resting), "what is done between two processes follows one's end"


def finished(folder, weight: float = 1.0, loss: float = 2.0):
    """As much of a finished run as is compared."""
    import torch

    tensors = {"model": {"w": torch.full((3,), weight)}, "optimizer": {"m": torch.zeros(3)}}
    checkpoints.save(folder / "checkpoints", 5, tensors, {})
    for name in ("encoder", "untrained"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"same")
    lines = [{"event": "step", "step": k, "loss": loss, "elapsed_seconds": weight} for k in (1, 2)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_two_ends_are_told_apart(tmp_path):
    quiet = finished(tmp_path / "quiet")
    assert differences(quiet, finished(tmp_path / "same")) == []
    other = differences(quiet, finished(tmp_path / "weights", weight=1.0000001))
    assert other == ["checkpoints/step_0000005/model.safetensors"]
    other = finished(tmp_path / "loss", loss=2.0000001)
    assert len(differences(quiet, other)) == 1 and "log.jsonl" in differences(quiet, other)[0]
    (other / "encoder" / "model.safetensors").unlink()
    assert differences(quiet, other)[0] == "encoder/model.safetensors"


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven starts, on a machine that may be busy
@pytest.mark.parametrize("processes", ["1", "2"])
def test_three_faults_change_nothing(processes, capsys):
    assert main(["--quick", "--seed", "8", "--processes", processes]) == 0
    told = capsys.readouterr().out
    assert told.count("promised: ") == 3 and "equal the quiet run's" in told
