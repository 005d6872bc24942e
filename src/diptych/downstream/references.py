"""Embeddings that a linear layer is fitted to on the same labels, as rows beside a network that is trained on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diptych.data.images import Images
from diptych.downstream.classifier import class_names, stream
from diptych.downstream.worth import closed_form
from diptych.embeddings.scores import Score, linear_probe
from diptych.networks.inference import centred, embeddings, raw_pixels
from diptych.runs.encoder import Trained
from diptych.runs.subjects import CLOSED_FORM, RAW_PIXELS, frozen_name, main_subject


@dataclass(frozen=True)
class Reference:
    """A frozen embedding of images and the name of its row. embed: images -> (N, E), for every readable image in order."""

    name: str
    on: str  # what the linear layer is fitted to: "pixels", "embedding"
    embed: Callable[[Images], Tensor]


def references_of(
    trained: Trained, train: Images, seed: int, device: torch.device, *, say: Callable[[str], object]
) -> list[Reference]:
    """The rows beside `finetune`, in the order of the table: raw pixels, the closed form of all images of `train` (their
    labels are not read), and the trained encoder, frozen."""
    expected = trained.preprocessing

    def pixels(images: Images) -> Tensor:
        return raw_pixels(stream(images, device), *centred(expected), output_device=device)

    def frozen(images: Images) -> Tensor:
        return embeddings(trained.encoder, stream(images, device), expected, device=device, output_device=device)

    references = [Reference(RAW_PIXELS, "pixels", pixels)]
    if (quick := closed_form(trained, train, seed, say=say, device=device)) is not None:

        def dictionary(images: Images) -> Tensor:
            return quick(stream(images, device), device=device, output_device=device)

        references.append(Reference(CLOSED_FORM, "embedding", dictionary))
    return [*references, Reference(frozen_name(main_subject(trained.encoder)), "embedding", frozen)]


def reference_scores(
    references: Sequence[Reference], z_test: Sequence[Tensor], train: Images, test_labels: Sequence[str], seed: int
) -> list[Score]:
    """The linear probe on each reference, fitted to the labels of `train`; z_test: their embeddings of the test images."""
    names, scores = class_names(train, "training"), []
    for reference, z_NE in zip(references, z_test, strict=True):
        result = linear_probe(reference.embed(train), names, z_NE, test_labels, seed=seed)
        details = {"as_in": "linear probe on the same labels", "on": reference.on} | result.details
        scores.append(replace(result, protocol="finetune", subject=reference.name, details=details))
    return scores
