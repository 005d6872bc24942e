"""The published pairs of views, as lists of operations."""

from typing import Literal

from diptych.base.errors import RecipeError
from diptych.views.blur import GaussianBlur
from diptych.views.colour import ColorJitter, Grayscale, Normalize, Solarize
from diptych.views.geometry import HorizontalFlip, RandomResizedCrop
from diptych.views.operation import Operation
from diptych.views.view import View

Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean, standard deviation
Variant = Literal["auto", "original", "small"]

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10: Normalization = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
SMALL_VARIANT_PIXELS = 64  # "auto" chooses the variant "small" up to this size


def barlow_twins(size: int = 224, variant: Variant = "auto", normalization: Normalization | None = None) -> list[View]:
    """The two views of Barlow Twins (arXiv:2103.03230, section 2.2), which are BYOL's.

    "original": bicubic crop of 8 to 100 %, flip, jitter, gray, blur of all first and a tenth of the second views,
    solarization of a fifth of the second, ImageNet's normalization. "small": solo-learn's CIFAR-10 set (92.10 %), the
    same without blur and with CIFAR-10's normalization. "auto": small up to 64 pixels. normalization: (mean, std),
    replaces the variant's.
    """
    small = is_small(size, variant)

    def view(blur: float, solarize: float) -> View:
        return View(
            [
                RandomResizedCrop(size, scale=(0.08, 1.0), interpolation="bicubic"),
                HorizontalFlip(p=0.5),
                ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
                Grayscale(p=0.2),
                *([] if small else [GaussianBlur(p=blur, sigma=(0.1, 2.0))]),
                *([Solarize(p=solarize)] if solarize else []),
                Normalize(*(normalization or (CIFAR10 if small else IMAGENET))),
            ]
        )

    return [view(blur=1.0, solarize=0.0), view(blur=0.1, solarize=0.2)]


def simsiam(size: int = 224, variant: Variant = "auto", normalization: Normalization | None = None) -> list[View]:
    """The two views of SimSiam (arXiv:2011.10566, section 3), of the same distribution: MoCo v2's set.

    "original": bilinear crop of 20 to 100 %, jitter, gray, blur in half of the views, flip, ImageNet's
    normalization. "small": the paper's CIFAR-10 set (appendix D), the same without blur and with CIFAR-10's
    normalization. "auto": small up to 64 pixels. normalization: (mean, std), replaces the variant's.
    """
    small = is_small(size, variant)

    def view() -> View:
        return View(
            [
                RandomResizedCrop(size, scale=(0.2, 1.0)),
                ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
                Grayscale(p=0.2),
                *([] if small else [GaussianBlur(p=0.5, sigma=(0.1, 2.0))]),
                HorizontalFlip(p=0.5),
                Normalize(*(normalization or (CIFAR10 if small else IMAGENET))),
            ]
        )

    return [view(), view()]


def simclr(size: int = 224, variant: Variant = "auto", normalization: Normalization | None = None) -> list[View]:
    """The two views of SimCLR (arXiv:2002.05709, appendix A), of the same distribution.

    "original": bicubic crop of 8 to 100 %, flip, jitter of strength 1, gray, blur in half of the views; no normalization.
    "small": its CIFAR-10 set (appendix B.9), strength 0.5 and no blur. "auto": small up to 64 pixels. normalization:
    (mean, std) of one that is added.
    """
    small = is_small(size, variant)
    crop = RandomResizedCrop(size, scale=(0.08, 1.0), interpolation="bicubic")
    blur = [] if small else [GaussianBlur(p=0.5, sigma=(0.1, 2.0))]
    last = [] if normalization is None else [Normalize(*normalization)]
    return [View([crop, *strong_colours(0.5 if small else 1.0), *blur, *last]) for _ in range(2)]


def swav(
    size: int = 224, small_size: int = 96, small_views: int = 6, normalization: Normalization = IMAGENET
) -> list[View]:
    """Multi-crop of SwAV (arXiv:2006.09882): two large views, crops of 14 to 100 %, and `small_views` of 5 to 14 %.

    All with flip, SimCLR's jitter of strength 1, gray, and blur in half of them.
    """

    def view(size: int, scale: tuple[float, float]) -> View:
        crop = RandomResizedCrop(size, scale=scale)
        return View([crop, *strong_colours(1.0), GaussianBlur(p=0.5, sigma=(0.1, 2.0)), Normalize(*normalization)])

    large = [view(size, (0.14, 1.0)) for _ in range(2)]
    return [*large, *(view(small_size, (0.05, 0.14)) for _ in range(small_views))]


def dino(
    size: int = 224, small_size: int = 96, small_views: int = 8, normalization: Normalization = IMAGENET
) -> list[View]:
    """Multi-crop of DINO (arXiv:2104.14294): BYOL's two views, crops of 40 to 100 %, and `small_views` of 5 to 40 %.

    The small ones have BYOL's colours and are blurred half of the time. Without small views the program crops 14 to 100 %.
    """

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float = 0.0) -> View:
        crop = RandomResizedCrop(size, scale=scale, interpolation="bicubic")
        jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)
        colours = [jitter, Grayscale(p=0.2), GaussianBlur(p=blur, sigma=(0.1, 2.0))]
        last = [Solarize(p=solarize)] if solarize else []
        return View([crop, HorizontalFlip(p=0.5), *colours, *last, Normalize(*normalization)])

    scale = (0.4 if small_views else 0.14, 1.0)
    large = [view(size, scale, blur=1.0), view(size, scale, blur=0.1, solarize=0.2)]
    return [*large, *(view(small_size, (0.05, 0.4), blur=0.5) for _ in range(small_views))]


def strong_colours(strength: float) -> list[Operation]:
    """SimCLR's flip, jitter and gray (appendix A): brightness, contrast and saturation 0.8, hue 0.2, times `strength`."""
    share = 0.8 * strength
    jitter = ColorJitter(brightness=share, contrast=share, saturation=share, hue=0.2 * strength, p=0.8)
    return [HorizontalFlip(p=0.5), jitter, Grayscale(p=0.2)]


def is_small(size: int, variant: Variant) -> bool:
    if variant not in ("auto", "original", "small"):
        raise RecipeError(f"views: variant is {variant!r}; choose 'auto', 'original' or 'small'")
    return variant == "small" or (variant == "auto" and size <= SMALL_VARIANT_PIXELS)
