"""What keeps a step whose loss or gradient is not finite from moving anything, without a wait for the device."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diptych.base.device import held_bytes
from diptych.methods import Method

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size of an element in bytes


class Guard:
    """Remembers before a step what the step will move, and puts it back when the step turns out not to be fine.

    On a CPU it costs nothing to read the flag: the update is left out, and the buffers, which the forward pass has moved
    already, are put back. On a GPU the update is made, and undone by arithmetic with the flag. An optimizer that skips such a
    step itself (`training.fused`) leaves to the guard what it does not train: buffers, and weights that follow others. Of any
    other one all that moves is copied, weights and the optimizer's memory too.
    """

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, undoes: bool, optimizer_skips: bool = False):
        self.method, self.optimizer, self.undoes, self.optimizer_skips = method, optimizer, undoes, optimizer_skips
        if undoes:
            held_bytes["weights and gradients"] = 2 * sum(p.nbytes for p in method.parameters())
        self.copies: list[Tensor] = []
        # Of each step since `settle`: the optimizer's dicts, and what they held.
        self.memories: list[list[tuple[dict, dict]]] = []

    def note(self) -> None:
        """Remember the host's numbers before a step."""
        if self.undoes:
            self.memories.append([(memory, held(memory)) for memory in self.memory()])

    def remember(self) -> None:
        """Copy aside what the step that follows may move."""
        tensors = self.moved()
        if [t.shape for t in tensors] != [t.shape for t in self.copies]:
            # The first step, or the optimizer remembers more than before.
            self.copies = [torch.empty_like(t) for t in tensors]
        copy(tensors, self.copies)

    @contextmanager
    def update(self, fine: Tensor) -> Iterator[bool]:
        """Inside, update where it yields True; afterwards nothing has moved unless `fine`, a 0-d flag on the device."""
        if not self.undoes:
            moves = self.wait(fine)
            if not moves:
                copy(self.copies, self.moved())
            yield moves
            return
        yield True
        tensors = self.moved()
        if len(tensors) == len(self.copies):
            undo_unless(fine, tensors, self.copies)
        elif not self.wait(fine):  # the optimizer has begun to remember something: at its first step, as a rule
            self.put_back(self.memories[-1])
            copy(self.copies, self.moved())

    def settle(self, steps: int = 0) -> None:
        """After a look: of the last `steps`, which were not fine, undo what the optimizer counts in numbers of the host."""
        if steps and self.memories:
            self.put_back(self.memories[-steps])
        self.memories.clear()

    def moved(self) -> list[Tensor]:
        """All tensors on the device that a step moves, in one order; without `undoes`, those that a forward pass moves."""
        buffers = list(self.method.buffers())
        if not self.undoes:
            return buffers
        if self.optimizer_skips:
            trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
            return [*buffers, *(p.data for p in self.method.parameters() if id(p) not in trained)]
        remembered = (value for memory in self.memory() for value in memory.values() if isinstance(value, Tensor))
        weights = [parameter.data for parameter in self.method.parameters()]
        return [*buffers, *weights, *(value for value in remembered if value.device == weights[0].device)]

    def memory(self) -> list[dict]:
        """The dicts in which an optimizer remembers: one a parameter, one a group (timm's LAMB counts its steps there)."""
        return [*self.optimizer.state.values(), *self.optimizer.param_groups]

    def put_back(self, memories: list[tuple[dict, dict]]) -> None:
        known = {id(memory) for memory, _ in memories}
        for parameter in [p for p, memory in self.optimizer.state.items() if id(memory) not in known]:
            del self.optimizer.state[parameter]
        for memory, content in memories:
            memory.clear()
            memory.update(content)

    def wait(self, fine: Tensor) -> bool:
        """Read the flag: the one place here that waits for the device."""
        return bool(fine)


def held(memory: dict) -> dict:
    """What a dict holds, its tensors of the host copied: Adam counts its steps in one a parameter."""
    return {k: v.clone() if isinstance(v, Tensor) and v.device.type == "cpu" else v for k, v in memory.items()}


def copy(tensors: list[Tensor], into: list[Tensor]) -> None:
    for sources, targets in by_type(tensors, into):
        torch._foreach_copy_(targets, sources)


def undo_unless(fine: Tensor, tensors: list[Tensor], before: list[Tensor]) -> None:
    """Each tensor to what it was before unless `fine`: before + fine * (now - before), on bits, where NaN is a number."""
    for now, old in by_type(tensors, before):
        bits = BITS[now[0].element_size()]
        now, old = [t.view(bits) for t in now], [t.view(bits) for t in old]
        torch._foreach_sub_(now, old)
        torch._foreach_mul_(now, fine.to(bits))
        torch._foreach_add_(now, old)


def by_type(first: list[Tensor], second: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Both lists in groups of one type and device, which torch handles in few launches."""
    groups: dict[tuple, tuple[list, list]] = defaultdict(lambda: ([], []))
    for a, b in zip(first, second, strict=True):
        group = groups[a.dtype, a.device]
        group[0].append(a)
        group[1].append(b)
    yield from groups.values()
