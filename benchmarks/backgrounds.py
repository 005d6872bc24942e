"""Squares of 37 photographs that Debian ships as desktop backgrounds: a set beside the demo that anyone can make.

    apt-get install mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers

or unpack the four packages into a folder with `dpkg-deb -x` and pass that folder. The label is the photograph; training
and test squares come from different bands of it, as in `diptych demo`. Drawings and patterns of these packages are left out.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import diptych
from diptych.base.random_at import random_at
from diptych.data.decode import decode
from diptych.data.images import Images
from diptych.data.photographs import bands, square

PACKAGES = "mate-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers"
MATE = ("Aqua", "Blinds", "Dune", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm", "TwoWings",
        "Wood", "YellowFlower")  # fmt: skip
LOMIRI = ("Bridge_by_Sander_Klootwijk", "Dragonfly_by_Bolly", "Picture_0B_by_freespace", "Picture_1A_by_freespace",
          "Wine_by_Jakkub_Mede", "aitzgorri_by_Aitzol_Berasategi", "free_by_Peter_Nerlich", "friends_by_Aitzol_Berasategi",
          "greentock_by_Peter_Nerlich", "life_by_Aitzol_Berasategi", "picosdeeuropa_by_Aitzol_Berasategi",
          "seeding_by_Clements_Engelhardt", "sunset_by_Aitzol_Berasategi", "Kleiber_by_Lukas_Baubkus")  # fmt: skip
PLASMA = ("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
          "OneStandsOut", "Path", "summer_1am")  # fmt: skip
FILES = (
    *(f"backgrounds/mate/nature/{name}.jpg" for name in MATE),
    *(f"backgrounds/{name}.jpg" for name in LOMIRI),
    *(f"wallpapers/{name}/contents/images/2560x1600.jpg" for name in PLASMA),
)
LONGER = 1024  # pixels of a photograph's longer side before it is cut
TRAIN, TEST = 160, 60  # squares per photograph


def backgrounds(root: Path, size: int = 32) -> tuple[Images, Images]:
    """5,920 training and 2,220 test squares. root: the folder that holds usr/share. Raises SystemExit where a file is missing."""
    photos = {file: photograph(root / "usr" / "share" / file) for file in FILES}
    train, test = (squares(photos, split, count, size) for split, count in (("train", TRAIN), ("test", TEST)))
    return train, test


def squares(photos: dict[str, np.ndarray], split: str, count: int, size: int) -> Images:
    cuts = [each for name, photo in photos.items() for each in cut(photo, name, split, count, size)]
    return diptych.images(np.stack(cuts), labels=[name for name in photos for _ in range(count)])


def photograph(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 with `LONGER` pixels on its longer side."""
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing: install {PACKAGES} (Debian), or pass the folder that holds their usr/share"
        )
    image = Image.fromarray(decode(path.read_bytes()))
    image.thumbnail((LONGER, LONGER), Image.Resampling.BOX)
    return np.asarray(image)


def cut(photo: np.ndarray, name: str, split: str, count: int, size: int) -> list[np.ndarray]:
    """`count` squares of the photograph's training bands or of its test bands."""
    mine = bands(photo)[0 if split == "train" else 1 :: 2]
    draws = torch.rand(count, 4, generator=random_at(0, "backgrounds", split, name))
    return [square(mine, draw, size) for draw in draws.tolist()]
