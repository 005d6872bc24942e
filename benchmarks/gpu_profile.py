"""What the device does in a few steps of a run: launches, how long it computes, where that time goes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType

from diptych.training.learner import Learner

FIRST, STEPS, SHOWN = (
    6,
    10,
    12,
)  # steps before it, for graphs are recorded in the fourth; steps of it; operations that are listed


class Profiled:
    """Inside, ten steps of a training are profiled, from the seventh on: graphs are recorded in the fourth.

    On a CPU, whose operations stand in for launches, one step, the second.
    """

    def __init__(self, device: str):
        self.on_gpu = device == "cuda"
        self.first, self.count = (6, 10) if self.on_gpu else (1, 1)
        kinds = torch.profiler.ProfilerActivity
        self.profiler = torch.profiler.profile(activities=[kinds.CUDA if self.on_gpu else kinds.CPU])
        self.steps = 0
        self.took: list[tuple[str, float, float]] = []  # name, start and end in microseconds, of what the device did

    def __enter__(self) -> "Profiled":
        self.step = take = Learner.step

        def counted(learner: Learner, *arguments: Any, **options: Any) -> Any:
            if self.steps in (self.first, self.first + self.count):
                self.turn(start=self.steps == self.first)
            self.steps += 1
            return take(learner, *arguments, **options)

        Learner.step = counted  # pyrefly: ignore[bad-assignment]
        return self

    def __exit__(self, *error: object) -> None:
        Learner.step = self.step
        if self.first < self.steps <= self.first + self.count:
            self.turn(start=False)

    def turn(self, *, start: bool) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        if start:
            self.profiler.start()
            return
        self.profiler.stop()
        kind = DeviceType.CUDA if self.on_gpu else DeviceType.CPU
        events = [event for event in self.profiler.events() or () if event.device_type == kind]
        self.took = [(event.name, event.time_range.start, event.time_range.end) for event in events]

    @property
    def profiled_steps(self) -> int:
        return max(0, min(self.steps - self.first, self.count))

    def summary(self) -> dict[str, Any]:
        """Per step: launches, microseconds between the first and the last, the share of them that is computed in, by name."""
        if not self.took:
            return {}
        spans = [(start, end) for _, start, end in self.took]
        whole = max(end for _, end in spans) - min(start for start, _ in spans)
        by_name: dict[str, float] = {}
        for name, start, end in self.took:
            by_name[name] = by_name.get(name, 0.0) + end - start
        largest = sorted(by_name.items(), key=lambda pair: -pair[1])[:SHOWN]
        steps = self.profiled_steps
        return {
            "launches": len(self.took) / steps,
            "microseconds": whole / steps,
            "busy": covered(spans) / whole if whole else 0.0,
            "largest": {name[:120]: round(time / steps, 1) for name, time in largest},
        }

    def in_words(self) -> str:
        numbers = self.summary()
        what = "launches" if self.on_gpu else "operations"
        return f"{numbers['launches']:.0f} {what} a step, busy {100 * numbers['busy']:.0f} %" if numbers else ""


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals: kernels of several streams overlap."""
    total, reach = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total
