"""Methods: an `nn.Module` in two halves, `project` (networks) and `compare` (mathematics)."""

from collections.abc import Callable

from diptych.methods.barlow_twins import BarlowTwins
from diptych.methods.byol import BYOL
from diptych.methods.coding_rate import CodingRate
from diptych.methods.dino import DINO
from diptych.methods.keras import KERAS_METHODS
from diptych.methods.method import Method
from diptych.methods.moco import MoCo
from diptych.methods.moco_v3 import MoCoV3
from diptych.methods.simclr import SimCLR
from diptych.methods.simsiam import SimSiam
from diptych.methods.swav import SwAV
from diptych.methods.vicreg import VICReg

METHODS: dict[str, Callable[..., Method]] = {
    "barlow_twins": BarlowTwins,
    "simsiam": SimSiam,
    "simclr": SimCLR,
    "byol": BYOL,
    "moco": MoCo,
    "moco_v3": MoCoV3,
    "swav": SwAV,
    "vicreg": VICReg,
    "dino": DINO,
    "coding_rate": CodingRate,
    **KERAS_METHODS,
}

__all__ = ["BYOL", "DINO", "METHODS", "BarlowTwins", "CodingRate", "Method", "MoCo", "MoCoV3", "SimCLR", "SimSiam", "SwAV",
           "VICReg"]  # fmt: skip
