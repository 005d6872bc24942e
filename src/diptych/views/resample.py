"""Resampling with separate weights for each image. N images of C channels, H x W pixels; views S x S; K taps.

Resampling computes each of the S output lines of an axis as a weighted sum of K input lines, its taps. A batch takes two
calls: a product with banded matrices for columns, and a weighted sum of rows, which are contiguous in memory, without
multiplications by zero. A horizontal flip reverses the taps of the columns and costs nothing.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

Interpolation = Literal["bilinear", "bicubic"]
RADIUS = {"bilinear": 1, "bicubic": 2}  # source pixels on each side that contribute to an output pixel when enlarging
TABLES, TABLE_BYTES = (
    4,
    32 * 2**20,
)  # tables of taps for all possible boxes of an axis: how many, and of which size at most

Taps = tuple[torch.Tensor, torch.Tensor]  # (N, S, K) each: input lines and their weights


class Axis(NamedTuple):
    """The resampling of an axis from `pixels` to `size` lines."""

    pixels: int
    size: int
    interpolation: Interpolation
    antialias: bool

    @property
    def widest(self) -> float:
        """The factor by which the kernel widens for a box of the full axis."""
        return max(1.0, self.pixels / self.size) if self.antialias else 1.0

    @property
    def taps(self) -> int:
        """As many as the widest possible box needs, so that no result depends on the boxes of other images."""
        return math.ceil(2 * RADIUS[self.interpolation] * self.widest)


def box_taps(start_N: torch.Tensor, length_N: torch.Tensor, axis: Axis, mirrored_N: torch.Tensor | None = None) -> Taps:
    """Taps that resample lines start .. start + length - 1 of an axis to all of its new lines.

    The weights are those of torch's `interpolate(align_corners=False)` on the cropped box, hence torchvision's. With
    antialias the kernel widens when shrinking, is cut off at the box and renormalised, and bicubic has a = -0.5, as in
    PIL's resize. Without antialias its width is constant, lines outside repeat the border, and a = -0.75.
    """
    device, radius = start_N.device, RADIUS[axis.interpolation]
    stretch_N1 = (length_N / axis.size)[:, None]
    centre_NS = (torch.arange(axis.size, device=device) + 0.5) * stretch_N1 - 0.5  # counted from the box's first line
    if mirrored_N is not None:
        centre_NS = torch.where(mirrored_N[:, None], centre_NS.flip(1), centre_NS)
    widening_N1 = stretch_N1.clamp(1, axis.widest)
    first_NS = (centre_NS - radius * widening_N1).floor_().add_(1)
    tap_K1 = torch.arange(axis.taps, device=device)[:, None]
    line_NKS = first_NS[:, None] + tap_K1
    distance_NKS = ((first_NS - centre_NS)[:, None] + tap_K1).div_(widening_N1[:, None])
    weight_NKS = kernel(distance_NKS, axis.interpolation, -0.5 if axis.antialias else -0.75)
    inside_NKS = line_NKS.clamp_min(0).minimum((length_N - 1)[:, None, None])
    if axis.antialias:
        weight_NKS.mul_(inside_NKS == line_NKS)
        weight_NKS.div_(weight_NKS.sum(1, keepdim=True))
    inside_NKS.add_(start_N[:, None, None])
    return inside_NKS.long().transpose(1, 2), weight_NKS.transpose(1, 2)


class WholeBoxTaps:
    """`box_taps` of boxes of whole pixels, from tables, as few lengths are possible. Keeps the tables of the last axes."""

    def __init__(self):
        self.tables: dict[tuple[Axis, torch.device], Taps] = {}

    def __reduce__(self) -> tuple:
        return WholeBoxTaps, ()  # copies, such as those in another process, build their own tables

    def __call__(
        self, start_N: torch.Tensor, length_N: torch.Tensor, axis: Axis, mirrored_N: torch.Tensor | None = None
    ) -> Taps:
        """start, length: int64."""
        if 24 * axis.pixels * axis.size * axis.taps > TABLE_BYTES:
            return box_taps(start_N.float(), length_N.float(), axis, mirrored_N)
        key = (axis, start_N.device)
        if key not in self.tables:
            if len(self.tables) >= TABLES:
                del self.tables[next(iter(self.tables))]
            with torch.inference_mode(False):  # the first caller may be in inference mode, later ones may train
                self.tables[key] = tap_table(*key)
        line, weight = self.tables[key]
        row_N = length_N - 1 if mirrored_N is None else length_N - 1 + axis.pixels * mirrored_N
        return line.index_select(0, row_N).add_(start_N[:, None, None]), weight.index_select(0, row_N)


def tap_table(axis: Axis, device: torch.device) -> Taps:
    """Taps of the boxes of 1, 2 ... `axis.pixels` pixels that start at line 0, then of the same boxes mirrored."""
    length = torch.arange(1, axis.pixels + 1, dtype=torch.float32, device=device).repeat(2)
    mirrored = torch.arange(2 * axis.pixels, device=device) >= axis.pixels
    line, weight = box_taps(torch.zeros_like(length), length, axis, mirrored)
    return line.contiguous(), weight.contiguous()


def kernel(distance: torch.Tensor, interpolation: Interpolation, a: float) -> torch.Tensor:
    """The kernel at `distance` source pixels: a triangle, or the cubic of Keys (1981) with its parameter a.

    Keys' two pieces, (a + 2) d^3 - (a + 3) d^2 + 1 up to 1 and a (d^3 - 5 d^2 + 8 d - 4) up to 2, are computed
    without a branch as a v^2 (1 - v) + u^2 (4 a + 3 - 2 u) with u = max(1 - d, 0), v = max(2 - d, 0).
    """
    d = distance.abs()
    u = (1 - d).clamp_min_(0)
    if interpolation == "bilinear":
        return u
    v = (2 - d).clamp_min_(0)
    return ((1 - v) * v * v).mul_(a).addcmul_(u * u, (4 * a + 3) - 2 * u)


def weigh_columns(images_NCHW: torch.Tensor, taps: Taps) -> torch.Tensor:
    """(N, C, H, S): each output column is the weighted sum of the input columns in the `taps` of its image."""
    n, channels, height, width = images_NCHW.shape
    line_NSK, weight_NSK = taps
    size = line_NSK.shape[1]
    matrix_NWS = weight_NSK.new_zeros(n, width, size)
    matrix_NWS.scatter_add_(1, line_NSK.transpose(1, 2), weight_NSK.transpose(1, 2))
    return torch.bmm(images_NCHW.reshape(n, channels * height, width), matrix_NWS).view(n, channels, height, size)


def weigh_rows(images_NCHW: torch.Tensor, taps: Taps) -> torch.Tensor:
    """(N, C, S, W): each output row is the weighted sum of the input rows in the `taps` of its image."""
    n, channels, height, width = images_NCHW.shape
    line_NSK, weight_NSK = taps
    shape = (n, channels, *line_NSK.shape[1:])
    if n == 0:
        return images_NCHW.new_empty(*shape[:3], width)
    first_row = height * torch.arange(n * channels, device=images_NCHW.device).view(n, channels, 1, 1)
    row = (line_NSK[:, None] + first_row).reshape(-1, shape[3])
    weight = weight_NSK[:, None].expand(shape).reshape(-1, shape[3])
    table = images_NCHW.reshape(-1, width)  # all rows of all channels of all images
    return F.embedding_bag(row, table, per_sample_weights=weight, mode="sum").view(*shape[:3], width)


def resample(images: torch.Tensor, rows: Taps, columns: Taps, clamp: bool = False) -> torch.Tensor:
    """(N, 3, H, W) -> float (N, 3, S, S); uint8 is scaled to [0, 1]. clamp: to [0, 1] after each axis, for bicubic."""
    if images.dtype == torch.uint8:
        lines, weights = columns
        images, columns = (
            images.float(),
            (lines, weights / 255),
        )  # dividing the weights is less work than dividing the images
    wide = weigh_columns(images, columns)
    wide = wide.clamp_(0, 1) if clamp else wide
    views = weigh_rows(wide, rows)
    return views.clamp_(0, 1) if clamp else views
