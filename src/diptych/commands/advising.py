"""What a command says before it trains."""

import os
import sys

from diptych.training.advice import advise


def print_advice(sections: dict, images: int) -> None:
    """The line of `training.advice` on standard error, for one process and an encoder that starts untrained."""
    if "RANK" in os.environ or sections["encoder"]["pretrained"]:
        return
    length = {key: sections["pretrain"][key] for key in ("epochs", "budget", "device")}
    if line := advise(images, method=sections["method"]["name"], **length):
        print(line, file=sys.stderr, flush=True)
