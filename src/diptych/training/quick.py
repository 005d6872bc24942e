"""A closed-form encoder: dictionaries of the images' own patches, whitened codes, and no gradient descent."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.base.device import choose_device
from diptych.base.errors import DataError, RecipeError
from diptych.base.files import require_free_folder
from diptych.base.random_at import random_at
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.embeddings.diagnose import diagnose
from diptych.embeddings.lamps import judge
from diptych.embeddings.linear_optimum import barlow_twins_optimum
from diptych.networks.encoders import encoder
from diptych.networks.inference import Preprocessing, resized
from diptych.networks.patches import SMALLEST_SIZE, PatchDictionary
from diptych.runs.contents import require_place
from diptych.runs.encoder import Trained, save_encoder
from diptych.runs.run import Run
from diptych.training.dictionary import blocks, components, fill, learn_layers
from diptych.training.joining import join_encoders, require_joinable
from diptych.training.learned import recognition
from diptych.views import ColorJitter, Grayscale, HorizontalFlip, RandomResizedCrop, View
from diptych.views.flips import flips_look_alike

SIZE = 32  # pixels; larger images are shrunk to it, which costs little accuracy and saves most of the time
FEWEST_ENTRIES, MOST_ENTRIES = 8, 2**15
FEWEST = 50  # images, the fewest that `diagnose` judges
MOST_IMAGES = 10_000  # sampled for the codes; memory and time do not grow beyond them
WIDTHS = (384, 192, 96, 48, 24)  # of one code; the map of both has two thirds of it, and all three 1,024, 512, ...
IMAGES_PER_DIMENSION = 3  # of the sample, at least, for a code
VARIANCE_FLOOR = 1e-3  # in units of a standardised entry's variance
PAIRS, MOST_DRAWS = 3_000, 4  # pairs of views for Barlow Twins' optimum; pairs of one image at most
OFF_DIAGONAL_WEIGHT = 0.3  # of that loss: a smaller one uses fewer directions, those on which views agree most
SMALLEST_CROP = 0.5  # area of a view
DIAGNOSED = 1_000  # images
ALIKE = (
    "look at the images: most of them are alike, or nearly plain (`diptych doctor SOURCE` lists what cannot be read)"
)
KEEP = ("both", "codes", "twins")


@torch.no_grad()
def quick(
    images: Images,
    *,
    out: str | Path | None = None,
    size: int | None = None,
    entries: int | None = None,
    power: float = 0.45,
    mirrored: bool | None = None,
    keep: str = "both",
    join: Trained | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    record: dict | None = None,
    show: bool = True,
) -> Trained:
    """Compute an encoder from unlabelled images, in seconds to minutes. With `out`, also write a run folder.

    A sample of at most 10,000 images is used, so that millions cost no more. size: pixels of the encoder's input, to which
    images are resized; None: 32, or that of smaller images. entries: of the dictionary of patches; the dictionary of 3x3
    neighbourhoods of its responses has four times as many. None: 32 to 512, by the number of images.
    power: the components of both codes are divided by their variance to this power, 0 (not whitened) to 0.5 (whitened).
    mirrored: average the codes of an image and its mirror image; None: if mirror images look like the other images.
    keep: "codes", the partially whitened codes of both layers (the best linear accuracy); "twins", the exact optimum of
    Barlow Twins' loss over linear maps of them for two crops of an image (`embeddings.linear_optimum`); or "both" side by
    side. join: a trained encoder, whose partially whitened embedding is appended (`training.joining`); `images` should
    have the size that it expects. record: the settings that recipe.yaml will hold.

    The same images, seed and number of threads give the same bits on one machine. Labels are not used. Raises DataError
    for fewer than 50 images or ones without structure, RecipeError for impossible arguments, OutputError for a folder
    that may not be written.
    """
    started = time.perf_counter()
    size = min(SIZE, images.size) if size is None else size
    entries = entries_for(len(images)) if entries is None else entries
    options = {"size": size, "entries": entries, "power": power, "mirrored": mirrored, "keep": keep,
               "seed": seed}  # fmt: skip
    check(images, options)
    if join is not None:
        require_joinable(join)
    record = record or {"made_by": "diptych.quick in Python", "images": {"count": len(images), "size": images.size}}
    record = record if join is None else record | {"join": str(join.folder)}
    if out is not None:  # before the work rather than after
        require_place(Path(out), overwrite=True) if overwrite else require_free_folder(Path(out))
    with ProgressBar("quick", show=show) as progress:
        progress.say("read a sample of the images ...")
        at_full_size = sample(images, join.preprocessing.opened if join else size, seed, choose_device(device))
        pixels = resized(at_full_size, size)
        if mirrored is None:
            mirrored = flips_look_alike(pixels, seed).alike
        progress.say("learn dictionaries of patches ...")
        network = dictionary_network(size, entries, code_width(len(pixels), entries), mirrored=mirrored, keep=keep)
        learn_layers(network.to(pixels.device), pixels, seed)
        progress.say("reduce and whiten their codes ...")
        learn_codes(network, pixels, power, seed)
        if network.twins is not None:
            progress.say("solve for Barlow Twins' best linear map ...")
            learn_twins(network, network.twins, pixels, seed)
        trained = Trained(network.eval().cpu(), Preprocessing(size))
        if join is not None:
            progress.say("join the trained encoder ...")
            trained = join_encoders(network, join, at_full_size.cpu())
        seen = at_full_size[:DIAGNOSED].cpu()
        diagnosis = diagnose(trained(seen))
        if diagnosis.advice:  # that of a diagnosis speaks of training
            diagnosis = replace(diagnosis, advice=[ALIKE])
        diagnosis = judge(diagnosis, recognition(trained, None, seen, "images in new views"))
    if out is None:
        return trained
    run = Run.start(out, record | {"quick": options}, overwrite=overwrite)
    save_encoder(run.folder / "encoder", trained.encoder, trained.preprocessing)
    run.append("evaluations.jsonl", [{"diagnosis": vars(diagnosis)}])
    run.log("end", step=0, epochs=0, elapsed_seconds=round(time.perf_counter() - started, 3))
    run.release()
    return replace(trained, folder=run.folder)


def check(images: Images, options: dict) -> None:
    """Raises RecipeError for impossible options, DataError for too few or too small images, before anything is read."""
    if not 0 <= options["power"] <= 0.5:
        raise RecipeError(f"power {options['power']} must be between 0 (no whitening) and 0.5 (full whitening)")
    if not FEWEST_ENTRIES <= options["entries"] <= MOST_ENTRIES:
        raise RecipeError(f"entries {options['entries']} must be between {FEWEST_ENTRIES} and {MOST_ENTRIES:,}")
    if options["size"] < SMALLEST_SIZE:
        raise RecipeError(f"size {options['size']} must be at least {SMALLEST_SIZE} pixels: patches need that")
    if options["keep"] not in KEEP:
        raise RecipeError(f"keep {options['keep']!r} is not one of {', '.join(KEEP)}")
    if len(images) < FEWEST:
        raise DataError(f"{len(images)} images are too few to compute an encoder from; give {FEWEST} or more")


def entries_for(count: int) -> int:
    """A power of two near a quarter of the number of images, from 32 to 256; 512 for 20,000 images or more."""
    return 512 if count >= 20_000 else max(32, min(256, 2 ** ((count // 4).bit_length() - 1)))


def sample(images: Images, size: int, seed: int, device: torch.device) -> Tensor:
    """At most MOST_IMAGES of the readable images, (n, 3, size, size) uint8 on `device`, in random order."""
    images.prepare()
    order = torch.randperm(len(images), generator=random_at(seed, "quick", "sample"))[:MOST_IMAGES]
    batches = [resized(pixels.to(device), size) for _, pixels in images.read(order, 512)]
    pixels = torch.cat(batches) if batches else torch.zeros(0)
    if len(pixels) < FEWEST:
        raise DataError(f"{len(pixels)} readable images are too few to compute an encoder from; give {FEWEST} or more")
    return pixels


def code_width(count: int, entries: int) -> int:
    """Dimensions of each of the two codes for a sample of `count` images and dictionaries of `entries`."""
    fitting = (width for width in WIDTHS if width * IMAGES_PER_DIMENSION <= count and width <= 4 * entries)
    return next(fitting, WIDTHS[-1])


def dictionary_network(size: int, entries: int, width: int, *, mirrored: bool, keep: str) -> PatchDictionary:
    reduced, twins_width = min(64, entries), 0 if keep == "codes" else width * 2 // 3
    network = encoder("patch_dictionary", size=size, entries=entries, reduced=reduced, gathered=min(192, 9 * reduced),
                      second_entries=4 * entries, first_width=width, second_width=width, twins_width=twins_width,
                      keep=keep, mirrored=mirrored)  # fmt: skip
    assert isinstance(network, PatchDictionary)
    return network.eval()


def learn_codes(network: PatchDictionary, pixels: Tensor, power: float, seed: int) -> None:
    """Principal components of both layers' pooled responses, partially whitened."""
    rng = random_at(seed, "quick", "codes")
    codes = [network.codes(block) for block in blocks(pixels)]
    for layer, rows in zip((network.first_code, network.second_code), zip(*codes, strict=True), strict=True):
        mean_F, scale_F, vectors_FD, values_D = components(torch.cat(rows), layer.out_features, rng)
        weight_FD = vectors_FD / scale_F[:, None] / (values_D + VARIANCE_FLOOR) ** power
        fill(layer, mean_F, weight_FD)


def learn_twins(network: PatchDictionary, layer: nn.Linear, pixels: Tensor, seed: int) -> None:
    """The optimum of Barlow Twins over linear maps of the joined codes of two views.

    Some views are mirrored where `network` averages mirror images; none is averaged here, which would double the time.
    """
    view = View([RandomResizedCrop(pixels.shape[2], scale=(SMALLEST_CROP, 1.0)), *[HorizontalFlip(p=0.5)] * network.mirrored,
                 ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), Grayscale(p=0.1)])  # fmt: skip
    draws = min(MOST_DRAWS, -(-PAIRS // len(pixels)))  # several pairs of each of a few images
    chosen = pixels[:PAIRS].repeat(draws, 1, 1, 1)[:PAIRS]
    vectors = []
    for number in range(2):
        views = view(chosen, random_at(seed, "quick", "views", number))
        vectors.append(torch.cat([network.join(*network.pooled_responses(block)) for block in blocks(views)]))
    optimum = barlow_twins_optimum(vectors[0], vectors[1], layer.out_features, OFF_DIAGONAL_WEIGHT)
    fill(layer, optimum.mean_F, optimum.weight_FD)
