"""The verdict where no labels are known: at the end of training, and of a computation in closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diptych.embeddings.diagnose import ADVICE, Diagnosis, diagnose
from diptych.embeddings.lamps import NOT_MEASURED, Lamp, judge
from diptych.embeddings.recognition import learning, recognition_shares
from diptych.methods import Method
from diptych.networks.encoders import copy_of
from diptych.networks.inference import centred, raw_pixels
from diptych.runs.encoder import Trained, load_weights
from diptych.runs.encoder_config import read_config
from diptych.runs.run import Run
from diptych.views import View
from diptych.views.colour import ColorJitter, Grayscale
from diptych.views.geometry import RandomResizedCrop
from diptych.views.view import show_views

LOOKED_AT, BATCH = 1024, 256  # images, and how many of them at a time
TENTHS, MOST_RISEN = 10, 0.1  # parts of the steps; share of its fall that a loss may lose


def judged(
    run: Run, method: Method, views: Sequence[Tensor], embedding: Tensor, shown: tuple[Tensor, Tensor] | None
) -> Diagnosis:
    """The diagnosis of a run's last embeddings and projections, with the lamp of learning: the encoder beside that of step 0.

    views: of training images, but none that training has used. embedding: (N, E), of the first of them.
    """
    place = run.folder / "untrained"
    if len(views) < 2 or not (place / "config.json").is_file():
        lamp = Lamp(NOT_MEASURED, "there is no encoder of step 0, or no second view")
    else:
        before = copy_of(method.encoder)
        load_weights(before, place, read_config(place)["sha256"])
        after = recognition_shares(embedding, embedded(method.encoder, views[1]))
        at_first = recognition_shares(*(embedded(before.eval(), view) for view in views[:2]))
        lamp = learning(after, at_first, reference="before training", images="training images in new views")
    steps = run.lines("step")
    readings = {"loss": steps[-1]["loss"], **steps[-1]["parts"]} if steps else {}
    losses = [step["loss"] for step in steps]
    return judge(with_method(diagnose(embedding, shown), method, readings, losses), lamp)


def with_method(
    diagnosis: Diagnosis, method: Method, readings: Mapping[str, float], losses: Sequence[float] = ()
) -> Diagnosis:
    """The diagnosis, COLLAPSED too where the last step's loss or parts show what the method knows as such, and a WARNING where
    a loss that should fall has risen; the method's remedies first."""
    signs = [
        f"{name} is {value:.4g}: {type(method).__name__} shows a collapse between {low:.4g} and {high:.4g}"
        for name, (low, high) in method.collapses.items()
        if low <= (value := readings.get(name, float("nan"))) <= high
    ]
    verdict, remedies = "COLLAPSED" if signs else diagnosis.verdict, list(method.remedies)
    if method.rising and (lost := risen(losses)) > MOST_RISEN:
        signs.append(f"the loss has risen again, by {100 * lost:.0f} % of its earlier fall")
        remedies.insert(0, method.rising)
        verdict = "WARNING" if verdict == "OK" else verdict
    reasons = [*signs, *diagnosis.reasons]
    advice = [*remedies, *(diagnosis.advice or ADVICE)] if reasons else []
    return replace(diagnosis, verdict=verdict, reasons=reasons, advice=advice)


def risen(losses: Sequence[float]) -> float:
    """How much of its fall a loss has lost by the end, from means over tenths of the steps; 0 for too few to tell."""
    if len(losses) < 2 * TENTHS:
        return 0.0
    means = [float(part.mean()) for part in torch.tensor(losses, dtype=torch.float64).tensor_split(TENTHS)]
    lowest = min(means)
    return 0.0 if means[0] <= lowest else (means[-1] - lowest) / (means[0] - lowest)


@torch.no_grad()
def embedded(encoder: nn.Module, view: Tensor) -> Tensor:
    return torch.cat([encoder(part).float().cpu() for part in view.split(BATCH)])


def recognition(
    trained: Trained, reference: Trained | None, pixels: Tensor, images: str, device: torch.device | str = "cpu"
) -> Lamp:
    """The lamp of learning on some images (n, 3, S, S) uint8: crops of 35 % to 100 % of their area, in other colours.

    reference: the encoder before training; None: raw pixels take its place.
    """
    view = View([RandomResizedCrop(pixels.shape[2], scale=(0.35, 1.0)), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
                 Grayscale(p=0.1)])  # fmt: skip
    views = [torch.from_numpy(shown).permute(0, 3, 1, 2) for shown in show_views([view, view], pixels[:LOOKED_AT], 0)]
    places: dict[str, Any] = {"device": device, "output_device": device}
    after = recognition_shares(*(trained(shown, **places) for shown in views))
    if reference is None:
        mean, std = centred(trained.preprocessing)
        before = recognition_shares(*(raw_pixels(shown, mean, std, output_device=device) for shown in views))
    else:
        before = recognition_shares(*(reference(shown, **places) for shown in views))
    return learning(after, before, reference="before training" if reference else "by raw pixels", images=images)
