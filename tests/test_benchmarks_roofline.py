"""The roofline counts what an operation needs at least, and every row of its table is of the step."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks import roofline


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"), [(8, 3, 1, 1), (8, 3, 2, 1), (5, 1, 2, 0), (2, 3, 1, 1), (9, 5, 3, 2)]
)
def test_taps_in_the_padding_are_not_counted(side, kernel, stride, padding):
    """The sum of a convolution of ones by ones counts its multiplications."""
    ones, taps = torch.ones(1, 1, side, side), torch.ones(1, 1, kernel, kernel)
    assert roofline.taps(side, kernel, stride, padding) ** 2 == F.conv2d(ones, taps, None, stride, padding).sum()


def test_the_work_of_operations_is_counted():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        x, weight = torch.ones(4, 5, 8, 8, requires_grad=True), torch.ones(6, 5, 3, 3, requires_grad=True)
        F.conv2d(x, weight, None, 1, 1).sum().backward()
        torch.mm(torch.ones(4, 5), torch.ones(5, 6))
        torch.nn.BatchNorm2d(5)(x)
    work = {
        event.name: roofline.work_of(event.name, event.input_shapes, event.concrete_inputs) for event in seen.events()
    }
    forward = 2 * 4 * 5 * 6 * 22**2
    assert work["aten::mkldnn_convolution"] == (forward, 0) and work["aten::convolution_backward"] == (2 * forward, 0)
    assert work["aten::mm"] == (2 * 4 * 5 * 6, 0) and work["aten::native_batch_norm"] == (0, 8 * 4 * 5 * 64)
    assert work["aten::empty"] == (0, 0)


@pytest.mark.slow
def test_a_step_is_divided(capsys):
    small = ["encoder={name: resnet18, stem: small-stride2, channels: [8, 8, 8, 8]}", "method.projector=[16, 16, 16]"]
    roofline.main(["--batch", "8", "--repeats", "1", "--override", *small])
    lines = capsys.readouterr().out.splitlines()
    shares = [float(line[51:58].strip().rstrip("%")) for line in lines if line.startswith(("aten::", "all others"))]
    assert "a step" in "".join(lines) and lines[-1].startswith("all convolutions: ") and len(shares) > 5
