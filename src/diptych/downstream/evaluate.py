"""Evaluate a trained encoder on labelled images, beside chance, raw pixels and the untrained encoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn

from diptych.base.arithmetic import arithmetic
from diptych.base.device import choose_device
from diptych.base.errors import CheckpointError
from diptych.base.files import require_writable
from diptych.base.ranges import Count, Device, Positive, Seed, Words, checked
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.downstream.answers import keep_answers
from diptych.downstream.classifier import class_names, readable, stream
from diptych.downstream.embed import embed_sets
from diptych.downstream.frozen import Subject, Task
from diptych.downstream.leaks import PixelDigests, find_leaks
from diptych.downstream.overview import FEWEST, chosen_rows, overview_of, predictions_of
from diptych.downstream.protocols import ON_EMBEDDINGS, PROTOCOLS, require_protocols
from diptych.downstream.results import Evaluation
from diptych.downstream.worth import closed_form, gains, proposed_for, with_worth
from diptych.embeddings.diagnose import diagnose
from diptych.embeddings.lamps import Lamp
from diptych.embeddings.scores import TEMPERATURE, Score, chance, check_classes, check_vote
from diptych.networks.inference import centred, raw_pixels
from diptych.networks.joined import Codes, Joined, side_by_side
from diptych.networks.patches import PatchDictionary
from diptych.reporting.explore import SPACES
from diptych.runs.encoder import Trained, as_trained, precision_for
from diptych.runs.pictures import picture_path, read_picture, save_picture
from diptych.runs.run import Run, is_run
from diptych.runs.subjects import CHANCE, CLOSED_FORM, JOINED, RAW_PIXELS, SCRATCH, TRAINED, UNTRAINED, main_subject
from diptych.training.joining import join_networks, joinable
from diptych.training.learned import LOOKED_AT, recognition
from diptych.training.quick import ALIKE, sample

DEFAULT = ("knn", "linear")  # quick, and computed from embeddings alone


@checked
@arithmetic("float32")
def evaluate(
    trained: Trained | Run | str | Path,
    train: Images,
    test: Images,
    *,
    k: Count | None = None,
    temperature: Positive = TEMPERATURE,
    protocols: Sequence[str] = DEFAULT,
    baselines: bool = True,
    seed: Seed = 0,
    precision: Annotated[str, Words("auto|float32|tf32|bfloat16")] = "auto",
    device: Device = "auto",
    show: bool = True,
) -> Evaluation:
    """Evaluate an encoder on labelled images. A run folder stores the result for its report.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one. k: neighbours of kNN's vote, by default
    `embeddings.scores.neighbours_for`. protocols: names of `downstream.protocols.PROTOCOLS`; each has a score for "chance",
    "trained" and, with `baselines`, "raw pixels", the "closed form" (`diptych.quick` of the training images), "untrained"
    and "joined", the closed form and the trained encoder side by side. An encoder of `diptych.quick` is itself "closed form" or
    "joined". The verdict is that of `embeddings.lamps`. The probe's regularisation is chosen on a held-out part of `train`;
    `test` is used once. Embedding, kNN and the probe run on `device`; precision: of the embedding alone, float32, tf32,
    bfloat16 or "auto", see `embed`. Test images that are in the training set are listed (`downstream.leaks`), with the
    accuracies without them; that costs as much as kNN.

    Everything is checked before the first image is embedded. Raises DataError when labels are missing or `test` has
    classes that `train` lacks, CheckpointError when there is no encoder (or no projector for a protocol that needs it),
    RecipeError for an unknown protocol, OutputError for a run folder that cannot be written.
    """
    trained, where = as_trained(trained), choose_device(device)
    main = main_subject(trained.encoder)
    protocols = list(dict.fromkeys(protocols))
    require_protocols(protocols, trained)
    check_vote(k, temperature)
    precision = precision_for(precision, trained, where)
    run = Run(require_writable(trained.folder)) if trained.folder is not None and is_run(trained.folder) else None
    projections = last_projections(run)
    train, test = labelled(train, test)
    test_labels = class_names(test, "test")
    scores = [replace(chance(test_labels), protocol=name, subject=CHANCE) for name in protocols]
    after, before, digests = None, None, PixelDigests()
    with ProgressBar("evaluate", show=show) as progress:
        task = Task(train, test, class_names(train, "training"), test_labels, trained.preprocessing, where, k, temperature, seed,
                    progress)  # fmt: skip
        references = baselines and not ON_EMBEDDINGS.isdisjoint(protocols)
        options = {"baselines": baselines, "references": references, "precision": precision, "progress": progress}
        shown, spaces = chosen_rows(len(test), seed), {}
        for subject in subjects(trained, task, seen=digests, **options):
            scores += scores_of(subject, task, protocols, progress)
            if (space := TRAINED if subject.pretrained else subject.name) in SPACES:
                spaces[space] = subject.test[shown.to(subject.test.device)]
            if subject.pretrained:
                after = subject
            elif subject.name == UNTRAINED:
                before = subject
        assert after is not None  # `subjects` ends with it
        progress.say("leaks from training to test ...")
        leaks = find_leaks(after.train, after.test, digests.digests, train, test)
        scores.sort(key=lambda score: protocols.index(score.protocol))  # stable: subjects keep their order
        diagnosis = diagnose(after.test, projections, untrained=None if before is None else before.test)
        if main != TRAINED and diagnosis.advice:  # that of a diagnosis speaks of training
            diagnosis = replace(diagnosis, advice=[ALIKE])
        lamp = learned(trained, None if before is None else before.network, test, where)
        own = run is not None and "pretrain" in run.recipe
        proposed = proposed_for(trained, train)
        beside = gains(scores, JOINED) if joinable(trained) else ()
        judged = with_worth(diagnosis, lamp, gains(scores, main), beside, own=own, main=main, proposed=proposed)
        evaluation = Evaluation(scores, judged, leaks, main, proposed)
        if run is not None:  # the numbers first: pictures read images again
            run.append("evaluations.jsonl", evaluation.lines())
            keep_answers(run, train, test, scores)
            progress.say(f"map of {len(shown):,} test images ...")
            keep_pictures(run, test, shown, spaces, scores=scores, main=main, seed=seed)
    return evaluation


def learned(trained: Trained, untrained: nn.Module | None, test: Images, device: torch.device) -> Lamp:
    """The lamp of learning on up to LOOKED_AT test images, evenly spaced: they are often sorted by class."""
    reference = None if untrained is None else Trained(untrained, trained.preprocessing)
    some = torch.arange(0, len(test), -(-len(test) // LOOKED_AT))
    _, pixels = next(test.read(some, LOOKED_AT))
    return recognition(trained, reference, pixels, "held-out images", device)


def labelled(train: Images, test: Images) -> tuple[Images, Images]:
    """The readable images of both sets. Raises DataError when labels are missing or `test` has other classes than `train`.

    Labels are checked before any image is read, and again after bad images have been left out.
    """
    check_classes(class_names(train, "training"), class_names(test, "test"))
    train, test = readable(train), readable(test)
    check_classes(class_names(train, "training"), class_names(test, "test"))
    return train, test


def subjects(
    trained: Trained,
    task: Task,
    *,
    baselines: bool,
    references: bool,
    precision: str,
    progress: ProgressBar,
    seen: PixelDigests,
) -> Iterator[Subject]:
    """The references without training, if `references`; the untrained encoder, if `baselines`; then the trained one.

    seen: gets the images that the trained encoder gets.
    With a closed form, both joined come last: they show whether training has learned what the dictionary does not know.
    """
    sets = task.train, task.test
    reference, dictionary = None, []
    options: dict[str, Any] = {"device": task.device, "precision": precision, "progress": progress}
    if references:
        train, test = (
            raw_pixels(stream(images, task.device), *centred(task.expected), output_device=task.device)
            for images in sets
        )
        yield Subject(RAW_PIXELS, train, test, None, trained.folder)
        reference = closed_form(trained, task.train, task.seed, say=progress.say, device=task.device)
        if reference is not None:
            dictionary = embed_sets(reference, sets, **options, what=f"{CLOSED_FORM} encoder")
            yield Subject(
                CLOSED_FORM, dictionary[0], dictionary[1], None, None
            )  # no network: it is no rival to fine-tune
    if baselines and (untrained := trained.untrained()) is not None:
        train, test = embed_sets(untrained, sets, **options, what="untrained encoder")
        yield Subject(UNTRAINED, train, test, untrained.encoder, trained.folder,
                      names={"finetune": SCRATCH})  # fmt: skip
    main = main_subject(trained.encoder)
    train, test = embed_sets(trained, sets, **options, what=f"{main} encoder", seen=seen)
    yield Subject(main, train, test, trained.encoder, trained.folder, pretrained=True)
    if reference is not None and not isinstance(trained.encoder, Joined):
        codes = codes_beside(reference, trained, task)
        train, test = map(
            side_by_side, dictionary, embed_sets(codes, sets, **options, what=f"{TRAINED} encoder's maps")
        )
        yield Subject(JOINED, train, test, None, None)


def codes_beside(reference: Trained, trained: Trained, task: Task) -> Trained:
    """What the trained encoder adds to the closed form in `diptych quick --join`."""
    pixels = sample(task.train, trained.preprocessing.opened, task.seed, task.device)
    assert isinstance(reference.encoder, PatchDictionary)
    joined = join_networks(reference.encoder, trained, pixels.cpu())
    return Trained(Codes(joined), trained.preprocessing)


def scores_of(subject: Subject, task: Task, protocols: Sequence[str], progress: ProgressBar) -> list[Score]:
    """The scores of one subject, by every protocol that applies to it."""
    scores = []
    for name in protocols:
        progress.say(f"{name} accuracy of {subject.name} ...")
        score = PROTOCOLS[name](subject, task)
        if score is not None:
            scores.append(replace(score, subject=subject.name_in(name)))
    return scores


def last_projections(run: Run | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The projections of two views that a run saved at its end. They can show a collapse that embeddings hide.

    Raises CheckpointError for a damaged file.
    """
    if run is None or not (path := picture_path(run.folder, "projections")).is_file():
        return None
    arrays = read_picture(run.folder, "projections")
    z1, z2 = arrays["z1"], arrays["z2"]
    if z1.ndim != 2 or z1.shape != z2.shape or {z1.dtype.kind, z2.dtype.kind} != {"f"}:
        raise CheckpointError(f"{path}: no two projections {z1.shape} and {z2.shape} of the same images; remove it")
    return z1, z2


def keep_pictures(
    run: Run, test: Images, rows: Tensor, spaces: Mapping[str, Tensor], *, scores: Sequence[Score], main: str, seed: int
) -> None:
    """Store arrays for the report: the overview of some test images, and the predicted classes of all.

    The predictions are the probe's where it was fitted, else those of another protocol that has some.
    """
    predicting = [score for score in scores if score.subject == main and score.confidence is not None]
    score = next(iter(sorted(predicting, key=lambda score: score.protocol != "linear")), None)
    if score is not None:
        save_picture(run.folder, "predictions", **predictions_of(test, score))
    if len(rows) >= FEWEST:
        pixels = torch.cat([batch for _, batch in test.read(rows.numpy(), 512)])
        arrays = overview_of(test, rows, spaces, pixels=pixels, shows="test images", seed=seed, score=score)
        save_picture(run.folder, "map", **arrays)
