"""The operations of Keras' two examples, as their programs execute them. N images in [0, 1] of P = H * W pixels.

Barlow Twins (A. Eranti, 2021) calls tf.image, SimSiam (S. Paul, 2021 and 2023) Keras 3 and keras-cv 0.9. Their
flips and their grayscale are the plain operations. docs/recipes.md lists where a program differs from its text.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from diptych.base.errors import RecipeError
from diptych.base.random_at import Draw, random_at
from diptych.views.blur import GaussianBlur
from diptych.views.operation import (
    Operation,
    by_cache_slices,
    check_pixels,
    check_probability,
    check_range,
    chosen,
    coins,
    is_number,
    require,
    uniform,
)
from diptych.views.resample import Axis, WholeBoxTaps, resample


@dataclass(eq=False)
class KerasCrop(Operation):
    """A random square of the image, resized to `size` x `size`. Its side is drawn from the integers in `sides`, in pixels.

    tf.image.resize of TensorFlow 2: bilinear between pixel centres, no antialias.
    """

    size: int = 32
    sides: tuple[int, int] = (24, 31)
    takes_bytes = True

    def __post_init__(self) -> None:
        check_pixels("keras_crop", "size", self.size, 1)
        pair = isinstance(self.sides, list | tuple) and len(self.sides) == 2
        require(pair, f"keras_crop: sides is {self.sides!r}; give the smallest and the largest, in pixels")
        smallest, largest = self.sides
        check_pixels("keras_crop", "sides", smallest, 1)
        check_pixels("keras_crop", "sides", largest, smallest)
        self.sides = smallest, largest
        self._taps = WholeBoxTaps()

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """`side` (n,) in pixels; `top`, `left` (n,), uniform: the position as a share of the possible range."""
        smallest, largest = self.sides
        side = torch.randint(smallest, largest + 1, (n,), generator=rng)
        top, left = torch.rand(n, 2, generator=rng).unbind(1)
        return {"side": side, "top": top, "left": left}

    def boxes(self, draw: Draw, height: int, width: int) -> torch.Tensor:
        """(N, 3) int64 on the CPU: top, left and side of each square in a `height` x `width` image."""
        if max(self.sides) > min(height, width):
            raise RecipeError(f"keras_crop: sides {list(self.sides)} do not fit {height} x {width} images")
        side = draw["side"]
        top, left = draw["top"].double() * (height - side + 1), draw["left"].double() * (width - side + 1)
        return torch.stack((top.long(), left.long(), side), 1)

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        height, width = images.shape[2:]
        top_N, left_N, side_N = self.boxes(draw, height, width).T.to(images.device, non_blocking=True)
        rows, columns = (
            self._taps(start_N, side_N, Axis(pixels, self.size, "bilinear", antialias=False))
            for start_N, pixels in ((top_N, height), (left_N, width))
        )
        return resample(images, rows, columns)

    def __str__(self) -> str:
        smallest, largest = self.sides
        return f"crop a square of {smallest} to {largest} pixels, resize to {self.size} x {self.size} (bilinear)"


def lighten_(
    images_N3P: torch.Tensor, brightness_N: torch.Tensor, contrast_N: torch.Tensor, clip: bool
) -> torch.Tensor:
    """x + brightness, then m + contrast (x - m), m the channel's mean. clip: to [0, 1] after each step. In place."""
    brighter_N3P = images_N3P.add_(brightness_N[:, None, None])
    brighter_N3P = brighter_N3P.clamp_(0, 1) if clip else brighter_N3P
    mean_N31 = brighter_N3P.mean(2, keepdim=True)
    lighter_N3P = torch.lerp(mean_N31, brighter_N3P, contrast_N[:, None, None], out=images_N3P)
    return lighter_N3P.clamp_(0, 1) if clip else lighter_N3P


@by_cache_slices
def saturate_and_turn_(images_N3P: torch.Tensor, saturation_N: torch.Tensor, hue_N: torch.Tensor) -> torch.Tensor:
    """Multiply HSV's saturation by a factor, up to 1, and rotate its hue by `hue` of a circle, in place. V does not change.

    Outside [0, 1] it follows tf.image: a pixel with V = max <= 0 becomes gray, and one with min < 0 < max has
    saturation (max - min) / max above 1, which is cut to 1, so its min becomes 0. Values above 1 are allowed.

    Hue is counted in sixths of a circle from red (see `colour.turn_hue_`). Red is the pixel's maximum up to one sixth
    away, its minimum from two sixths on, and linear in between. Green is the same around 2, blue around 4.
    """
    red, green, blue = images_N3P.unbind(1)
    high, low = images_N3P.amax(1), images_N3P.amin(1)
    spread = high - low
    sixths = ((green + blue - red - low) / spread.clamp_min(1e-12) + 1).copysign_(green - blue)
    sixths = (sixths + 6 * hue_N[:, None]).remainder_(6)
    chroma = torch.minimum(spread * saturation_N[:, None], high).clamp_min_(0)  # saturation times V
    bottom = high - chroma
    for channel, above_bottom in (
        (red, (sixths - 3).abs_().sub_(1)),
        (green, 2 - (sixths - 2).abs_()),
        (blue, 2 - (sixths - 4).abs_()),
    ):
        torch.addcmul(bottom, chroma, above_bottom.clamp_(0, 1), out=channel)
    return images_N3P


@dataclass(eq=False)
class KerasColorJitter(Operation):
    """With probability p, apply the four colour operations of tf.image or, with `clip`, of keras-cv, in this order.

    brightness b: adds U(-b, b). contrast: multiplies the distance from each channel's mean. saturation: multiplies HSV's
    saturation. Both factors are U(low, high); with `saturation_odds` the number is a share f and the factor f / (1 - f).
    hue h: a rotation by U(-h, h) of a circle. clip: to [0, 1] after brightness, after contrast and at the end; tf.image
    does not clip.
    """

    brightness: float = 0.8
    contrast: tuple[float, float] = (0.4, 1.6)
    saturation: tuple[float, float] = (0.4, 1.6)
    saturation_odds: bool = False
    hue: float = 0.2
    clip: bool = False
    p: float = 0.8
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("keras_color_jitter", self.p)
        ok = is_number(self.brightness) and self.brightness >= 0
        require(ok, f"keras_color_jitter: brightness is {self.brightness!r}; give 0 or more")
        ok = is_number(self.hue) and 0 <= self.hue <= 0.5
        require(ok, f"keras_color_jitter: hue is {self.hue!r}; give 0 to 0.5 of a turn")
        self.contrast = check_range("keras_color_jitter", "contrast", self.contrast, 0)
        self.saturation = check_range("keras_color_jitter", "saturation", self.saturation, 0)
        odds = self.saturation_odds and self.saturation[1] >= 1
        require(not odds, f"keras_color_jitter: saturation is {self.saturation}; a share for odds is below 1")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """`chosen`, summands (brightness, hue) and factors (contrast, saturation), each (n,)."""
        draw = {"chosen": coins(n, self.p, rng), "brightness": uniform(n, -self.brightness, self.brightness, rng)}
        draw["contrast"], draw["saturation"] = uniform(n, *self.contrast, rng), uniform(n, *self.saturation, rng)
        if self.saturation_odds:
            draw["saturation"] = draw["saturation"] / (1 - draw["saturation"])
        draw["hue"] = uniform(n, -self.hue, self.hue, rng)
        return draw

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index, keys = chosen(draw, images.device), ("brightness", "contrast", "saturation", "hue")
        numbers = (draw[key][draw["chosen"]].to(images.device, non_blocking=True) for key in keys)
        brightness, contrast, saturation, hue = numbers
        some = images.index_select(0, index).flatten(2)
        some = saturate_and_turn_(lighten_(some, brightness, contrast, self.clip), saturation, hue)
        some = some.clamp_(0, 1) if self.clip else some
        return images.index_copy_(0, index, some.view(-1, *images.shape[1:]))

    def __str__(self) -> str:
        contrast, saturation = (f"{low:g} to {high:g}" for low, high in (self.contrast, self.saturation))
        factor = f"f / (1 - f) with f {saturation}" if self.saturation_odds else f"times {saturation}"
        return (
            f"{self.p:.0%}: brightness +-{self.brightness:g}, contrast times {contrast}, saturation {factor}, "
            f"hue +-{self.hue:g}, in this order, {'clipped' if self.clip else 'not clipped'}"
        )


@dataclass(eq=False)
class KerasBlur(Operation):
    """With probability p, blur by a Gaussian of 3 x 3 pixels, with one sigma for all images of a run, drawn from `seed`.

    The program calls np.random.random() while TensorFlow traces it, so sigma is drawn once instead of once per image.
    """

    p: float = 0.2
    seed: int = 0
    commutes_with_flip = True

    def __post_init__(self) -> None:
        is_integer = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        require(is_integer, f"keras_blur: seed is {self.seed!r}; give a whole number")
        check_probability("keras_blur", self.p)
        self.sigma = 1 - torch.rand((), generator=random_at(self.seed, "keras_blur")).item()  # U(0, 1), never 0
        self._blur = GaussianBlur(self.p, (self.sigma, self.sigma), kernel=3)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return self._blur.sample(n, rng)

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return self._blur.apply_(images, draw)

    def __str__(self) -> str:
        return f"{self.p:.0%}: Gaussian blur, sigma {self.sigma:.2f} pixels for all (seed {self.seed}), kernel 3 pixels"


@dataclass(eq=False)
class KerasSolarize(Operation):
    """With probability p, solarize, by one of two interpretations of Keras' Barlow Twins.

    "program": values of at least 10 become 255 - x. Images are in [0, 1], so nothing changes. "text": "flips abnormally
    low pixels to abnormally high pixels", so values below 10 / 255 become 1 - x.
    """

    p: float = 0.2
    reading: Literal["program", "text"] = "program"
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("keras_solarize", self.p)
        known = self.reading in ("program", "text")
        require(known, f"keras_solarize: reading is {self.reading!r}; choose 'program' or 'text'")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        return images.index_copy_(0, index, self.solarized(images.index_select(0, index)))

    def solarized(self, images: torch.Tensor) -> torch.Tensor:
        if self.reading == "program":
            return torch.where(images < 10, images, 255 - images)
        return torch.where(images < 10 / 255, 1 - images, images)

    def __str__(self) -> str:
        what = "from 10 up, which no value is" if self.reading == "program" else "below 10 / 255"
        return f"{self.p:.0%}: solarize {what}"


@dataclass(eq=False)
class KerasClip(Operation):
    """Clip values to [0, 1]: the last step of Barlow Twins, whose other steps do not clip."""

    commutes_with_flip = True

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        return images.clamp_(0, 1)

    def __str__(self) -> str:
        return "clip to 0 to 1"


KERAS_OPERATIONS = {
    "keras_crop": KerasCrop,
    "keras_color_jitter": KerasColorJitter,
    "keras_blur": KerasBlur,
    "keras_solarize": KerasSolarize,
    "keras_clip": KerasClip,
}
