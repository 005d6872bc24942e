"""Operations on colours: jitter, grayscale, solarize, normalize. N images in [0, 1] of P = H * W pixels."""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch

from diptych.base.random_at import Draw
from diptych.views.operation import (
    MOST,
    Operation,
    cache_slices,
    check_probability,
    chosen,
    coins,
    is_number,
    require,
    uniform,
)

ADJUSTMENTS = (
    "brightness",
    "contrast",
    "saturation",
    "hue",
)  # numbered as in torchvision, which is also the fixed order
LUMA = (0.2989, 0.587, 0.114)  # of ITU-R 601-2, rounded as torchvision does
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4); the first is the fixed order


def gray(images: torch.Tensor) -> torch.Tensor:
    """The luma: (N, 3, ...) -> (N, ...)."""
    red, green, blue = images.unbind(1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def blend_(
    images_N3P: torch.Tensor,
    luma_3: torch.Tensor,
    factor_N11: torch.Tensor,
    to_mean_N11: torch.Tensor,
    to_gray_N11: torch.Tensor,
) -> torch.Tensor:
    """Brightness, contrast and saturation in one: x <- clamp(g + factor (x - g)), in place.

    g is black for brightness, the image's mean gray for contrast (to_mean = 1), the pixel's own gray for
    saturation (to_gray = 1). So one call can apply different operations to different images.
    """
    gray_N1P = torch.bmm(luma_3.expand(len(images_N3P), 1, 3), images_N3P)
    mean_N11 = gray_N1P.mean(2, keepdim=True).mul_(to_mean_N11)
    goal_N1P = gray_N1P.mul_(to_gray_N11).add_(mean_N11)
    return torch.lerp(goal_N1P, images_N3P, factor_N11, out=images_N3P).clamp_(0, 1)


def turn_hue_(images_N3P: torch.Tensor, hue_N: torch.Tensor) -> torch.Tensor:
    """Rotate HSV's hue by `hue` of a full circle, in place; V = max and V S = max - min do not change.

    On the hexagon of hues, in turns counted from red, 6 |h| = 1 + (g + b - r - min) / (max - min), with the
    sign of g - b. This does not depend on which channel is largest. For the way back, green is max up to 1/6 away
    from its hue 1/3 and falls to min at 1/3 away, that is min + (max - min) (2 - clamp(6 |h - 1/3|, 1, 2)). Blue
    is the same around 2/3. Red rises with the distance from 1/2.
    """
    red, green, blue = images_N3P.unbind(1)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    spread = torch.maximum(red, green)
    torch.maximum(spread, blue, out=spread).sub_(low)
    h = torch.add(green, blue).sub_(red)
    # From here on the channels are reused as memory: on a CPU new memory costs more than the arithmetic.
    bottom = torch.sub(low, spread, out=red)
    side = torch.sub(green, blue, out=green)
    spread.mul_(6).clamp_min_(1e-12)  # a gray pixel has no hue: any value is correct
    h.sub_(bottom).div_(spread).copysign_(side)
    h.add_(hue_N[:, None] + 1).frac_()
    top = low.add_(spread, alpha=1 / 3)
    for channel, centre in ((green, 1 / 3), (blue, 2 / 3)):
        wave = torch.sub(h, centre, out=channel).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(top, spread, wave, value=-1, out=channel)
    torch.addcmul(bottom, spread, h.sub_(1 / 2).abs_().clamp_(1 / 6, 1 / 3), out=red)
    return images_N3P.clamp_(0, 1)


@dataclass(eq=False)
class ColorJitter(Operation):
    """With probability p, apply torchvision's four colour operations, with its clamp to [0, 1] after each of them.

    brightness, contrast, saturation x: a factor U(max(0, 1 - x), 1 + x). hue x: a rotation by U(-x, x) of a circle.
    order: "random" draws one of the 24 orders for every image (torchvision: one per call); "fixed" is the order above.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0
    order: Literal["random", "fixed"] = "random"
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("color_jitter", self.p)
        for key in ADJUSTMENTS:
            value, most = getattr(self, key), 0.5 if key == "hue" else MOST
            allowed = "0 to 0.5 of a turn" if key == "hue" else "0 or more"
            ok = is_number(value) and 0 <= value <= most
            require(ok, f"color_jitter: {key} is {value!r}; give {allowed}")
        known = self.order in ("random", "fixed")
        require(known, f"color_jitter: order is {self.order!r}; choose 'random' or 'fixed'")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        """`chosen` (n,), ADJUSTMENTS by name (n,), and `order` (n, 4): their numbers in the order of application."""
        draw = {"chosen": coins(n, self.p, rng)}
        for key in ADJUSTMENTS[:HUE]:
            strength = getattr(self, key)
            draw[key] = uniform(n, max(0.0, 1.0 - strength), 1.0 + strength, rng)
        draw["hue"] = uniform(n, -self.hue, self.hue, rng)
        which = torch.randint(len(ORDERS), (n,), generator=rng)
        draw["order"] = ORDERS[which if self.order == "random" else torch.zeros_like(which)]
        return draw

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Images are sorted by the position of hue in their orders. All hues are rotated together, and slices are blended
        before and after. This takes seven calls for 24 orders, on any device. A CPU takes as many images at a time as
        fit into its caches.
        """
        rows = draw["chosen"].nonzero().squeeze(1)  # indices are computed on the CPU, where the draw is
        hue_position = (draw["order"][rows] == HUE).int().argmax(1)
        rows = rows[hue_position.argsort(stable=True)]
        turned = (
            torch.bincount(hue_position, minlength=4).cumsum(0).tolist()
        )  # [k]: images with hue at position k or earlier
        order = draw["order"][rows]
        factor = torch.stack([draw[key][rows] for key in ADJUSTMENTS], 1).gather(1, order)
        to_mean, to_gray = ((order == number).to(factor.dtype) for number in (CONTRAST, SATURATION))
        blend_43N11 = torch.stack((factor, to_mean, to_gray)).permute(2, 0, 1).contiguous()[..., None, None]
        on_cpu = (rows, draw["hue"][rows], blend_43N11, torch.tensor(LUMA))
        index, hue, blend_43N11, luma_3 = (tensor.to(images.device, non_blocking=True) for tensor in on_cpu)
        for part in cache_slices(images, len(rows)):
            jittered = images.index_select(0, index[part]).flatten(2)
            turned_of_part = [min(max(count - part.start, 0), len(jittered)) for count in turned]
            self._jitter_(jittered, hue[part], blend_43N11[:, :, part], luma_3, turned_of_part)
            images.index_copy_(0, index[part], jittered.view(-1, *images.shape[1:]))
        return images

    def _jitter_(
        self,
        images_N3P: torch.Tensor,
        hue_N: torch.Tensor,
        blend_43N11: torch.Tensor,
        luma_3: torch.Tensor,
        turned: list[int],
    ) -> None:
        """Jitter images that are sorted by the position of hue. `turned`[k]: how many have hue at position k or earlier."""
        before = [(k, slice(turned[k], None)) for k in (0, 1, 2) if turned[k] < len(images_N3P)]
        after = [(k, slice(turned[k - 1])) for k in (1, 2, 3) if turned[k - 1] > 0]
        for k, part in before:
            blend_(images_N3P[part], luma_3, *blend_43N11[k, :, part])
        if self.hue > 0:
            turn_hue_(images_N3P, hue_N)
        for k, part in after:
            blend_(images_N3P[part], luma_3, *blend_43N11[k, :, part])

    def __str__(self) -> str:
        strengths = ", ".join(f"{key} {getattr(self, key):g}" for key in ADJUSTMENTS)
        order = "an order drawn per image" if self.order == "random" else "this order"
        return f"{self.p:.0%}: {strengths}, in {order}"


@dataclass(eq=False)
class Grayscale(Operation):
    """With probability p, replace all three channels by the pixel's gray."""

    p: float = 0.2
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("grayscale", self.p)

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        some = images.index_select(0, index)
        return images.index_copy_(0, index, some.copy_(gray(some)[:, None]))

    def __str__(self) -> str:
        return f"{self.p:.0%}: grayscale"


@dataclass(eq=False)
class Solarize(Operation):
    """With probability p, replace values x of at least `threshold` by 1 - x. 0.5 corresponds to PIL's 128 of 255."""

    p: float = 0.2
    threshold: float = 0.5
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("solarize", self.p)
        ok = is_number(self.threshold) and 0 <= self.threshold <= 1
        require(ok, f"solarize: threshold is {self.threshold!r}; give a value from 0 to 1")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        some = images.index_select(0, index)
        bright = some.clone().ge_(self.threshold)  # 1.0 or 0.0; torch.where takes ten times as long on a CPU
        some.addcmul_(bright, torch.rsub(some, 1, alpha=2))
        return images.index_copy_(0, index, some)

    def __str__(self) -> str:
        return f"{self.p:.0%}: solarize from {self.threshold:g}"


@dataclass(eq=False)
class Normalize(Operation):
    """(x - mean) / std, per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    commutes_with_flip = True

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            value = getattr(self, key)
            ok = isinstance(value, list | tuple) and len(value) == 3 and all(is_number(v) for v in value)
            require(ok, f"normalize: {key} is {value!r}; give three numbers: red, green, blue")
            setattr(self, key, tuple(float(v) for v in value))
        require(min(self.std) >= 1e-6, f"normalize: std is {list(self.std)}; give three numbers of at least 1e-6")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (self.mean, self.std))
        scale, shift = (v.to(images.device, images.dtype, non_blocking=True) for v in (1 / std, -mean / std))
        return images.mul_(scale).add_(shift)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"normalize by mean {mean} and standard deviation {std}"
