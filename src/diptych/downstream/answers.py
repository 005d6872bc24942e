"""What an evaluation keeps in its run for comparisons with other runs: right or wrong, image by image."""

from collections.abc import Sequence

from diptych.data.images import Images
from diptych.downstream.classifier import class_names
from diptych.embeddings.scores import Score
from diptych.runs.answers import SEPARATOR, Answers, digest_of, save_answers
from diptych.runs.run import Run


def keep_answers(run: Run, train: Images, test: Images, scores: Sequence[Score]) -> None:
    """Store the scores' right and wrong images in the run. train, test: the labelled images, readable ones only."""
    names, labels = named(test, "test")
    right = {
        (protocol_of(score), str(score.subject)): score.correct.reshape(-1, len(names)).numpy()
        for score in scores
        if score.correct is not None
    }
    save_answers(run.folder, Answers(names, labels, digest_of(names, labels), test.fingerprint,
                                     digest_of(*named(train, "training")), right))  # fmt: skip


def named(images: Images, what: str) -> tuple[list[str], list[str]]:
    """Names and classes of labelled images, without line ends, which the file separates them by."""
    return list(images.keys), [str(name).replace(SEPARATOR, " ") for name in class_names(images, what)]


def protocol_of(score: Score) -> str:
    """The protocol; of fine-tuning with the labels it had."""
    labels = score.details.get("labels")
    return score.protocol if labels is None else f"{score.protocol}, labels {labels}"
