"""The twins of operations on colours, and of blur, see `masked`. M rows of images (M, 3, H, W) in [0, 1], P = H * W pixels."""

import math
from functools import cache

import torch
from torch import Tensor

from diptych.base.random_at import Draw
from diptych.views import blur, colour
from diptych.views.masked import Twin, constant, select
from diptych.views.resample import resample

STAGES = (0, 1, 2, 1, 2, 3)  # positions in the order: the first three before hue is turned, the others after it


class Jitter(Twin):
    """Six products with a matrix of 4 x 4 for each image, whose fourth channel is 1, three before hue and three after it."""

    neutral = (*[1.0] * 6, *[0.0] * 12, 6.0)

    def key(self, step: colour.ColorJitter) -> tuple:
        return (step.hue > 0,)

    def pack(self, step: colour.ColorJitter, draw: Draw, height: int, width: int) -> list[Tensor]:
        """Of each stage its factor, 1 - factor for a goal of the pixel's gray and of the mean gray; hue in sixths, plus 6."""
        order = draw["order"][:, STAGES]
        position = (draw["order"] == colour.HUE).int().argmax(1, keepdim=True)
        stage = torch.tensor(STAGES)
        before = torch.tensor([True, True, True, False, False, False])
        used = torch.where(before, position > stage, position < stage) & draw["chosen"][:, None]
        factors = torch.stack([draw[key] for key in colour.ADJUSTMENTS], 1)
        factor = torch.where(used, factors.gather(1, order), 1.0)
        to_gray, to_mean = ((order == number) * (1 - factor) for number in (colour.SATURATION, colour.CONTRAST))
        return [factor, to_gray, to_mean, 6 + 6 * draw["hue"] * draw["chosen"]]

    def run(self, step: colour.ColorJitter, images: Tensor, columns: Tensor) -> Tensor:
        (rows, _, height, width), device = images.shape, images.device
        factor, to_gray, to_mean = columns[:, :18].view(rows, 3, 6, 1, 1).unbind(1)
        scale, luma, last = (constant(numbers, device) for numbers in MATRICES)
        matrices = torch.addcmul(last, factor, scale).addcmul_(to_gray, luma)  # (M, 6, 4, 4)
        x = images.new_ones(rows, 4, height * width)
        x[:, :3] = images.flatten(2)
        for stage in range(6):
            if stage == 3 and step.hue > 0:
                turn_hue_(x[:, :3], columns[:, 18:])
            gray = torch.mv(x.view(rows, -1), mean_gray(height * width, device))
            torch.mul(gray[:, None].expand(rows, 3), to_mean[:, stage, 0], out=matrices[:, stage, :3, 3])
            x = torch.bmm(matrices[:, stage], x).clamp_(0, 1)
        return x[:, :3].view(rows, 3, height, width)


MATRICES = (
    ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
    (*[(*colour.LUMA, 0.0)] * 3, (0.0, 0.0, 0.0, 0.0)),
    (*[(0.0, 0.0, 0.0, 0.0)] * 3, (0.0, 0.0, 0.0, 1.0)),
)
SIDES = ((-1.0, 1.0, 1.0), (0.0, 1.0, -1.0))  # of red, green and blue: g + b - r, and g - b
CENTRES, OFFSETS, SIGNS = ((3.0,), (2.0,), (4.0,)), ((-1.0,), (2.0,), (2.0,)), ((1.0,), (-1.0,), (-1.0,))


@cache
def mean_gray(pixels: int, device: torch.device) -> Tensor:
    """(4 P,): what the mean luma of (4, P) is a product with."""
    with torch.inference_mode(False):
        return constant((*colour.LUMA, 0.0), device).repeat_interleave(pixels) / pixels


def turn_hue_(x: Tensor, sixths: Tensor) -> None:
    """`colour.turn_hue_` of (M, 3, P) in place, for all channels at once; sixths (M, 1): of a circle, plus 6."""
    low, high = torch.aminmax(x, dim=1)
    across, side = torch.bmm(constant(SIDES, x.device).expand(len(x), 2, 3), x).unbind(1)
    spread = high - low
    hue = torch.addcdiv(constant((1.0,), x.device), across - low, spread.clamp_min(1e-12)).copysign_(side)
    hue.add_(sixths).fmod_(6)
    wave = (hue[:, None] - constant(CENTRES, x.device)).abs_().clamp_(1, 2)
    wave = torch.addcmul(constant(OFFSETS, x.device), constant(SIGNS, x.device), wave)
    torch.addcmul(low[:, None], spread[:, None], wave, out=x).clamp_(0, 1)


class Gray(Twin):
    neutral = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def pack(self, step: colour.Grayscale, draw: Draw, height: int, width: int) -> list[Tensor]:
        gray, same = torch.tensor(colour.LUMA * 3), torch.eye(3).flatten()
        return [torch.where(draw["chosen"][:, None], gray, same)]

    def run(self, step: colour.Grayscale, images: Tensor, columns: Tensor) -> Tensor:
        return torch.bmm(columns.view(-1, 3, 3), images.flatten(2)).view(images.shape)


class Solarize(Twin):
    """Of a row that is not chosen, the threshold is infinite."""

    neutral = (math.inf,)

    def pack(self, step: colour.Solarize, draw: Draw, height: int, width: int) -> list[Tensor]:
        return [torch.where(draw["chosen"], float(step.threshold), math.inf)]

    def run(self, step: colour.Solarize, images: Tensor, columns: Tensor) -> Tensor:
        return torch.where(images >= columns[:, :, None, None], 1 - images, images)


class Normalize(Twin):
    def key(self, step: colour.Normalize) -> tuple:
        return step.mean, step.std

    def run(self, step: colour.Normalize, images: Tensor, columns: Tensor) -> Tensor:
        pairs = list(zip(step.mean, step.std, strict=True))
        shift = constant(tuple(((-mean / std,),) for mean, std in pairs), images.device)
        scale = constant(tuple(((1 / std,),) for _, std in pairs), images.device)
        out = torch.empty(images.shape, device=images.device, memory_format=torch.channels_last)
        return torch.addcmul(shift, images, scale, out=out)


class Blur(Twin):
    neutral = (0.0, 1.0)

    def key(self, step: blur.GaussianBlur) -> tuple:
        return (step.kernel,)

    def pack(self, step: blur.GaussianBlur, draw: Draw, height: int, width: int) -> list[Tensor]:
        return [draw["chosen"], draw["sigma"]]

    def run(self, step: blur.GaussianBlur, images: Tensor, columns: Tensor) -> Tensor:
        height, width = images.shape[2:]
        kernel = step.taps(height, width)
        rows = blur.gaussian_taps(columns[:, 1], kernel, height)
        across = rows if width == height else blur.gaussian_taps(columns[:, 1], kernel, width)
        return select(columns[:, 0], resample(images, rows, across), images)


TWINS: dict[type, Twin] = {
    colour.ColorJitter: Jitter(),
    colour.Grayscale: Gray(),
    colour.Solarize: Solarize(),
    colour.Normalize: Normalize(),
    blur.GaussianBlur: Blur(),
}
