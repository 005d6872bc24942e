"""What colours a view has: jitter, grayscale, solarization, normalization. N images of shape (3, H, W) in [0, 1], P = H * W."""

import itertools
from dataclasses import dataclass
from numbers import Real

import torch

from diptych.views.operation import Draw, Operation, check_probability, chosen, coins, require, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbering, and its fixed order
ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4)


def gray(images: torch.Tensor) -> torch.Tensor:
    """Luma by ITU-R 601-2 with torchvision's weights: (N, 3, ...) -> (N, ...)."""
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend_(images_N3P: torch.Tensor, factor_N: torch.Tensor, to_mean_N: torch.Tensor, to_gray_N: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast and saturation are one formula, x <- clamp(g + factor (x - g)): g is black, or the image's mean gray
    (to_mean = 1), or the pixel's own gray (to_gray = 1). In place.
    """
    gray_NP = gray(images_N3P)
    mean_N1 = gray_NP.mean(1, keepdim=True).mul_(to_mean_N[:, None])
    target_N1P = gray_NP.mul_(to_gray_N[:, None]).add_(mean_N1)[:, None]
    return torch.lerp(target_N1P, images_N3P, factor_N[:, None, None], out=images_N3P).clamp_(0, 1)


def turn_hue_(images_N3P: torch.Tensor, hue_N: torch.Tensor) -> torch.Tensor:
    """Turns the hue of HSV by `hue` of a full circle, keeping V = max and V S = max - min. In place.

    On the hexagon of hues, in turns counted from red, 6 |h| = 1 + (g + b - r - min) / (max - min), with the sign of g - b:
    no question which channel is the largest, no gather. And back: green is max up to 1/6 from its own hue 1/3 and falls
    to min at 1/3 from it, so max - min times 2 - clamp(6 |h - 1/3|, 1, 2) above min; blue around 2/3; red away from 1/2.
    """
    red, green, blue = images_N3P.unbind(1)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    spread = torch.maximum(red, green)
    torch.maximum(spread, blue, out=spread).sub_(low)
    h = torch.add(green, blue).sub_(red)
    # from here on the three channels are working memory too: fresh memory costs a CPU more than the arithmetic
    bottom = torch.sub(low, spread, out=red)
    side = torch.sub(green, blue, out=green)
    spread.mul_(6).clamp_min_(1e-12)  # a gray pixel has none: any h will do
    h.sub_(bottom).div_(spread).copysign_(side)
    h.add_(hue_N[:, None] + 1).frac_()
    top = low.add_(spread, alpha=1 / 3)
    for channel, centre in ((green, 1 / 3), (blue, 2 / 3)):
        wave = torch.sub(h, centre, out=channel).abs_().clamp_(1 / 6, 1 / 3)
        torch.addcmul(top, spread, wave, value=-1, out=channel)
    torch.addcmul(bottom, spread, h.sub_(1 / 2).abs_().clamp_(1 / 6, 1 / 3), out=red)
    return images_N3P


@dataclass(eq=False)
class ColorJitter(Operation):
    """With probability p: brightness, contrast and saturation times U(max(0, 1 - x), 1 + x), hue turned by U(-x, x) of a circle,
    with torchvision's clamp to [0, 1] after each. `order="random"` draws one of the 24 orders for every image (torchvision: one
    per call); "fixed" is brightness, contrast, saturation, hue.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0
    order: str = "random"
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("color_jitter", self.p)
        for key in ("brightness", "contrast", "saturation"):
            value = getattr(self, key)
            require(isinstance(value, Real) and value >= 0, f"color_jitter: {key} is {value!r}; give 0 or more")
        ok = isinstance(self.hue, Real) and 0 <= self.hue <= 0.5
        require(ok, f"color_jitter: hue is {self.hue!r}; give 0 to 0.5 of a turn")
        ok = self.order in ("random", "fixed")
        require(ok, f"color_jitter: order is {self.order!r}; choose 'random' or 'fixed'")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        draw = {"chosen": coins(n, self.p, rng)}
        for key in ("brightness", "contrast", "saturation"):
            strength = getattr(self, key)
            draw[key] = uniform(n, max(0.0, 1 - strength), 1 + strength, rng)
        draw["hue"] = uniform(n, -self.hue, self.hue, rng)
        which = torch.randint(len(ORDERS), (n,), generator=rng)
        draw["order"] = ORDERS[which] if self.order == "random" else ORDERS[:1].expand(n, 4)
        return draw

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Images sorted by when their hue turns: hue runs once, and what precedes and follows it runs on slices."""
        rows = draw["chosen"].nonzero().squeeze(1)  # all of this bookkeeping is on the CPU, where the draw is
        when = (draw["order"][rows] == HUE).int().argmax(1)
        rows = rows[when.argsort(stable=True)]
        turned = torch.bincount(when, minlength=4).cumsum(0).tolist()  # [k]: images whose hue turns at place <= k
        order = draw["order"][rows]
        factor = torch.stack([draw[key][rows] for key in ("brightness", "contrast", "saturation", "hue")], 1).gather(1, order)
        place = torch.stack((factor, order == CONTRAST, order == SATURATION), 2).to(images.device, non_blocking=True)
        hue = draw["hue"][rows].to(images.device, non_blocking=True)
        index = rows.to(images.device, non_blocking=True)

        some = images.index_select(0, index).flatten(2)
        before = [(k, slice(turned[k], None)) for k in (0, 1, 2) if turned[k] < len(some)]
        after = [(k, slice(turned[k - 1])) for k in (1, 2, 3) if turned[k - 1] > 0]
        for k, part in before:
            blend_(some[part], *place[part, k].unbind(1))
        if self.hue > 0:
            turn_hue_(some, hue)
        for k, part in after:
            blend_(some[part], *place[part, k].unbind(1))
        return images.index_copy_(0, index, some.view(-1, *images.shape[1:]))

    def __str__(self) -> str:
        places = "in random order" if self.order == "random" else "in this order"
        return (
            f"{self.p:.0%}: brightness {self.brightness:g}, contrast {self.contrast:g}, saturation {self.saturation:g}, "
            f"hue {self.hue:g}, {places}"
        )


@dataclass(eq=False)
class Grayscale(Operation):
    """All three channels become the gray of the pixel, with probability p."""

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
    """Values from `threshold` up are inverted, x -> 1 - x, with probability p. 0.5 is PIL's 128: between 127/255 and 128/255."""

    p: float = 0.2
    threshold: float = 0.5
    commutes_with_flip = True

    def __post_init__(self) -> None:
        check_probability("solarize", self.p)
        ok = isinstance(self.threshold, Real) and 0 <= self.threshold <= 1
        require(ok, f"solarize: threshold is {self.threshold!r}; it lies in 0 to 1, as the images do")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {"chosen": coins(n, self.p, rng)}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        index = chosen(draw, images.device)
        some = images.index_select(0, index)
        bright = some.clone().ge_(self.threshold)  # 1.0 or 0.0: torch.where costs ten times this on a CPU
        some.addcmul_(bright, torch.rsub(some, 1, alpha=2))
        return images.index_copy_(0, index, some)

    def __str__(self) -> str:
        return f"{self.p:.0%}: solarize from {self.threshold:g}"


@dataclass(eq=False)
class Normalize(Operation):
    """(x - mean) / std, channel by channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    commutes_with_flip = True

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            value = getattr(self, key)
            ok = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, Real) for v in value)
            require(ok, f"normalize: {key} is {value!r}; give three numbers, red, green and blue")
            setattr(self, key, tuple(float(v) for v in value))
        require(min(self.std) > 0, f"normalize: std is {self.std!r}; each must be above 0")

    def sample(self, n: int, rng: torch.Generator) -> Draw:
        return {}

    def apply_(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        scale = torch.tensor(self.std).reciprocal()
        shift = -torch.tensor(self.mean) * scale
        scale, shift = (v.view(3, 1, 1).to(images.device, non_blocking=True) for v in (scale, shift))
        return images.mul_(scale).add_(shift)

    def __str__(self) -> str:
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"normalize by mean {mean} and standard deviation {std}"
