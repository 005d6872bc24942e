"""How many launches is a step on a GPU? Counted without one, on the pretended device of the tests; no seconds.

    python -m benchmarks.launches [--only barlow keras simsiam]

Of each recipe the launches of one step after the first, by part, of which graphs make two (`pretrain.cuda_graph`); views also
in their slow form, one operation after the other. They are torch's operations, without views of memory and allocations: a
GPU may need several kernels for one. The numbers do not depend on the batch.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: the pretended device does not go beside a GPU

import numpy as np
import torch

import diptych
from diptych.commands import recipe
from diptych.commands.build import build
from diptych.training.feed import Feed
from diptych.training.learner import Learner
from diptych.training.schedules import constant

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pretend import DEVICE, PretendDevice, pretended_device  # noqa: E402

RECIPES = {
    "barlow": "barlow-twins-cifar10",
    "keras": "barlow-twins-keras-published",
    "simsiam": "simsiam-keras-published",
}
SMALL = {"barlow": ["method.projector=[16, 16, 16]"], "keras": ["method.projector=[16, 16, 16]"], "simsiam": []}
BATCH = 8


def count(kind: str, device: PretendDevice) -> dict[str, int]:
    """Launches of the second step, by part."""
    built = build(recipe.read_recipe(RECIPES[kind], [*SMALL[kind], f"pretrain.batch_size={BATCH}"]))
    pixels = np.random.default_rng(0).integers(0, 256, (4 * BATCH, 32, 32, 3), dtype=np.uint8)
    feed = Feed(diptych.images(pixels, resident=True), built.views, epochs=1, batch_size=BATCH, device=DEVICE)
    method = built.method.to(DEVICE).to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]
    learner, steps = Learner(method, built.optimizer, constant()), feed.starting_at(0)
    marks: dict[str, int] = {}

    def marked(name: str, function):
        def run(*arguments):
            before = device.launches
            result = function(*arguments)
            marks[name] = device.launches - before
            return result

        return run

    learner.differentiate = marked("forward, loss and backward", learner.differentiate)
    learner.updates.take = marked("update", learner.updates.take)
    feed.together.apply = marked("views, rows gathered", feed.together.apply)
    learner.step(0, feed.total, next(steps)[1])
    before = device.launches
    learner.step(1, feed.total, next(steps)[1])
    total, parts, chains = device.launches - before, dict(marks), feed.together.chains
    feed.together.chains = None
    feed.views_of(torch.from_numpy(pixels[:BATCH]).permute(0, 3, 1, 2).contiguous().to(DEVICE), 2)
    feed.together.chains = chains
    rest = {"norm, guard, uploads": total - sum(parts.values()), "a step": total}
    return parts | rest | {"the same, one operation after the other": marks["views, rows gathered"]}


def main(words: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser("benchmarks.launches", description=__doc__)
    made.add_argument("--only", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    for kind in made.parse_args(words).only:
        with pretended_device() as device:
            counted = count(kind, device)
        print(f"\n{RECIPES[kind]}")
        for name, number in counted.items():
            print(f"{number:7,}  {name}")


if __name__ == "__main__":
    main()
