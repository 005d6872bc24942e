"""A function of tensors as one launch: a graph of all that it launches, recorded once and replayed (CUDA graphs)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from diptych.base.errors import DiptychError

WARM_UP = 3  # calls before the recording: libraries start, memory is found, an optimizer begins to remember


class CudaGraph:
    """torch's, behind the two methods that `Captured` needs."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    @contextmanager
    def record(self) -> Iterator[None]:
        """Records what is launched inside, and launches nothing."""
        # Threads that decode images ask for pinned memory meanwhile: only this thread must not.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            yield

    def replay(self) -> None:
        self.graph.replay()


def new_graph(device: torch.device) -> CudaGraph:
    return CudaGraph()


class Captured:
    """Calls `function` as it is a few times, then records it, then replays what was recorded, on other numbers.

    function: of tensors on one device to tensors there. Nothing that it does may depend on a number of the CPU, which would be
    frozen, and no shape on a number of the device. Its results are overwritten by the next call. Inputs of another shape than
    those of the recording are computed without it, and so is another tensor in the place of one that `stays`.

    failed: called with the reason where recording fails; the function is then called as it is for good.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], failed: Callable[[str], object]):
        self.function, self.failed = function, failed
        self.calls, self.given_up = 0, False
        self.replayed = False  # whether the last call ran nothing of `function`
        self.graph: CudaGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        self.calls, self.replayed = self.calls + 1, self.graph is not None and self.fits(inputs)
        if self.given_up or self.calls <= WARM_UP:
            with beside(inputs[0].device):
                return self.function(*inputs)
        if self.graph is None:
            self._record(inputs)
        if self.graph is None or not self.fits(inputs):
            return self.function(*inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine is not given:
                mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.outputs

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        return len(inputs) == len(self.inputs) and all(
            given is mine if is_static(mine) else (given.shape, given.dtype) == (mine.shape, mine.dtype)
            for given, mine in zip(inputs, self.inputs, strict=True)
        )

    def _record(self, inputs: Sequence[Tensor]) -> None:
        # Clones keep the layout. What always lies in the same place, such as what another graph returns, is taken as it is.
        self.inputs = [x if is_static(x) else x.clone() for x in inputs]
        graph = new_graph(inputs[0].device)
        try:
            with graph.record():
                self.outputs = self.function(*self.inputs)
        except (RuntimeError, DiptychError) as error:
            self.given_up = True
            self.failed(str(error).strip().splitlines()[0])
            return
        for output in self.outputs:
            stays(output)
        self.graph = graph


def stays(tensor: Tensor) -> None:
    """Promise that the tensor stays where it is while recordings are replayed: they read it there, without a copy."""
    tensor.is_static = True  # pyrefly: ignore[missing-attribute]


def is_static(tensor: Tensor) -> bool:
    return getattr(tensor, "is_static", False)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """On a stream of its own, as what is recorded later must have run before (torch's rule); the caller's goes on after it."""
    if device.type != "cuda":
        yield
        return
    stream, side = torch.cuda.current_stream(device), side_stream(device)
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        yield
    stream.wait_stream(side)
