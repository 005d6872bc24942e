"""All views of a batch in one pass, in the form for a GPU. N images, V views, M = V N rows, view by view."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.base.arithmetic import any_order, float32_as
from diptych.base.device import upload
from diptych.base.graph import Captured
from diptych.base.random_at import Draw
from diptych.views import masked, masked_colour
from diptych.views.geometry import RandomResizedCrop
from diptych.views.keras_masked import KERAS_TWINS
from diptych.views.masked import Twin
from diptych.views.view import View, flips_of_crops

TWINS = masked.TWINS | masked_colour.TWINS | KERAS_TWINS
VALUES_PER_BLOCK = 2**26  # pixel values that are worked on at a time, 256 MiB: 21,000 rows of 32 pixels, 445 of 224


class Link(NamedTuple):
    """An operation of a view. place: its number there; flip: the number of the flip that a crop includes."""

    twin: Twin
    step: Any
    place: int
    flip: int | None

    @property
    def kind(self) -> tuple:
        return type(self.step), self.twin.key(self.step)

    def pack(self, draws: Sequence[Draw], height: int, width: int) -> Tensor:
        draw = dict(draws[self.place])
        if self.flip is not None:
            draw["mirrored"] = draws[self.flip]["chosen"]
        columns = self.twin.pack(self.step, draw, height, width)
        return torch.cat([column.float().view(len(column), -1) for column in columns], 1)


class Chain:
    """Applies several views in one pass: their operations are the same, up to the draws, or leave some rows as they are.

    `pack` turns draws into one float32 tensor on the CPU, `apply` images and that tensor on their device into views, equal to
    those of `View.apply` to 1e-5. No shape depends on a draw, no other number of the CPU is needed, nothing is waited for.
    links: the operations of the longest view. parts: of each view, its own operation for each link or None.
    """

    def __init__(self, links: list[Link], parts: list[list[Link | None]]):
        self.links, self.parts = links, parts
        self.run: Callable[..., Sequence[Tensor]] = self.apply

    def pack(self, draws: Sequence[Sequence[Draw]], count: int, height: int, width: int) -> Tensor:
        """(M, k) from the draws of each view, for `count` images of this size."""
        columns = [torch.zeros(len(self.parts) * count, 0)]
        for index, link in enumerate(self.links):
            if link.twin.width:
                neutral = torch.tensor(link.twin.neutral or ())
                rows = [neutral.expand(count, -1) if part is None else part.pack(of_view, height, width)
                        for part, of_view in zip((part[index] for part in self.parts), draws, strict=True)]  # fmt: skip
                columns.append(torch.cat(rows))
            height = width = getattr(link.step, "size", None) or height
        return torch.cat(columns, 1)

    def apply(self, images: Tensor, packed: Tensor, places: Tensor | None = None) -> list[Tensor]:
        """uint8 (N, 3, H, W), and `pack`'s result on their device -> (N, 3, S, S) float32 in channels_last, one a view.

        places: (N,) int64, of the batch among `images`; None for all of them.
        """
        images = images if places is None else images[places]
        views, count = len(self.parts), len(images)
        order = nullcontext() if any(adds_three(link.step) for link in self.links) else any_order()
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False), float32_as("ieee"), order:
            most = max(1, VALUES_PER_BLOCK // (views * images[:1].numel()))
            blocks = zip(images.split(most), packed.view(views, count, -1).split(most, 1), strict=True)
            passed = [self._pass(*block) for block in blocks]
            return [part[0] if len(part) == 1 else torch.cat(part) for part in zip(*passed, strict=True)]

    def _pass(self, images: Tensor, packed: Tensor) -> tuple[Tensor, ...]:
        shape = (len(self.parts), *images.shape)
        rows = torch.mul(images.expand(shape), 1 / 255, out=torch.empty(shape, device=images.device)).flatten(0, 1)
        columns = packed.flatten(0, 1).split([link.twin.width for link in self.links], 1)
        for link, numbers in zip(self.links, columns, strict=True):
            rows = link.twin.run(link.step, rows, numbers)
        return rows.contiguous(memory_format=torch.channels_last).split(len(images))


def adds_three(step: Any) -> bool:
    """Whether an operation's matrices add up more than two taps of a pixel other than 0: beyond a border, cubic taps without
    antialias repeat it. All others meet at most once, where an image is reflected."""
    return isinstance(step, RandomResizedCrop) and step.interpolation == "bicubic" and not step.antialias


class Together:
    """Makes all views of a batch: on a CPU one after the other, on another device in as few passes as `chains` allows."""

    def __init__(self, views: Sequence[View]):
        self.views, self.chains = views, chains(views)

    def capture(self, failed: Callable[[str], object]) -> None:
        """Passes run as graphs from now on, see `Captured`: views are overwritten by those of the next batch."""
        for _, chain in self.chains or ():
            chain.run = Captured(chain.apply, failed)

    def apply(self, images: Tensor, draws: Sequence[list[Draw]], places: Tensor | None = None) -> list[Tensor]:
        """(N, 3, H, W) uint8 and the draws of each view -> (N, 3, S, S) float32 on the same device, one a view.

        places: (N,) int64 on that device, of the batch among `images`; None for all of them.
        """
        if images.device.type == "cpu" or self.chains is None:
            batch = images if places is None else images[places]
            return [view.apply(batch, draw) for view, draw in zip(self.views, draws, strict=True)]
        given = () if places is None else (places,)
        views: dict[int, Tensor] = {}
        for numbers, chain in self.chains:
            packed = chain.pack([draws[number] for number in numbers], len((images, *given)[-1]), *images.shape[2:])
            views |= zip(numbers, chain.run(images, upload(packed, images.device), *given), strict=True)
        return [views[number] for number in range(len(self.views))]


def chains(views: Sequence[View]) -> list[tuple[list[int], Chain]] | None:
    """As few chains as cover the views, each with the numbers of its views; None where an operation has no other form."""
    groups: list[tuple[list[Link], dict[int, list[Link | None]]]] = []
    sequences = [links_of(view) for view in views]
    if any(links is None for links in sequences):
        return None
    for number, links in sorted(enumerate(sequences), key=lambda pair: -len(pair[1] or ())):
        for longest, parts in groups:
            if (part := aligned(links or [], longest)) is not None:
                parts[number] = part
                break
        else:
            groups.append((links or [], {number: list(links or [])}))
    return [(sorted(parts), Chain(longest, [parts[number] for number in sorted(parts)])) for longest, parts in groups]


def links_of(view: View) -> list[Link] | None:
    """The operations of a view, without flips that crops include; None where one has no twin."""
    flips = flips_of_crops(view.operations, tuple(kind for kind, twin in TWINS.items() if twin.includes_flip))
    if any(type(step) not in TWINS for step in view.operations):
        return None
    return [Link(TWINS[type(step)], step, place, flips.get(place))
            for place, step in enumerate(view.operations) if place not in flips.values()]  # fmt: skip


def aligned(links: list[Link], longest: list[Link]) -> list[Link | None] | None:
    """`links` beside those of `longest`, None where one is missing that can be neutral; None if they do not go together."""
    part: list[Link | None] = []
    remaining = list(links)
    for link in longest:
        if remaining and remaining[0].kind == link.kind:
            part.append(remaining.pop(0))
        elif link.twin.neutral is not None:
            part.append(None)
        else:
            return None
    return None if remaining else part
