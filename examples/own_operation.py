"""A view operation is any object with `sample` (all random draws, a row per image) and `apply` (deterministic)."""

import sys

import torch
from torch import Tensor

import diptych
from diptych.base.random_at import random_at
from diptych.reporting.sheet import view_sheet


class Erase:
    """Paints a gray square over each image, at a random place, with probability p."""

    def __init__(self, p: float = 0.5, share: float = 0.4):
        self.p, self.share = p, share

    def sample(self, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"chosen": torch.rand(n, generator=rng) < self.p, "place": torch.rand(n, 2, generator=rng)}

    def apply(self, images: Tensor, draw: dict[str, Tensor]) -> Tensor:
        images = images.clone()
        side = int(self.share * images.shape[-1])
        corners = (draw["place"] * (images.shape[-1] - side + 1)).long()
        for image, chosen, (top, left) in zip(images, draw["chosen"], corners, strict=True):
            if chosen:
                image[:, top : top + side, left : left + side] = 0.5
        return images

    def __str__(self) -> str:
        return f"{self.p:.0%}: a gray square of {self.share:.0%} of the side"


def main(out: str = "erased.png") -> None:
    photos = diptych.images("demo", size=32)
    crop, *others = diptych.views.simsiam(32)[0].operations
    view = diptych.View([crop, Erase(), *others])
    print("\n".join(view.describe()))
    view_sheet(photos, [view, view], count=12, seed=0).save(out)
    first, second = (view(photos.pixels()[:4], random_at(0, "example", k)) for k in range(2))
    print(f"{out}; two views of 4 images: {tuple(first.shape)} and {tuple(second.shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
