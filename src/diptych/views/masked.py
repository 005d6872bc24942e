"""Operations in the form for a GPU: few launches, and no shape that depends on a draw. M rows of images (M, 3, H, W) in [0, 1].

Each operation here is the twin of one of `OPERATIONS`, to 1e-5. It computes all rows and selects by mask, where the other
selects rows first, which is less work on a CPU. What was drawn comes as columns of one float32 tensor, packed on the CPU.
"""

from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.random_at import Draw
from diptych.views import geometry
from diptych.views.resample import TABLE_BYTES, Axis, Taps, box_taps, tap_table


class Twin:
    """How one kind of operation is packed and applied.

    neutral: the columns of a row that it does not change; None where each view must have the operation.
    """

    neutral: ClassVar[tuple[float, ...] | None] = None
    columns = 0  # of an operation without a neutral row
    includes_flip = False  # whether it takes `mirrored` (N,) in its draw: rows that a later flip turns

    @property
    def width(self) -> int:
        return len(self.neutral or ()) or self.columns

    def key(self, step: Any) -> tuple:
        """The settings that two views must share for one pass over both; all others are in the draws."""
        return ()

    def pack(self, step: Any, draw: Draw, height: int, width: int) -> list[Tensor]:
        """The columns, (n,) each or (n, k), of images of this size; on the CPU."""
        return []

    def run(self, step: Any, images: Tensor, columns: Tensor) -> Tensor:
        """New images; columns (M, k) float32 on their device."""
        raise NotImplementedError


@cache
def constant(numbers: tuple, device: torch.device) -> Tensor:
    """Numbers on a device, uploaded once."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)


@cache
def table(axis: Axis, device: torch.device) -> Taps:
    with torch.inference_mode(False):
        return tap_table(axis, device)


def select(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Row by row, where the column `mask` (M,) is 1 or 0. One launch, and exact: both are finite."""
    return torch.lerp(no, yes, mask[:, None, None, None])


def resampling(axis: Axis, start: Tensor, row: Tensor) -> Tensor:
    """(..., S, P): matrices that resample boxes of an axis, as `box_taps`. row: length - 1, plus P where mirrored; int64."""
    if 24 * axis.pixels * axis.size * axis.taps > TABLE_BYTES:
        length = row.remainder(axis.pixels) + 1
        numbers = (number.reshape(-1) for number in (start.float(), length.float(), row >= axis.pixels))
        begin, count, mirrored = numbers
        line, weight = (taps.view(*row.shape, *taps.shape[1:]) for taps in box_taps(begin, count, axis, mirrored))
    else:
        lines, weights = table(axis, start.device)
        line, weight = lines[row].add_(start[..., None, None]), weights[row]
    matrix = weight.new_zeros(*row.shape, axis.size, axis.pixels)
    return matrix.scatter_add_(-1, line, weight)


def cut(images: Tensor, columns: Tensor, across: Axis, down: Axis) -> Tensor:
    """Crops of `images` (M, 3, H, W), resized; columns (M, 4): left, its row of `resampling`, top, its row."""
    index = columns.long()
    if across == down:
        to_columns, to_rows = resampling(down, index[:, ::2], index[:, 1::2]).unbind(1)
    else:
        to_columns = resampling(across, index[:, 0], index[:, 1])
        to_rows = resampling(down, index[:, 2], index[:, 3])
    rows, channels, height, width = images.shape
    wide = torch.bmm(images.view(rows, channels * height, width), to_columns.mT)
    # A clamp after each axis, as bicubic needs it; the first leaves the channels beside the columns, the second puts them back.
    wide = clamped(wide.view(rows, channels, height, across.size).transpose(1, 2))
    tall = torch.bmm(to_rows, wide.view(rows, height, channels * across.size))
    return clamped(tall.view(rows, down.size, channels, across.size).transpose(1, 2))


def clamped(images: Tensor) -> Tensor:
    """A contiguous copy, in [0, 1]."""
    return torch.clamp(images, 0, 1, out=images.new_empty(images.shape))


class ResizedCrop(Twin):
    columns, includes_flip = 4, True

    def key(self, step: geometry.RandomResizedCrop) -> tuple:
        return step.size, step.interpolation, step.antialias

    def pack(self, step: geometry.RandomResizedCrop, draw: Draw, height: int, width: int) -> list[Tensor]:
        top, left, high, wide = step.boxes(draw, height, width).unbind(1)
        return [left, wide - 1 + width * draw.get("mirrored", torch.tensor(0)), top, high - 1]

    def run(self, step: geometry.RandomResizedCrop, images: Tensor, columns: Tensor) -> Tensor:
        axes = (Axis(pixels, step.size, step.interpolation, step.antialias) for pixels in images.shape[:1:-1])
        return cut(images, columns, *axes)


class Crop(Twin):
    columns = 2

    def key(self, step: geometry.RandomCrop) -> tuple:
        return step.size, step.padding

    def pack(self, step: geometry.RandomCrop, draw: Draw, height: int, width: int) -> list[Tensor]:
        return list(step.corners(draw, height, width).unbind(1))

    def run(self, step: geometry.RandomCrop, images: Tensor, columns: Tensor) -> Tensor:
        rows, channels = images.shape[:2]
        top, left = columns.long().T[..., None, None]
        row, channel, pixel = (torch.arange(k, device=images.device) for k in (rows, channels, step.size))
        down, across = top[..., None] + pixel[:, None], left[..., None] + pixel
        padded = F.pad(images, (step.padding,) * 4)
        return padded[row[:, None, None, None], channel[:, None, None], down, across]


class Resize(Twin):
    def key(self, step: geometry.Resize) -> tuple:
        return step.size, step.interpolation, step.antialias

    def run(self, step: geometry.Resize, images: Tensor, columns: Tensor) -> Tensor:
        return step.apply(images, {})


class Flip(Twin):
    neutral = (0.0,)

    def __init__(self, dimension: int):
        self.dimension = dimension

    def pack(self, step: Any, draw: Draw, height: int, width: int) -> list[Tensor]:
        return [draw["chosen"]]

    def run(self, step: Any, images: Tensor, columns: Tensor) -> Tensor:
        return select(columns[:, 0], images.flip(self.dimension), images)


TWINS: dict[type, Twin] = {
    geometry.RandomResizedCrop: ResizedCrop(),
    geometry.RandomCrop: Crop(),
    geometry.Resize: Resize(),
    geometry.HorizontalFlip: Flip(3),
    geometry.VerticalFlip: Flip(2),
}
