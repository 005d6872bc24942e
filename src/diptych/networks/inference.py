"""From images to embeddings: (M, 3, H, W) uint8 to (M, E) float32, by an encoder and the preprocessing that it expects."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.arithmetic import float32_as
from diptych.base.device import upload
from diptych.base.errors import DataError, RecipeError

PRECISIONS = ("float32", "tf32", "bfloat16")
RAW_SIZE = 32  # pixels: larger images are shrunk to this size before their pixels are compared


@dataclass(frozen=True)
class Preprocessing:
    """The input of an encoder: square RGB images of `size` pixels in [0, 1], minus `mean`, over `std` (per channel).

    resize: pixels of the shorter side before the centre crop of `size`, such as 256 for 224; None: `size`.
    """

    size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None

    @property
    def opened(self) -> int:
        """The size in pixels at which squares should be read, so that only a crop remains to be done."""
        return self.resize or self.size


@torch.no_grad()
def embeddings(
    encoder: nn.Module,
    pixels: Tensor | Iterable[Tensor],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 512,
    device: torch.device | str | None = None,
    output_device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Embed images: (M, E) float32 on `output_device`, in their order.

    pixels: (M, 3, H, W) uint8, or an iterable of such batches when not all fit into memory at once. Each image is scaled
    to [0, 1], resized and centre-cropped if its size differs, and normalized according to `preprocessing`. The encoder
    runs in evaluation mode; afterwards the mode of each of its modules is restored. device: the encoder is moved there
    and remains there (default: its current device). precision: "float32", "tf32" (a GPU multiplies with 10 bits) or "bfloat16"
    (autocast). progress: called with the number of images embedded so far.

    Raises DataError for no images or ones that are not uint8 (M, 3, H, W), RecipeError for an unknown precision or an
    encoder that does not give (n, E).
    """
    require_precision(precision)
    if device is not None:
        encoder.to(device)
    parameter, p = next(encoder.parameters(), torch.empty(0)), preprocessing
    vectors, done = [], 0
    with (
        evaluating(encoder),
        float32_as("tf32" if precision == "tf32" else "ieee"),
        torch.autocast(parameter.device.type, torch.bfloat16, precision == "bfloat16"),
    ):
        for batch in _batches(pixels, batch_size):
            images = prepare(batch.to(parameter.device), p.mean, p.std, p.size, p.resize).to(parameter.dtype)
            vector = encoder(images.contiguous(memory_format=torch.channels_last))
            if vector.ndim != 2 or len(vector) != len(batch):
                raise RecipeError(
                    f"the encoder gives {tuple(vector.shape)} for {len(batch)} images; embeddings are (n, E)"
                )
            # A copy to another device waits for the computation: that of the batch before, while this one goes on.
            if vectors:
                vectors.append(vectors.pop().to(output_device))
            vectors.append(vector.float())
            done += len(batch)
            if progress is not None:
                progress(done)
    if not done:
        raise DataError("there are no images to embed")
    return torch.cat([*vectors[:-1], vectors[-1].to(output_device)])


def require_precision(precision: str) -> None:
    """Raises RecipeError for an unknown precision."""
    if precision not in PRECISIONS:
        raise RecipeError(f"precision {precision!r} is unknown; it is one of {', '.join(PRECISIONS)}")


def centred(expected: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for the baseline of raw pixels: the encoder's own, or 0.5 and 0.25 where it takes plain [0, 1].

    Pixels that are not centred point in almost one direction, which would make kNN by cosine needlessly bad.
    """
    return (expected.mean, expected.std) if any(expected.mean) else ((0.5,) * 3, (0.25,) * 3)


def raw_pixels(
    pixels: Tensor | Iterable[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    size: int = RAW_SIZE,
    *,
    output_device: torch.device | str = "cpu",
) -> Tensor:
    """The baseline without a network: the normalized pixels of each image as one vector, (M, 3 * s * s) float32.

    s = min(size, shorter side of the images). Images of another size are resized and cropped: by default, images above
    32 pixels are shrunk to 32, which limits the cost of the baseline. Raises DataError as `embeddings` does.
    """
    rows = [
        prepare(batch.to(output_device), mean, std, min(size, *batch.shape[2:])).flatten(1)
        for batch in _batches(pixels, 4096)
    ]
    if not rows:
        raise DataError("there are no images to flatten")
    return torch.cat(rows)


def prepare(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], size: int | None = None, resize: int | None = None
) -> Tensor:
    """Preprocess (n, 3, H, W) uint8 for an encoder: (n, 3, size, size) float32, normalized; without `size`, (n, 3, H, W).

    The shorter side is resized to `resize` pixels (default `size`; bilinear with antialias, as in Pillow), and the centre
    is cropped.
    """
    images = pixels.float() / 255
    height, width = images.shape[2:]
    if size is not None and (height, width, resize or size) != (size, size, size):
        scale = (resize or size) / min(height, width)
        shape = max(size, round(height * scale)), max(size, round(width * scale))
        if shape != (height, width):
            images = F.interpolate(images, shape, mode="bilinear", align_corners=False, antialias=True)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        images = images[:, :, top : top + size, left : left + size]
    shift, scale = (upload(torch.tensor(channels, dtype=images.dtype), images.device).view(1, -1, 1, 1)
                    for channels in (mean, std))  # fmt: skip
    return (images - shift) / scale


def resized(pixels: Tensor, size: int) -> Tensor:
    """Squares (n, 3, S, S) uint8 at another size, rounded to uint8: what `embeddings` makes of them, without normalization."""
    if pixels.shape[2:] == (size, size):
        return pixels
    return (prepare(pixels, (0.0,) * 3, (1.0,) * 3, size) * 255).round().clamp(0, 255).to(torch.uint8)


def _batches(pixels: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    for batch in pixels.split(batch_size) if isinstance(pixels, Tensor) else pixels:
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise DataError(f"images to embed must be uint8 (n, 3, H, W); these are {batch.dtype} {tuple(batch.shape)}")
        if len(batch):
            yield batch


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards the mode of each module is restored, so that frozen parts remain
    frozen."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
