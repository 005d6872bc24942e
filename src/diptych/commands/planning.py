"""`diptych plan`: what a training will take on this machine, and a recipe that fits the images and the time, before it starts."""

import math
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.base.arithmetic import arithmetic, choose_precision
from diptych.base.device import choose_device, free_bytes
from diptych.base.errors import DataError
from diptych.base.terminal import ProgressBar, counted
from diptych.commands.build import build
from diptych.commands.pretraining import advice_on_worth
from diptych.commands.recipe import read_recipe
from diptych.commands.schema import call_arguments
from diptych.data.glance import Glance, glance
from diptych.data.images import Images, images
from diptych.reporting.numbers import duration
from diptych.training.budget import seconds_of, steps_of
from diptych.training.forecast import Pace, measure_pace
from diptych.training.learner import Learner

SIZES = (32, 48, 64, 96, 128, 160, 224)
LEAST_EPOCHS, MOST_EPOCHS = (
    30,
    1000,
)  # of a proposal: a larger image size is proposed only with so many; more is not proposed
STEPS_AN_EPOCH = 8  # at least, so that batches differ
SMALLEST_BATCH = 16
SAMPLE = 256  # images that are decoded, to measure with
FASTER = 0.9  # share of float32's seconds from which bfloat16 is proposed
LINEAR_RATES = ("sgd", "lars")  # rate in proportion to the batch; others: to its square root
SECONDS = 4.0  # of measuring, for each of the recipe and the proposal


class Planned(NamedTuple):
    """A recipe and what it takes on this machine. reading: seconds of decoding all images once."""

    sections: dict
    pace: Pace
    count: int
    reading: float
    labels: bool
    precision: str = "float32"  # in which it was measured

    @property
    def steps_an_epoch(self) -> int:
        return self.count // self.batch

    @property
    def batch(self) -> int:
        return self.sections["pretrain"]["batch_size"]

    @property
    def steps(self) -> int:
        settings = self.sections["pretrain"]
        if (budget := settings["budget"]) is not None:
            return steps_of(budget) or max(1, int(seconds_of(budget) / self.pace.step))
        return settings["epochs"] * self.steps_an_epoch

    @property
    def watched(self) -> int:
        """Images through the encoder for one reading: of a collapse, and with labels of kNN."""
        watch = self.sections["watch"]
        images = 3 * watch["images"] * watch["collapse"] + 8 * watch["images"] * (watch["knn"] and self.labels)
        return min(images, 11 * self.count)

    @property
    def readings(self) -> int:
        epochs = self.steps / max(1, self.steps_an_epoch)
        return 1 + math.ceil(epochs / self.sections["pretrain"]["watch_epochs"])

    @property
    def seconds(self) -> float:
        """Of training: from the first step to the last line of the log."""
        return self.pace.seconds(self.steps, self.watched, self.readings)

    @property
    def memory(self) -> int:
        """Bytes of training, and of the images where they are held in memory."""
        size = self.sections["images"]["size"]
        return self.pace.memory + self.count * 3 * size**2


def run_plan(source: str, overrides: Sequence[str], recipe: str, budget: str) -> str:
    """The text that `diptych plan` prints."""
    limit = seconds_of(budget)
    sections = read_recipe(recipe, overrides)
    with ProgressBar("plan") as progress:
        progress.say("reading a sample of the images ...")
        photos = open_part(source, sections)
        seen = glance(photos)
        if seen.short_side == 0:
            raise DataError(f"{source}: no image can be read; `diptych doctor {source}` lists the reasons")
        pixels, rate = sample(photos)
        progress.say("running a few steps of the recipe ...")
        planned = plan(sections, photos, pixels, rate)
        progress.say("running a few steps of the proposal ...")
        changes, proposed = propose(recipe, overrides, planned, seen, limit, photos=photos, pixels=pixels, rate=rate)
    lines = [f"{source}: {seen}", *described(recipe, planned)]
    if (advice := advice_on_worth(proposed.sections, len(photos))) is not None:
        lines.append(advice)
    lines += [f"proposal for {budget} ({proposed.sections['pretrain']['epochs']} epochs in about "
              f"{duration(proposed.seconds + proposed.reading)}; chosen by rule, not measured on your images):",
              "  " + command_of(source, recipe, [*overrides, *changes])]  # fmt: skip
    return "\n".join(lines)


def open_part(source: str, sections: Mapping[str, Any]) -> Images:
    """The images of which only a part will be read."""
    options = {key: value for key, value in sections["images"].items() if value is not None} | {"resident": False}
    return images(source, **call_arguments(images, options))


def sample(photos: Images) -> tuple[Tensor, float]:
    """Up to SAMPLE images (n, 3, S, S) uint8, evenly spaced, and how many are decoded a second."""
    rows = torch.linspace(0, len(photos) - 1, min(SAMPLE, len(photos))).long().unique()
    began = time.perf_counter()
    pixels = torch.cat([pixels for _, pixels in photos.read(rows, 64, replace=(0, 0))])
    return pixels, len(pixels) / (time.perf_counter() - began)


def plan(sections: dict, photos: Images, pixels: Tensor, rate: float) -> Planned:
    """Take a few steps of the recipe."""
    built, settings = build(sections), sections["pretrain"]
    device = choose_device(settings["device"])
    options = {key: settings[key] for key in ("seed", "clip_norm", "micro_batch", "torch_compile")}
    options["precision"] = choose_precision(settings["precision"], device)
    learn = partial(Learner, schedule=built.schedule, **options)
    size = sections["images"]["size"] or built.views[0].size
    if size is not None and size != pixels.shape[2]:
        pixels = torch.nn.functional.interpolate(pixels.float(), (size, size)).byte()
    with arithmetic(options["precision"], deterministic=settings["deterministic"]):  # a GPU's speed depends on it
        pace = measure_pace(built.method, built.views, built.optimizer, pixels, batch_size=settings["batch_size"], learn=learn,
                            device=device, within=SECONDS)  # fmt: skip
    sections = sections | {"images": sections["images"] | {"size": pixels.shape[2]}}
    return Planned(sections, pace, len(photos), len(photos) / rate, photos.labels is not None, options["precision"])


def propose(
    recipe: str, overrides: Sequence[str], planned: Planned, seen: Glance, limit: float, *, photos: Images, pixels: Tensor,
    rate: float,
) -> tuple[list[str], Planned]:  # fmt: skip
    """The overrides that fit the recipe to the images and to `limit` seconds, and what it then takes. What the user has
    overridden stays."""
    given = {text.partition("=")[0] for text in overrides}
    settings = planned.sections["pretrain"]
    wanted: dict[str, Any] = {}
    batch = min(
        settings["batch_size"], max(SMALLEST_BATCH, 2 ** int(math.log2(max(1, planned.count / STEPS_AN_EPOCH))))
    )
    group = planned.sections["method"].get("statistics_rows") or 1
    batch = max(batch // group, 1) * group
    if batch != settings["batch_size"] and "pretrain.batch_size" not in given:
        factor = batch / settings["batch_size"]
        optimizer = planned.sections["optimizer"]
        wanted["pretrain.batch_size"] = batch
        if "optimizer.lr" not in given:
            rate_factor = factor if optimizer["name"] in LINEAR_RATES else factor**0.5
            wanted["optimizer.lr"] = float(f"{optimizer['lr'] * rate_factor:.3g}")
    if "images.size" not in given and (size := size_within(planned, seen, limit)) != planned.sections["images"]["size"]:
        wanted["images.size"] = size
    changes = [f"{key}={value}" for key, value in wanted.items()]
    fitted = plan(read_recipe(recipe, [*overrides, *changes]), photos, pixels, rate) if changes else planned
    if "pretrain.precision" not in given and settings["precision"] == "float32":
        quicker = plan(read_recipe(recipe, [*overrides, *changes, "pretrain.precision=bfloat16"]), photos, pixels, rate)
        if quicker.pace.step < FASTER * fitted.pace.step:
            changes, fitted = [*changes, "pretrain.precision=bfloat16"], quicker
    if not given & {"pretrain.epochs", "pretrain.budget"}:
        epochs = epochs_within(fitted, limit)
        changes.append(f"pretrain.epochs={epochs}")
        fitted = fitted._replace(
            sections=read_recipe(recipe, [*overrides, *changes]) | {"images": fitted.sections["images"]}
        )
    return changes, fitted


def size_within(planned: Planned, seen: Glance, limit: float) -> int:
    """The largest of SIZES that the images have and that leaves LEAST_EPOCHS in `limit` seconds; steps take time in
    proportion to the area."""
    own = planned.sections["images"]["size"]
    epoch = planned.pace.step * planned.steps_an_epoch
    fitting = [size for size in SIZES if size <= max(SIZES[0], seen.short_side)
               and epoch * (size / own) ** 2 * LEAST_EPOCHS <= limit - planned.reading]  # fmt: skip
    return min(max(fitting, default=SIZES[0]), max(own, SIZES[0]) * 2)


def epochs_within(planned: Planned, limit: float) -> int:
    """Epochs, with their readings, in `limit` seconds."""
    pace, images = planned.pace, planned.watched
    once = planned.reading + pace.seconds(0, images, 1)
    epoch = planned.steps_an_epoch * pace.step + images * pace.image / planned.sections["pretrain"]["watch_epochs"]
    return max(1, min(MOST_EPOCHS, int((limit - once) / epoch)))


def described(recipe: str, planned: Planned) -> list[str]:
    """Lines about the recipe as it is."""
    settings, pace = planned.sections["pretrain"], planned.pace
    device = choose_device(settings["device"])
    scaled = "" if pace.measured == pace.batch_size else f", from steps of {pace.measured}"
    lines = [f"{recipe} on this machine ({device}, {counted(torch.get_num_threads(), 'thread')}, {planned.precision}): "
             f"{pace.step:.3g} s per step of {pace.batch_size} images{scaled}"]  # fmt: skip
    if planned.batch > planned.count:
        return [*lines, f"  it cannot be trained: a batch of {planned.batch} is larger than the {planned.count} images"]
    epochs = planned.steps / planned.steps_an_epoch
    free = shutil.disk_usage(Path()).free
    return [
        *lines,
        f"  time    {duration(planned.seconds + planned.reading)}: {epochs:.4g} epochs of {planned.steps_an_epoch:,} steps, "
        f"{duration(planned.reading)} to read the images, {planned.readings} evaluations during training",
        f"  memory  {planned.memory / 1e9:.2f} GB ({free_bytes(device) / 1e9:.1f} GB free)",
        f"  disk    {pace.disk / 1e9:.2f} GB ({free / 1e9:.1f} GB free)",
    ]


def command_of(source: str, recipe: str, overrides: Sequence[str]) -> str:
    """The command to type; of two values for one key, the later."""
    last = {text.partition("=")[0]: text for text in overrides}
    return shlex.join(
        ["diptych", "pretrain", source, "--recipe", recipe, *last.values(), "--out", "runs/" + Path(source).stem]
    )
