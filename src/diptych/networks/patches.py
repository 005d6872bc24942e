"""An encoder whose weights are dictionaries of patches, computed from images without gradients (`training.quick`).

Coates, Lee and Ng 2011 ("An Analysis of Single-Layer Networks in Unsupervised Feature Learning") describe the first layer:
whitened patches, a dictionary by spherical k-means, soft thresholds, pooling. Here a second dictionary describes 3x3
neighbourhoods of the first one's responses, both codes are reduced and whitened, and an image and its mirror image are
averaged. All of it is convolutions, pooling and linear layers. N: images, S: their size, E: width of the embedding.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.base.ranges import Range, Side, Words, checked

Channels = Annotated[int, Range(1, 2**15)]
CONTRAST = 10 / 255**2  # added to the variance of a patch, so that flat patches do not become noise
SMALLEST_SIZE = 9  # pixels: 4 x 4 patches of 6 pixels
ROWS_PER_BLOCK = 16  # images at a time: their responses fit into the cache (1.57 ms an image; 2.23 with 32)
SMALLEST_ROOT = 1e-6  # the slope of a square root is infinite at 0


class PatchDictionary(nn.Module):
    """Images (N, 3, S, S) in [0, 1] -> embedding (N, E) of rows of length about 1, where E = `num_features`.

    size: S in pixels. patch, stride: of the first layer's patches. filters: whitened dimensions of a patch. entries,
    second_entries: of the two dictionaries. reduced, gathered: dimensions of a pooled position, and of a 3x3
    neighbourhood of them, after whitening. first_width, second_width: dimensions of the two codes. twins_width: of a
    linear map of both codes, which stands beside them (0: none). keep: "both" codes and map, "codes" or "twins".
    mirrored: average the codes of an image and its mirror image. Raises RecipeError for a size below `SMALLEST_SIZE`.
    """

    @checked
    def __init__(
        self,
        size: Side = 32,
        patch: Side = 6,
        stride: Side = 1,
        filters: Channels = 48,
        entries: Channels = 512,
        reduced: Channels = 64,
        gathered: Channels = 192,
        second_entries: Annotated[int, Range(1, 2**17)] = 2048,
        first_width: Channels = 384,
        second_width: Channels = 384,
        twins_width: Annotated[int, Range(0, 2**15)] = 0,
        keep: Annotated[str, Words("both|codes|twins")] = "both",
        mirrored: bool = True,
    ):
        super().__init__()
        positions = (size - patch) // stride + 1
        pooling = max(1, positions // 9)  # 9 x 9 positions or a few more remain for the second layer
        pooled = positions // pooling
        if pooled < 4:
            raise RecipeError(f"patches of {patch} pixels need images of at least {SMALLEST_SIZE} pixels, not {size}")
        self.size, self.patch, self.stride, self.pooling, self.mirrored = size, patch, stride, pooling, mirrored
        self.whiten = nn.Conv2d(
            3, filters, patch, stride, bias=False
        )  # sums to 0 over a patch, so that its mean drops out
        self.offset = nn.Parameter(torch.zeros(filters, 1, 1))  # not divided by the contrast, as a bias would be
        self.dictionary = nn.Conv2d(filters, entries, 1)  # the bias is minus the threshold
        self.reduce = nn.Conv2d(entries, reduced, 1)
        self.gather = nn.Conv2d(reduced, gathered, 3)
        self.second_dictionary = nn.Conv2d(gathered, second_entries, 1)
        self.first_pool, self.second_pool = even_pooling(positions, 3), even_pooling(pooled - 2, 2)
        self.first_code = nn.Linear(9 * entries, first_width)
        self.second_code = nn.Linear(4 * second_entries, second_width)
        self.keep, codes_width = keep, first_width + second_width
        self.twins = nn.Linear(codes_width, twins_width) if twins_width else None
        self.num_features = codes_width * (keep != "twins") + twins_width

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or self.training:
            return self.embed(images)
        return torch.cat([self.embed(block) for block in images.split(ROWS_PER_BLOCK)])

    def embed(self, images: Tensor) -> Tensor:
        """The embeddings of all images at once; memory grows with their number."""
        joined = self.joined(images)
        if self.twins is None:
            return joined
        mapped = unit(self.twins(joined))
        return mapped if self.keep == "twins" else torch.cat([joined, mapped], 1)

    def joined(self, images: Tensor) -> Tensor:
        """Both reduced codes, each of length 1, side by side: (N, first_width + second_width)."""
        return self.join(*self.codes(images))

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Pooled responses of both layers -> both reduced codes, each of length 1, side by side."""
        return torch.cat([unit(self.first_code(first)), unit(self.second_code(second))], 1)

    def codes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled responses of both layers, (N, 9 * entries) and (N, 4 * second_entries)."""
        first, second = self.pooled_responses(images)
        if self.mirrored:
            first_mirrored, second_mirrored = self.pooled_responses(images.flip(3))
            first, second = (first + first_mirrored) / 2, (second + second_mirrored) / 2
        return first, second

    def pooled_responses(self, images: Tensor) -> tuple[Tensor, Tensor]:
        responses = self.responses(images)
        second = self.second_responses(self.pool_positions(responses))
        return rooted(F.avg_pool2d(responses, *self.first_pool)), rooted(F.avg_pool2d(second, *self.second_pool))

    def patches(self, images: Tensor) -> Tensor:
        """Whitened patches of length 1, (N, filters, P, P): contrast-normalised, so that light and shadow do not matter."""
        grey, squares = images.mean(1, keepdim=True), images.square().mean(1, keepdim=True)
        mean = F.avg_pool2d(grey, self.patch, self.stride)
        variance = (F.avg_pool2d(squares, self.patch, self.stride) - mean * mean).clamp_min(0)
        return unit(self.whiten(images) * torch.rsqrt(variance + CONTRAST) + self.offset)

    def responses(self, images: Tensor) -> Tensor:
        """(N, entries, P, P): how far each patch's similarity to each entry is above the threshold."""
        return F.relu(self.dictionary(self.patches(images)))

    def pool_positions(self, responses: Tensor) -> Tensor:
        return rooted(F.avg_pool2d(responses, self.pooling, self.pooling), flatten=False)

    def neighbourhoods(self, pooled: Tensor) -> Tensor:
        """Whitened 3x3 neighbourhoods of pooled responses, of length 1."""
        return unit(self.gather(unit(self.reduce(pooled))))

    def second_responses(self, pooled: Tensor) -> Tensor:
        return F.relu(self.second_dictionary(self.neighbourhoods(pooled)))


def unit(vectors: Tensor) -> Tensor:
    """Scaled to length 1 along dimension 1."""
    return F.normalize(vectors, dim=1)


def rooted(pooled: Tensor, *, flatten: bool = True) -> Tensor:
    """Square roots, which make the frequencies of rare and of common entries comparable."""
    roots = pooled.clamp_min(SMALLEST_ROOT).sqrt()
    return roots.flatten(1) if flatten else roots


def even_pooling(positions: int, cells: int) -> tuple[int, int]:
    """Kernel and stride of a pooling from `positions` to `cells` per side that reads every position."""
    stride = max(1, positions // cells)
    return positions - (cells - 1) * stride, stride
