"""Methods: an `nn.Module` in two halves, `project` (networks) and `compare` (mathematics)."""

from collections.abc import Callable

from diptych.methods.barlow_twins import BarlowTwins
from diptych.methods.coding_rate import CodingRate
from diptych.methods.keras import KERAS_METHODS
from diptych.methods.method import Method
from diptych.methods.simsiam import SimSiam

METHODS: dict[str, Callable[..., Method]] = {
    "barlow_twins": BarlowTwins,
    "simsiam": SimSiam,
    "coding_rate": CodingRate,
    **KERAS_METHODS,
}

__all__ = ["METHODS", "BarlowTwins", "CodingRate", "Method", "SimSiam"]
