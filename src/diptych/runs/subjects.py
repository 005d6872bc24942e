"""The names of subjects: whose accuracy a row of a table is."""

from torch import nn

from diptych.networks.joined import Joined
from diptych.networks.patches import PatchDictionary

CHANCE = "chance"
RAW_PIXELS = "raw pixels"
CLOSED_FORM = "closed form"  # `training.quick` of the same unlabelled images
UNTRAINED = "untrained"
SCRATCH = "from scratch"
TRAINED = "trained"
JOINED = "joined"  # the closed form and the trained encoder side by side (`training.joining`)
PHRASES = {TRAINED: "the trained encoder", CLOSED_FORM: "the closed form", JOINED: "the joined encoder"}


def main_subject(encoder: nn.Module) -> str:
    """The name of an encoder that is judged: TRAINED, JOINED or CLOSED_FORM."""
    return JOINED if isinstance(encoder, Joined) else CLOSED_FORM if isinstance(encoder, PatchDictionary) else TRAINED


def main_of_recipe(recipe: dict) -> str:
    """The same from the recipe of its run."""
    return TRAINED if "quick" not in recipe else JOINED if "join" in recipe else CLOSED_FORM


def frozen_name(main: str) -> str:
    """The row of an encoder as it is, beside the one that `finetune` trains further."""
    return f"{main}, frozen"
