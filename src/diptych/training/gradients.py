"""The loss and the gradients of a whole batch where the networks run on pieces of it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from diptych.base.processes import average_gradients
from diptych.methods import Method
from diptych.methods.method import Compared, Draw, Progress


def in_pieces(
    method: Method,
    views: Sequence[Tensor],
    draw: Draw,
    progress: Progress,
    *,
    rows: int,
    arithmetic: Callable[[], AbstractContextManager],
    seed: Callable[[int], None],
) -> Compared:
    """Gradient caching (Gao et al. 2021, arXiv:2101.06983), `rows` images of each view (N, 3, s, s) at a time.

    Project all pieces without gradients, compare the whole once, then project each piece again and send its rows of the
    projections' gradient back through it. Exact, as `compare` sees all rows; memory is a piece's, and one more forward pass
    is what it costs. Batch normalisation takes a piece for its batch, over all processes. `seed(piece)` sets the random
    numbers of a network with dropout, the same both times; `arithmetic()` is the autocast to work under. Returns
    what `compare` does; every parameter has its gradient, averaged over the processes.
    """
    pieces = [
        ([view[start : start + rows] for view in views], {name: x[start : start + rows] for name, x in draw.items()})
        for start in range(0, len(views[0]), rows)
    ]
    buffers = list(method.buffers())
    before = [buffer.clone() for buffer in buffers]
    projected = []
    for index, piece in enumerate(pieces):
        seed(index)
        with torch.no_grad(), arithmetic():
            projected.append(method.project(*piece))
    if buffers:
        torch._foreach_copy_(buffers, before)  # running statistics move in the second projection only
    projections = {name: torch.cat([piece[name] for piece in projected]) for name in projected[0]}
    for z in projections.values():
        z.requires_grad_(z.is_floating_point())
    with arithmetic():
        compared = method.compare(projections, progress)
    compared.loss.backward()
    gradients = {
        name: z.grad.split(rows) for name, z in projections.items() if z.grad is not None
    }  # else: a stop-gradient
    for index, piece in enumerate(pieces):
        seed(index)
        with arithmetic():  # of its own: under no_grad autocast caches weights that no gradient reaches
            again = method.project(*piece)
        reached = [name for name in gradients if again[name].requires_grad]  # not a target network's
        torch.autograd.backward([again[name] for name in reached], [gradients[name][index] for name in reached])
    average_gradients(method.parameters())
    return compared
