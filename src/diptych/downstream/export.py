"""A trained encoder as a folder that other programs open, without this package: `diptych export`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from diptych.base.errors import CheckpointError, RecipeError
from diptych.base.files import new_folder, require_free_folder, write_file
from diptych.base.random_at import random_at
from diptych.base.terminal import ProgressBar
from diptych.data.images import BadImage, Images
from diptych.downstream.formats import require_formats
from diptych.downstream.programs import (
    SAMPLE,
    FromBytes,
    difference,
    exported_program,
    onnx_program,
    open_exported,
    open_onnx,
    opened_side,
)
from diptych.networks.encoders import REFUSALS, copy_of
from diptych.networks.inference import prepare, resized
from diptych.reporting.card import Card, card_of, gap_text, require_licence
from diptych.runs.encoder import WEIGHTS, Trained, as_trained, encoder_folder, read_config, save_encoder
from diptych.runs.pictures import read_picture
from diptych.runs.run import Run, is_run

COMPARED = 8  # images on which every file is compared with the encoder
ONNX, ONNX_FROM_BYTES, EXPORTED, CARD = "encoder.onnx", "encoder-uint8.onnx", "encoder.pt2", "README.md"
TENSORS = ("timm", "transformers", "torchvision")  # formats that are the weights under the names of these programs


@dataclass(frozen=True)
class Exported:
    """The result of `export`; as text, a line per file. differences: file -> the largest difference of its embeddings from
    the encoder's, in units of their largest number; without the files that hold no program."""

    folder: Path
    formats: list[str]
    differences: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{self.folder}  {', '.join(self.formats)}; {CARD} says how to open each"]
        lines += [f"  {name}: largest difference of its embeddings from the encoder's on {COMPARED} images: {gap_text(gap)}"
                  for name, gap in self.differences.items()]  # fmt: skip
        return "\n".join(lines)


@dataclass(frozen=True)
class ReferenceImages:
    """COMPARED images: as they are opened (uint8), as the network takes them, and their embeddings."""

    pixels: Tensor
    inputs: Tensor
    expected: Tensor
    origin: str


def export(
    trained: Trained | Run | str | Path,
    to: Sequence[str] | str,
    *,
    out: str | Path,
    licence: str = "other",
    images: Images | None = None,
    with_preprocessing: bool = False,
    show: bool = True,
) -> Exported:
    """Write an encoder into the new folder `out`, with a README.md, for programs without Diptych.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one. to: of `downstream.formats.FORMATS`.
    licence: of the weights, an identifier of the Hugging Face Hub. images: before the folder appears, each file is
    compared with the encoder on 8 of these, in batches of 1 and 3; by default on images that the run has stored, or on
    random ones.
    with_preprocessing: with onnx, also a file that takes uint8 squares (N, S, S, 3), S the size at which they are opened.

    Raises RecipeError for a format that does not support the encoder or lacks its packages, CheckpointError when there
    is no encoder, OutputError for a folder that exists, and where a file gives other embeddings than the encoder.
    """
    out = require_free_folder(Path(out))
    trained = as_trained(trained)
    formats = require_formats([to] if isinstance(to, str) else to, trained)
    if with_preprocessing and "onnx" not in formats:
        raise RecipeError("with_preprocessing writes a second ONNX file: add --to onnx, or leave it out")
    require_licence(licence)
    run = Run(trained.folder) if trained.folder is not None and is_run(trained.folder) else None
    fit = str(run.section("images").get("fit", "crop")) if run else "crop"
    trained = replace(trained, encoder=copy_of(trained.encoder).cpu().float().eval())
    network = trained.encoder
    with ProgressBar("export", show=show) as progress, new_folder(out) as work:
        compared = images_to_compare(trained, images, run)
        differences = {}
        if set(formats) & set(TENSORS):
            progress.say(f"export {WEIGHTS} ({', '.join(name for name in formats if name in TENSORS)}) ...")
            differences |= write_tensors(work, trained, compared, formats=formats, fit=fit)
        if "onnx" in formats:
            progress.say(f"export {ONNX} and run it ...")
            differences |= write_onnx(work, trained, compared, with_preprocessing=with_preprocessing)
        if "torch-export" in formats:
            progress.say(f"export {EXPORTED} and run it ...")
            data = exported_program(network, compared.inputs[:SAMPLE])
            differences[EXPORTED] = difference(open_exported(data), compared.inputs, compared.expected, EXPORTED)
            write_file(work / EXPORTED, data)
        hashes = {path.name: hash_of(path) for path in sorted(work.iterdir())}
        facts = Card(trained.preprocessing, compared.expected.shape[1], formats, fit, licence, trained.built_with,
                     type(network).__name__, hashes, differences, compared.origin, pyramid(network))  # fmt: skip
        write_file(
            work / CARD, card_of(facts, trained.folder if run else None, origin_of(trained)).encode("utf-8", "replace")
        )
    return Exported(out, formats, differences)


def images_to_compare(trained: Trained, images: Images | None, run: Run | None) -> ReferenceImages:
    """Images of the user's, else those that the run keeps, else drawn ones; their embeddings are those of `trained`."""
    expected, side = trained.preprocessing, opened_side(trained.preprocessing)
    pixels, origin = drawn(side), "drawn images"
    if images is not None:
        pixels, origin = some_of(images), "given images"
    elif run is not None and (kept := kept_images(run)) is not None:
        pixels, origin = kept, "images that the run keeps"
    pixels = pixels[torch.arange(COMPARED) % len(pixels)]
    pixels = resized(pixels, side)
    inputs = prepare(pixels, expected.mean, expected.std, expected.size, expected.resize)
    return ReferenceImages(pixels, inputs, trained(pixels), origin)


def drawn(side: int) -> Tensor:
    """Smooth colours with stripes, (COMPARED, 3, side, side) uint8: like photographs, they have more than noise."""
    rng = random_at(0, "export")
    colours = torch.nn.functional.interpolate(
        torch.rand(COMPARED, 3, 4, 4, generator=rng), (side, side), mode="bilinear"
    )
    waves = torch.arange(side) / side * torch.linspace(10, 60, COMPARED)[:, None]
    return (200 * colours + 55 * waves.sin().abs()[:, None, None]).to(torch.uint8)


def some_of(images: Images) -> Tensor:
    """COMPARED of the images, spread over the source; unreadable ones are left out. Raises DataError where none is left."""
    rows = [k * (len(images) - 1) // (COMPARED - 1) for k in range(COMPARED)]
    squares, bad = [], None
    for row in dict.fromkeys(rows):
        try:
            squares.append(images.load(row))
        except BadImage as error:
            bad = error
    if not squares and bad is not None:
        raise bad
    return torch.stack(squares)


def kept_images(run: Run) -> Tensor | None:
    """Images of the run's report, (n, 3, s, s) uint8; None where there are none, or their file is damaged."""
    try:
        originals = read_picture(run.folder, "views")["originals"]
    except CheckpointError:
        return None
    is_right = originals.ndim == 4 and originals.shape[3] == 3 and originals.dtype.name == "uint8" and originals.size
    return torch.from_numpy(originals).permute(0, 3, 1, 2) if is_right else None


def write_tensors(
    work: Path, trained: Trained, compared: ReferenceImages, *, formats: Sequence[str], fit: str
) -> dict[str, float]:
    """Weights, and config.json unless only torchvision reads them; both are opened with timm and compared."""
    save_encoder(work, trained.encoder, trained.preprocessing, origin_of(trained), fit)
    try:
        opened: Any = timm.create_model(f"local-dir:{work}", pretrained=True)
    except REFUSALS as error:
        raise RecipeError(f"timm cannot build this {type(trained.encoder).__name__} again, as it has been changed since "
                          "`diptych.encoder` made it; use --to onnx or --to torch-export") from error  # fmt: skip
    gap = difference(opened.eval(), compared.inputs, compared.expected, WEIGHTS)
    if not {"timm", "transformers"} & set(formats):
        (work / "config.json").unlink()
    return {WEIGHTS: gap}


def write_onnx(
    work: Path, trained: Trained, compared: ReferenceImages, *, with_preprocessing: bool
) -> dict[str, float]:
    """The ONNX files, run by ONNX Runtime and compared."""
    tasks = {ONNX: (trained.encoder, compared.inputs)}
    if with_preprocessing:
        tasks[ONNX_FROM_BYTES] = (
            FromBytes(trained.encoder, trained.preprocessing),
            compared.pixels.permute(0, 2, 3, 1).contiguous(),
        )
    differences = {}
    for name, (program, inputs) in tasks.items():
        data = onnx_program(program.eval(), inputs[:SAMPLE])
        differences[name] = difference(open_onnx(data), inputs, compared.expected, name)
        write_file(work / name, data)
    return differences


def pyramid(network: nn.Module) -> bool:
    """Whether a timm network gives maps of a half, a quarter, ... of its input, as segmentation needs them."""
    info = getattr(network, "feature_info", None)
    steps = [part.get("reduction") for part in info if isinstance(part, dict)] if isinstance(info, list) else []
    return steps == [2, 4, 8, 16, 32]


def origin_of(trained: Trained) -> dict:
    """Where the weights of a published checkpoint come from, without the path on this machine; {} for others."""
    if trained.folder is None:
        return {}
    origin = read_config(encoder_folder(trained.folder))["diptych"].get("origin")
    if not isinstance(origin, dict):
        return {}
    file = origin.get("file")
    return {key: value for key, value in origin.items() if key in ("sha256", "layout")} | (
        {"file": Path(file).name} if isinstance(file, str) else {}
    )


def hash_of(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
