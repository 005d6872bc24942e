"""The twins of the operations of Keras' two examples, see `masked`."""

from functools import cache

import torch
from torch import Tensor

from diptych.base.random_at import Draw
from diptych.views import keras
from diptych.views.blur import gaussian_taps
from diptych.views.masked import Twin, cut, select
from diptych.views.resample import Axis


class KerasCrop(Twin):
    columns, includes_flip = 4, True

    def key(self, step: keras.KerasCrop) -> tuple:
        return (step.size,)

    def pack(self, step: keras.KerasCrop, draw: Draw, height: int, width: int) -> list[Tensor]:
        top, left, side = step.boxes(draw, height, width).unbind(1)
        return [left, side - 1 + width * draw.get("mirrored", torch.tensor(0)), top, side - 1]

    def run(self, step: keras.KerasCrop, images: Tensor, columns: Tensor) -> Tensor:
        axes = (Axis(pixels, step.size, "bilinear", antialias=False) for pixels in images.shape[:1:-1])
        return cut(images, columns, *axes)


@cache
def blur_matrix(sigma: float, pixels: int, device: torch.device) -> Tensor:
    """(P, P): the blur of an axis, on a device; computed on the CPU once."""
    with torch.inference_mode(False):
        line, weight = gaussian_taps(torch.tensor([sigma]), 3, pixels)
        return torch.zeros(pixels, pixels).scatter_add_(1, line[0], weight[0]).to(device)


class KerasBlur(Twin):
    neutral = (0.0,)

    def key(self, step: keras.KerasBlur) -> tuple:
        return (step.sigma,)

    def pack(self, step: keras.KerasBlur, draw: Draw, height: int, width: int) -> list[Tensor]:
        return [draw["chosen"]]

    def run(self, step: keras.KerasBlur, images: Tensor, columns: Tensor) -> Tensor:
        rows, channels, height, width = images.shape
        step._blur.taps(height, width)  # refuses images that are too small
        down, across = (blur_matrix(step.sigma, pixels, images.device) for pixels in (height, width))
        wide = images.reshape(-1, width) @ across.T
        blurred = torch.bmm(down.expand(rows * channels, height, height), wide.view(-1, height, width))
        return select(columns[:, 0], blurred.view(images.shape), images)


class KerasJitter(Twin):
    KEYS = ("chosen", "brightness", "contrast", "saturation", "hue")
    neutral = (0.0, 0.0, 1.0, 1.0, 0.0)

    def key(self, step: keras.KerasColorJitter) -> tuple:
        return (step.clip,)

    def pack(self, step: keras.KerasColorJitter, draw: Draw, height: int, width: int) -> list[Tensor]:
        return [draw[key] for key in self.KEYS]

    def run(self, step: keras.KerasColorJitter, images: Tensor, columns: Tensor) -> Tensor:
        some = images.flatten(2).clone()
        chosen, brightness, contrast, saturation, hue = columns.unbind(1)
        some = keras.lighten_(some, brightness, contrast, step.clip)
        some = keras.saturate_and_turn_(some, saturation, hue)
        some = some.clamp_(0, 1) if step.clip else some
        return select(chosen, some.view(images.shape), images)


class KerasSolarize(Twin):
    neutral = (0.0,)

    def key(self, step: keras.KerasSolarize) -> tuple:
        return (step.reading,)

    def pack(self, step: keras.KerasSolarize, draw: Draw, height: int, width: int) -> list[Tensor]:
        return [draw["chosen"]]

    def run(self, step: keras.KerasSolarize, images: Tensor, columns: Tensor) -> Tensor:
        return select(columns[:, 0], step.solarized(images), images)


class KerasClip(Twin):
    def run(self, step: keras.KerasClip, images: Tensor, columns: Tensor) -> Tensor:
        return images.clamp(0, 1)


KERAS_TWINS: dict[type, Twin] = {
    keras.KerasCrop: KerasCrop(),
    keras.KerasColorJitter: KerasJitter(),
    keras.KerasBlur: KerasBlur(),
    keras.KerasSolarize: KerasSolarize(),
    keras.KerasClip: KerasClip(),
}
