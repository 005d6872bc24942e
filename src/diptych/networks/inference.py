"""From images to embeddings: (M, 3, H, W) uint8 to (M, E) float32, by an encoder and the preprocessing that it expects."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.errors import DataError, RecipeError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RAW_SIZE = 32  # pixels: a larger image is shrunk before its pixels are compared, 3 x 32 x 32 numbers are enough


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder expects: square RGB images of `size` pixels in [0, 1], minus `mean`, over `std` (per channel).

    resize: pixels of the shorter side before the middle `size` are cut out, as 256 for 224; None: `size` itself.
    """

    size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resize: int | None = None

    @property
    def opened(self) -> int:
        """At which size, in pixels, the squares are best read: everything after is then a crop."""
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
    """The embeddings of images as (M, E) float32 on `output_device`, in their order.

    pixels: (M, 3, H, W) uint8, or an iterable of such batches when not all fit into memory at once. Each image is scaled
    to [0, 1], resized and cropped in the middle where its size differs, and normalized, as `preprocessing` says. The
    encoder is in evaluation mode meanwhile, and each of its modules has its own mode back afterwards. device: where to
    compute; the encoder is moved there and stays (default: where it is). precision: "float32" or "bfloat16" (autocast).
    progress: called with the images done so far.

    Raises DataError for no images or ones that are not uint8 (M, 3, H, W), RecipeError for an unknown precision or an
    encoder that does not give (n, E).
    """
    require_precision(precision)
    if device is not None:
        encoder.to(device)
    parameter, p = next(encoder.parameters(), torch.empty(0)), preprocessing
    vectors, done = [], 0
    with (
        _evaluating(encoder),
        torch.autocast(parameter.device.type, PRECISIONS[precision], precision != "float32"),
    ):
        for batch in _batches(pixels, batch_size):
            images = prepare(batch.to(parameter.device), p.mean, p.std, p.size, p.resize).to(parameter.dtype)
            vector = encoder(images.contiguous(memory_format=torch.channels_last))
            if vector.ndim != 2 or len(vector) != len(batch):
                raise RecipeError(
                    f"the encoder gives {tuple(vector.shape)} for {len(batch)} images; embeddings are (n, E)"
                )
            vectors.append(vector.float().to(output_device))  # to another device: waits for the computing one
            done += len(batch)
            if progress is not None:
                progress(done)
    if not done:
        raise DataError("there are no images to embed")
    return torch.cat(vectors)


def require_precision(precision: str) -> None:
    """Raises RecipeError for a number format that an encoder cannot compute in."""
    if precision not in PRECISIONS:
        raise RecipeError(f"precision {precision!r} is unknown; it is one of {', '.join(PRECISIONS)}")


def raw_pixels(
    pixels: Tensor | Iterable[Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    size: int = RAW_SIZE,
    *,
    output_device: torch.device | str = "cpu",
) -> Tensor:
    """The baseline without any network: the normalized pixels of each image as one vector, (M, 3 * s * s) float32.

    Images of other sizes than s = min(size, their shorter side) are resized and cropped: by default,
    everything above 32 pixels is shrunk to 32, so that the baseline of large images stays affordable. Raises
    DataError as `embeddings`.
    """
    rows = [
        prepare(batch, mean, std, min(size, *batch.shape[2:])).flatten(1).to(output_device)
        for batch in _batches(pixels, 4096)
    ]
    if not rows:
        raise DataError("there are no images to flatten")
    return torch.cat(rows)


def prepare(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], size: int | None = None, resize: int | None = None
) -> Tensor:
    """(n, 3, H, W) uint8 as the encoder wants it: (n, 3, size, size) float32, normalized; without `size`, (n,
    3, H, W).

    The shorter side is resized to `resize` pixels (`size` unless given; bilinear, antialiased: Pillow's way) and
    the middle is kept.
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
    return (images - images.new_tensor(mean).view(1, -1, 1, 1)) / images.new_tensor(std).view(1, -1, 1, 1)


def _batches(pixels: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    for batch in pixels.split(batch_size) if isinstance(pixels, Tensor) else pixels:
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            raise DataError(f"images to embed are uint8 (n, 3, H, W); these are {batch.dtype} {tuple(batch.shape)}")
        if len(batch):
            yield batch


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again: a part that was frozen on purpose stays
    frozen."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
