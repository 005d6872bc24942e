"""How many views a second? Barlow Twins' two views of each image, by us and by what people use instead.

    python -m benchmarks.views [--threads 1] [--device cuda] [--sizes 32 64 224]

The work is the full published set (crop, flip, jitter, gray, blur, solarize, normalize), from uint8 images in memory to two
batches of float32, every image with draws of its own. Libraries that work on one image at a time go through a DataLoader, in
as many processes as there are threads (in this one for 1): for lightly that is the one flag that makes it faster. What the
crop and the blur are differs: `rivals` says how, and our second row does what lightly's transform does.

Freed memory is kept, as in pretraining (decision 17), for all of them alike.
"""

import argparse
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Row, faster, goal, in_turns, missing, parser, report
from diptych.base.memory import keep_freed_memory
from diptych.base.random_at import random_at
from diptych.views import View, barlow_twins
from diptych.views.blur import GaussianBlur, default_taps
from diptych.views.geometry import RandomResizedCrop
from diptych.views.presets import IMAGENET

OURS, LIKE_LIGHTLY = "Diptych", "Diptych, crop and blur as lightly's"
LIGHTLY, V2, V2_BATCH, KORNIA = "lightly", "torchvision v2, by image", "torchvision v2, by batch", "kornia"
WORK = {
    "cpu": {32: (2048, 512), 64: (256, 256), 224: (32, 32)},
    "cuda": {32: (8192, 4096), 64: (4096, 1024), 224: (1024, 256)},
}
QUICK = (8, 4)  # images, images in a batch
BLUR, SOLARIZE = (1.0, 0.1), (0.0, 0.2)  # probabilities in the first and the second view

Pair = Sequence[torch.Tensor]
Rival = Callable[[], Iterable[Pair]]  # makes both views of all images, batch by batch


def pictures(n: int, size: int) -> torch.Tensor:
    """(n, 3, S, S) uint8: smooth noise, so that blur and crop leave something to see."""
    coarse = torch.rand(n, 3, 6, 6, generator=random_at("benchmark", "pictures", size))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return smooth.mul_(255).byte()


def diptych(pixels: torch.Tensor, batch: int, pair: list[View]) -> Rival:
    def run() -> Iterable[Pair]:
        for step, images in enumerate(pixels.split(batch)):
            yield [view(images, random_at(0, "views", step, index)) for index, view in enumerate(pair)]

    return run


def like_lightly(pair: list[View]) -> list[View]:
    """Its crop is bilinear; its blur is PIL's, whose reach hangs on sigma alone: 13 taps hold 3 sigma to each side."""

    def change(step):
        if isinstance(step, RandomResizedCrop):
            return replace(step, interpolation="bilinear")
        return replace(step, kernel=13) if isinstance(step, GaussianBlur) else step

    return [View([change(step) for step in view.operations]) for view in pair]


class Mapped(Dataset):
    def __init__(self, items: Sequence, transform: Callable):
        self.items, self.transform = items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Pair:
        return self.transform(self.items[index])


def by_image(items: Sequence, transform: Callable, batch: int, threads: int) -> Rival:
    workers = threads if threads > 1 else 0
    loader = DataLoader(Mapped(items, transform), batch, num_workers=workers, persistent_workers=workers > 0)
    return lambda: loader


def lightly(pixels: torch.Tensor, size: int, batch: int, threads: int) -> Rival:
    """As shipped: PIL images, a bilinear crop, PIL's blur."""
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from PIL import Image

    transform = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
    images = [Image.fromarray(pixel.permute(1, 2, 0).numpy()) for pixel in pixels]
    return by_image(images, transform, batch, threads)


def torchvision_pair(size: int) -> list[Callable]:
    """Of uint8 tensors, as its documentation advises; crop and taps are ours."""
    from torchvision.transforms import v2

    def view(blur: float, solarize: float) -> Callable:
        return v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(default_taps(size), (0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, p=solarize),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*IMAGENET),
        ])  # fmt: skip

    return [view(*p) for p in zip(BLUR, SOLARIZE, strict=True)]


def torchvision_by_image(pixels: torch.Tensor, size: int, batch: int, threads: int) -> Rival:
    pair = torchvision_pair(size)
    return by_image(list(pixels), lambda image: [view(image) for view in pair], batch, threads)


def torchvision_by_batch(pixels: torch.Tensor, size: int, batch: int) -> Rival:
    pair = torchvision_pair(size)
    return lambda: ([view(images) for view in pair] for images in pixels.split(batch))


def kornia(pixels: torch.Tensor, size: int, batch: int) -> Rival:
    """Its ColorJitter is torchvision's, in one order for the whole batch; crop and taps are ours."""
    from kornia import augmentation as K

    def view(blur: float, solarize: float) -> torch.nn.Module:
        mean, std = (torch.tensor(values) for values in IMAGENET)
        return K.AugmentationSequential(
            K.RandomResizedCrop((size, size), scale=(0.08, 1.0), resample="bicubic", align_corners=False),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((default_taps(size),) * 2, (0.1, 2.0), p=blur),
            K.RandomSolarize(0.0, 0.0, p=solarize),
            K.Normalize(mean, std),
        ).to(pixels.device)

    pair = [view(*p) for p in zip(BLUR, SOLARIZE, strict=True)]

    def run() -> Iterable[Pair]:
        for images in pixels.split(batch):
            images = images.float().div_(255)
            yield [view(images) for view in pair]

    return run


def rivals(
    pixels: torch.Tensor, size: int, batch: int, arguments: argparse.Namespace
) -> tuple[dict[str, Rival], list[str]]:
    """Who can be measured here, and lines about who cannot."""
    pair = barlow_twins(size, "original")
    found = {OURS: diptych(pixels, batch, pair), LIKE_LIGHTLY: diptych(pixels, batch, like_lightly(pair))}
    notes = []
    on_cpu = pixels.device.type == "cpu"
    others: dict[str, tuple[str, Callable[[], Rival]]] = {
        LIGHTLY: ("lightly", lambda: lightly(pixels, size, batch, arguments.threads)),
        V2: ("torchvision", lambda: torchvision_by_image(pixels, size, batch, arguments.threads)),
        V2_BATCH: ("torchvision", lambda: torchvision_by_batch(pixels, size, batch)),
        KORNIA: ("kornia", lambda: kornia(pixels, size, batch)),
    }
    for name, (library, make) in others.items():
        if lost := missing(library):
            notes.append(f"{name}: {lost}")
        elif on_cpu or name not in (LIGHTLY, V2):
            found[name] = make()
    return found, notes


def check(name: str, rival: Rival, n: int, size: int) -> torch.Tensor:
    """Mean and standard deviation of all values; raises unless these are two views of each image as asked for."""
    pairs = list(rival())
    for views in zip(*pairs, strict=True):
        whole = torch.cat(list(views))
        if len(pairs[0]) != 2 or whole.shape != (n, 3, size, size) or whole.dtype != torch.float32:
            raise AssertionError(f"{name} made {len(pairs[0])} views, {tuple(whole.shape)} {whole.dtype}")
    values = torch.cat([view for pair in pairs for view in pair])
    return torch.stack((values.mean(), values.std())).cpu()


def same_work(found: dict[str, Rival], n: int, size: int) -> None:
    """Views of the same images by the same recipe have the same mean and spread, where every image is drawn for itself."""
    ours = check(OURS, found[OURS], n, size)
    for name, rival in found.items():
        theirs = check(name, rival, n, size)
        if n > 100 and name != V2_BATCH and (theirs - ours).abs().max() > 0.2:
            told = f"{name} has mean and deviation {theirs.tolist()}, {OURS} {ours.tolist()}"
            raise AssertionError(f"{told}: not the same work")


def profile(pixels: torch.Tensor, batch: int, pair: list[View], repeats: int) -> dict[str, list[float]]:
    """Microseconds a view that each operation adds, for both views: what the view costs with it less without."""
    told: dict[str, list[float]] = {}
    for index, view in enumerate(pair):
        parts = {count: View(view.operations[:count]) for count in range(len(view.operations) + 1)}
        runs = {str(count): diptych(pixels, batch, [part]) for count, part in parts.items()}
        seconds = timed(runs, repeats, pixels.device.type)
        lowest = [1e6 * min(seconds[str(count)]) / len(pixels) for count in parts]
        names = ["float32 in [0, 1]", *(type(step).__name__ for step in view.operations)]
        for name, before, after in zip(names, [0.0, *lowest], lowest, strict=False):
            told.setdefault(name, [0.0] * len(pair))[index] = round(after - before, 2)
    return told


def timed(found: dict[str, Rival], repeats: int, device: str) -> dict[str, list[float]]:
    return in_turns({k: lambda run=run: deque(run(), maxlen=0) for k, run in found.items()}, repeats, device=device)


def show_profile(costs: dict[str, list[float]]) -> None:
    """A flip is done by the crop that stands before it: its cost is the crop's."""
    print(f"\n{'where our time goes, microseconds a view':<44}{'first':>12}{'second':>12}")
    for name, pair in costs.items():
        print(f"{name:<44}" + "".join(f"{cost:>12.1f}" for cost in pair))


def goals(size: int, rows: dict[str, Row], arguments: argparse.Namespace) -> list[str]:
    if size != 32 or arguments.quick:
        return []
    ours = rows[OURS].median
    if arguments.device == "cuda":
        return [goal("views of 32 pixels", ours, wanted, " views/s") for wanted in (2e6, 5e6, 50e6)]
    if arguments.threads > 1:
        return [goal("views of 32 pixels on two cores,", ours, 20_000, " views/s")]
    return [goal("over lightly on one core,", faster(rows[OURS], rows[LIGHTLY]), 15, " x")] if LIGHTLY in rows else []


def measure(size: int, arguments: argparse.Namespace) -> None:
    n, batch = QUICK if arguments.quick else WORK[arguments.device][size]
    pixels = pictures(n, size).to(arguments.device)
    found, notes = rivals(pixels, size, batch, arguments)
    same_work(found, n, size)
    seconds = timed(found, arguments.repeats, arguments.device)
    told = {V2_BATCH: "one draw for the whole batch: not the same work", KORNIA: "one order of the jitter for the whole batch",
            LIGHTLY: "crop bilinear, PIL's blur"}  # fmt: skip
    rows = {name: Row(name, seconds[name], 2 * n, "views/s", told.get(name, "")) for name in found}
    costs = profile(pixels, batch, barlow_twins(size, "original"), arguments.repeats)
    rows[OURS].extra["microseconds_a_view"] = costs
    what = f"two views of {size} x {size} images, Barlow Twins' full set, batches of {batch}"
    report("views", what, list(rows.values()), OURS, arguments, [*goals(size, rows, arguments), *notes])
    show_profile(costs)


def main(words: Sequence[str] | None = None) -> None:
    asked = parser("views")
    asked.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224], choices=[32, 64, 224], help="pixels")
    arguments = asked.parse_args(words)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # torch would leave a core free; we leave none
    for size in arguments.sizes:
        measure(size, arguments)


if __name__ == "__main__":
    main()
