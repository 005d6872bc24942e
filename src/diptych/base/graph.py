"""A function of tensors as one launch: a graph of all that it launches, recorded once and replayed (CUDA graphs)."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from diptych.base.errors import DiptychError

WARM_UP = 3  # calls before the recording: libraries start, memory is found, an optimizer begins to remember


class CudaGraph:
    """torch's, behind the two methods that `Captured` needs."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()

    @contextmanager
    def record(self) -> Iterator[None]:
        """Records what is launched inside, and launches nothing. Where that fails, the device is as before."""
        stream = torch.cuda.current_stream(self.device)
        try:
            # Threads that decode images ask for pinned memory meanwhile: only this thread must not.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                yield
        except BaseException:
            torch.cuda.set_stream(stream)  # torch stays on the recording's
            renew_generator(self.device)
            raise

    def replay(self) -> None:
        self.graph.replay()


def new_graph(device: torch.device) -> CudaGraph:
    return CudaGraph(device)


def renew_generator(device: torch.device) -> None:
    """After a recording that failed, torch (2.11) takes the GPU's random numbers for those of a recording for good, and refuses
    to draw any. Others of the same seed take their place."""
    generator = torch.cuda.default_generators[device.index or 0]
    fresh = torch.Generator(device).manual_seed(generator.initial_seed())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


@contextmanager
def waits_noticed(device: torch.device) -> Iterator[list[str]]:
    """A list of the places, file and line, that wait for the device inside: they spoil a recording, and what comes after it.

    Only this thread may warn meanwhile. What torch does not report: copies from memory that is not pinned.
    """
    places: list[str] = []
    if device.type != "cuda":
        yield places
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in said:
        message = str(warning.message)
        if message.startswith("called a synchronizing"):
            places.append(f"{Path(warning.filename).name}, line {warning.lineno}")
        elif not message.startswith("Synchronization debug mode is a prototype"):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


class Captured:
    """Calls `function` as it is a few times, then records it, then replays what was recorded, on other numbers.

    function: of tensors on one device to tensors there. Nothing that it does may depend on a number of the CPU, which would be
    frozen, and no shape on a number of the device. Its results are overwritten by the next call. Inputs of another shape than
    those of the recording are computed without it, and so is another tensor in the place of one that `stays`.

    failed: called with the reason where the function waits for the device, or recording fails; it is then called as it is for
    good. undo: called before that where recording fails, since the function has run and launched nothing.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Tensor]],
        failed: Callable[[str], object],
        undo: Callable[[], object] = lambda: None,
    ):
        self.function, self.failed, self.undo = function, failed, undo
        self.calls, self.given_up = 0, False
        self.replayed = False  # whether the last call ran nothing of `function`
        self.graph: CudaGraph | None = None
        self.inputs: list[Tensor] = []
        self.outputs: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        self.calls, self.replayed = self.calls + 1, self.graph is not None and self.fits(inputs)
        if self.given_up or self.calls < WARM_UP:
            return self._as_it_is(inputs)
        if self.calls == WARM_UP:
            return self._on_trial(inputs)
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

    def _as_it_is(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with beside(inputs[0].device):
            return self.function(*inputs)

    def _on_trial(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The last call before the recording, which is not begun where it would fail."""
        with waits_noticed(inputs[0].device) as places:
            outputs = self._as_it_is(inputs)
        if places:
            self.given_up = True
            self.failed(f"the device is waited for ({', '.join(dict.fromkeys(places))})")
        return outputs

    def _record(self, inputs: Sequence[Tensor]) -> None:
        # Clones keep the layout. What always lies in the same place, such as what another graph returns, is taken as it is.
        self.inputs = [x if is_static(x) else x.clone() for x in inputs]
        graph = new_graph(inputs[0].device)
        try:
            with graph.record():
                self.outputs = self.function(*self.inputs)
        except (RuntimeError, DiptychError) as error:
            self.given_up = True
            self.undo()
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
