"""Methods: an `nn.Module` in two halves, `project` (networks) and `compare` (mathematics)."""

from diptych.methods.barlow_twins import BarlowTwins
from diptych.methods.method import Method
from diptych.methods.simsiam import SimSiam

METHODS = {"barlow_twins": BarlowTwins, "simsiam": SimSiam}

__all__ = ["METHODS", "BarlowTwins", "Method", "SimSiam"]
