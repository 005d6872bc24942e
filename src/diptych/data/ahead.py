"""Batches on their way to a device: each is copied while the one before it is computed on."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Other = TypeVar("Other")


class Copies:
    """Copies of batches to `device`, on a GPU beside its computation, on a stream of their own.

    They start from pinned memory, which torch gives out anew when its copy has ended. The CPU waits for none of them.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: Tensor) -> "tuple[Tensor, torch.Event | None]":
        """The batch on the device, and what happens there when it has arrived."""
        if self.stream is None:
            return batch.to(self.device, non_blocking=True), None
        with torch.cuda.stream(self.stream):
            return batch.to(self.device, non_blocking=True), self.stream.record_event()

    def end(self, copy: Tensor, arrival: "torch.Event | None") -> Tensor:
        """The copy, for the stream that computes: what is launched there from now on comes after it."""
        if arrival is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(arrival)
            copy.record_stream(computing)  # its memory is free when the computation has passed it
        return copy


def copied_ahead(batches: Iterable[tuple[Other, Tensor]], device: torch.device) -> Iterator[tuple[Other, Tensor]]:
    """(anything, a batch on the CPU) -> (the same, the batch on `device`), in order; two batches lie there at a time.

    A batch is yielded when the next one is on its way. A CPU gets the batches as they are, one by one.
    """
    if device.type == "cpu":
        yield from batches
        return
    copies, on_the_way = Copies(device), []
    for other, batch in batches:
        on_the_way.append((other, copies.begin(batch)))
        if len(on_the_way) == 2:
            first, copy = on_the_way.pop(0)
            yield first, copies.end(*copy)
    for first, copy in on_the_way:
        yield first, copies.end(*copy)
