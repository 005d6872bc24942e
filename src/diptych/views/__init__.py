"""Views of images: operations by name, the View that applies them, and the published pairs of views."""

from diptych.views.blur import GaussianBlur
from diptych.views.colour import ColorJitter, Grayscale, Normalize, Solarize
from diptych.views.geometry import HorizontalFlip, RandomCrop, RandomResizedCrop, Resize, VerticalFlip
from diptych.views.keras import KERAS_OPERATIONS
from diptych.views.operation import Operation
from diptych.views.presets import CIFAR10, IMAGENET, barlow_twins, dino, simclr, simsiam, swav
from diptych.views.together import Together
from diptych.views.view import View, draw_slice

_GENERAL = {
    "random_resized_crop": RandomResizedCrop,
    "random_crop": RandomCrop,
    "resize": Resize,
    "horizontal_flip": HorizontalFlip,
    "vertical_flip": VerticalFlip,
    "color_jitter": ColorJitter,
    "grayscale": Grayscale,
    "gaussian_blur": GaussianBlur,
    "solarize": Solarize,
    "normalize": Normalize,
}
OPERATIONS = _GENERAL | KERAS_OPERATIONS

__all__ = ["CIFAR10", "IMAGENET", "OPERATIONS", "Operation", "Together", "View", "barlow_twins", "dino", "draw_slice",
           "simclr", "simsiam", "swav"]  # fmt: skip
__all__ += [operation.__name__ for operation in _GENERAL.values()]
