"""Fine-tune the trained encoder on a part of the labels, beside what else could be done with the same labels."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from diptych.base.device import choose_device
from diptych.base.errors import CheckpointError, RecipeError
from diptych.base.files import require_writable
from diptych.base.random_at import seed_at
from diptych.base.ranges import Count, Device, Range, Rate, Seed, checked
from diptych.base.terminal import ProgressBar
from diptych.data.images import Images
from diptych.downstream.answers import keep_answers
from diptych.downstream.classifier import Tell, class_names, readable
from diptych.downstream.few_labels import parse_labels, require_labels, take_labels
from diptych.downstream.references import Reference, reference_scores, references_of
from diptych.downstream.results import Evaluation
from diptych.downstream.tuning import Budget, tune
from diptych.downstream.worth import proposed_for
from diptych.embeddings.scores import Score, accuracy_interval, chance
from diptych.methods.method import embedding_width
from diptych.networks.encoders import encoder as make_encoder
from diptych.runs.encoder import Preprocessing, Trained, as_trained
from diptych.runs.run import Run, is_run
from diptych.runs.subjects import CHANCE, SCRATCH, TRAINED, main_subject


@dataclass(frozen=True)
class Tested:
    """The test images, and their embeddings (N, E) by every reference, which are the same for all seeds."""

    images: Images
    references: list[Reference]
    z_test: list[Tensor]


@checked
def finetune(
    trained: Trained | Run | str | Path,
    train: Images,
    test: Images,
    labels: float | str = 0.01,
    *,
    epochs: Count | None = None,
    steps: Count | None = None,
    batch_size: Annotated[int, Range(2, 2**24)] | None = None,
    encoder_lr: Rate | None = None,
    head_lr: Rate | None = None,
    scratch_lr: Rate | None = None,
    published: bool = False,
    seed: Seed = 0,
    seeds: Count = 1,
    device: Device = "auto",
    show: bool = True,
) -> Evaluation:
    """Train a copy of an encoder and a linear layer on few labels, and compare with alternatives on the same labels.

    trained: an encoder (`diptych.load`), or the run or encoder folder that holds one.
    labels: a fraction of each class (1.0: all), or "10pc" for 10 images of each class. All rows of a seed use the same
    images, and the images of a smaller fraction are a subset of those of a larger one.
    epochs or steps, batch_size and the peak rates: by default fitted to the number of labels (`Budget` in tuning.py): at
    least 600 steps, 60 epochs, batches of an eighth of the labels from 8 to 64. From scratch, encoder and layer both have
    `scratch_lr`. Both networks see the same number of images in the same number of steps.
    published: use the settings of Barlow Twins' evaluate.py for 1 % of ImageNet instead: 20 epochs of 256, SGD, rates 0.005
    and 0.5, crops from 8 % of the area, cosine by epoch (from scratch, which it does not train, at 0.1). Arguments that
    you pass override single settings.
    seeds: repeat with seed, seed + 1, ..., with other images, crops and initial weights; accuracies are then means.

    Returns the accuracies after the last step: of chance; of a linear layer on "raw pixels" and on the encoder, "trained,
    frozen"; of the same network trained "from scratch"; and of the encoder, "trained" further (of `diptych.quick`: "closed
    form" or "joined"). The table ends with paired
    comparisons. A run folder stores the accuracies. Everything is checked before the first step.
    Raises RecipeError for invalid arguments, DataError for missing labels or too few images, CheckpointError when there is
    no encoder or no network to train from scratch, OutputError for a run folder that cannot be written, DivergedError for a
    loss that is not finite.
    """
    if seeds < 1:
        raise RecipeError(f"seeds {seeds} must be at least 1")
    budget = Budget(epochs, steps, batch_size, encoder_lr, head_lr, scratch_lr, published)
    amount = parse_labels(labels)
    trained, where = as_trained(trained), choose_device(device)
    embedding_width(trained.encoder, None)
    run = Run(require_writable(trained.folder)) if trained.folder is not None and is_run(trained.folder) else None
    require_labels(train, test, amount, seed)
    from_scratch(trained, seed)
    test = readable(test)
    several: dict[str, list[Score]] = {}
    with ProgressBar("finetune", show=show) as progress:
        references = references_of(trained, train, seed, where, say=progress.say)
        progress.say("finetune: embeddings of the test images ...")
        tested = Tested(test, references, [reference.embed(test) for reference in references])
        for number in range(seed, seed + seeds):
            part = take_labels(train, amount, number)
            for score in rows_of_seed(trained, part, tested, budget=budget, device=where, seed=number, tell=progress):
                several.setdefault(str(score.subject), []).append(score)
    lines = [replace(chance(class_names(test, "test")), protocol="finetune", subject=CHANCE)]
    evaluation = Evaluation(
        lines + [mean_score(scores, labels) for scores in several.values()],
        main=main_subject(trained.encoder),
        proposed=proposed_for(trained, train),
    )
    if run is not None:
        run.append("evaluations.jsonl", evaluation.lines())
        keep_answers(run, train, test, evaluation.scores)
    return evaluation


def rows_of_seed(
    trained: Trained,
    part: Images,
    tested: Tested,
    *,
    budget: Budget,
    device: torch.device,
    seed: int,
    tell: ProgressBar,
) -> list[Score]:
    """The scores of one seed, all on the same labelled images: the references, from scratch, the trained encoder."""
    tell.say(f"finetune: linear layers on {len(part):,} labelled images, seed {seed} ...")
    scores = reference_scores(tested.references, tested.z_test, part, class_names(tested.images, "test"), seed)
    main = main_subject(trained.encoder)
    networks = {SCRATCH: from_scratch(trained, seed), main: copy.deepcopy(trained.encoder)}
    for subject, network in networks.items():
        tell.say(f"finetune {subject} on {len(part):,} labelled images, seed {seed} ...")
        tuning = budget.tuning(len(part), SCRATCH if subject == SCRATCH else TRAINED)
        result = tune(
            network, part, tested.images, trained.preprocessing, tuning=tuning, device=device, seed=seed, tell=tell
        )
        scores.append(replace(result, subject=subject))
    return scores


def finetune_copy(network: nn.Module, train: Images, test: Images, expected: Preprocessing, *, device: torch.device,
                  seed: int, tell: Tell | None, scratch: bool) -> Score:  # fmt: skip
    """`tune` a copy on all labels with the fitted budget; scratch: with the settings of an untrained network."""
    tuning = Budget().tuning(len(train), SCRATCH if scratch else TRAINED)
    tuned = tune(copy.deepcopy(network), train, test, expected, tuning=tuning, device=device, seed=seed, tell=tell)
    return mean_score([tuned], 1.0)


def mean_score(scores: Sequence[Score], labels: float | str) -> Score:
    """One score of several seeds: the mean, its interval over the test images, and each seed's accuracy."""
    first, accuracies = scores[0], [score.accuracy for score in scores]
    details = {"labels": str(labels)} | first.details
    if len(scores) == 1:
        return replace(first, details=details)
    mean = statistics.fmean(accuracies)
    details |= {"seeds": len(scores), "accuracies": accuracies, "spread": statistics.stdev(accuracies)}
    details.pop("top5_accuracy", None)  # of the first seed only
    interval = accuracy_interval(torch.full((first.test_images,), mean))  # Wilson needs only the share and the count
    correct = torch.stack([score.correct for score in scores if score.correct is not None])
    return replace(first, accuracy=mean, interval=interval, details=details, correct=correct)


def from_scratch(trained: Trained, seed: int) -> nn.Module:
    """The encoder's network with new initial weights; for a user's own module, with its weights before training.

    Raises CheckpointError when neither is available.
    """
    if trained.built_with is not None:
        with torch.random.fork_rng(
            devices=[]
        ):  # weights are drawn on the CPU: to ask a GPU for its state is to start it
            torch.default_generator.manual_seed(seed_at(seed, "labels", "init"))
            return make_encoder(**trained.built_with)
    untrained = trained.untrained()
    if untrained is None:
        kind, place = type(trained.encoder).__name__, f" in {trained.folder}" if trained.folder else ""
        raise CheckpointError(f"the initial weights of this {kind}{place} are not available, so it cannot be trained "
                              "from scratch for comparison: finetune a run of diptych.pretrain, which stores them")  # fmt: skip
    return untrained.encoder
