"""Who wins on few labels: the fine-tuned encoder beside every other row, by paired comparisons on the test images."""

from collections.abc import Sequence

from diptych.embeddings.paired import Paired, paired_difference
from diptych.embeddings.scores import Score
from diptych.runs.proposed import UNKNOWN, Proposed
from diptych.runs.subjects import CHANCE, CLOSED_FORM, SCRATCH, TRAINED, frozen_name

CLASSIFY = "use `diptych classify`"


def comparisons(scores: Sequence[Score], main: str = TRAINED) -> dict[str, Paired]:
    """The accuracy of the fine-tuned encoder less that of each other subject; of those on the same labels and images."""
    ours = next((score for score in scores if score.subject == main and score.correct is not None), None)
    if ours is None:
        return {}
    return {
        str(score.subject): paired_difference(ours.correct, score.correct)  # pyrefly: ignore
        for score in scores
        if score.subject not in (main, CHANCE) and score.correct is not None
    }


def verdict_on_labels(scores: Sequence[Score], main: str = TRAINED, proposed: Proposed = UNKNOWN) -> list[str]:
    """Lines of text: what to do with these labels, then each comparison. [] without a fine-tuned encoder and a rival.

    main: the subject that is fine-tuned. proposed: the command of the advice.
    """
    pairs = comparisons(scores, main)
    if not pairs:
        return []
    accuracy = {score.subject: score.accuracy for score in scores}
    labels = next(score.train_images for score in scores if score.subject == main)
    better = [name for name, pair in pairs.items() if pair.significant and pair.difference < 0]
    level = [name for name, pair in pairs.items() if not pair.significant]
    if better:
        best = max(better, key=lambda name: accuracy[name])
        known = {CLOSED_FORM: f"use `{proposed.closed_form}` and `diptych classify`", SCRATCH: "train from scratch",
                 frozen_name(main): CLASSIFY}  # fmt: skip
        advice = known.get(best, "the encoder adds nothing to it")
        text = f"{best} is better than the fine-tuned encoder by {points(pairs[best], -1)}: {advice}"
    elif level:
        advice = f": {CLASSIFY}, which costs less" if frozen_name(main) in level else ""
        text = f"no significant difference between the fine-tuned encoder and {' or '.join(level)}{advice}"
    else:
        text = "the fine-tuned encoder is better than every other row"
    lines = [f"  gain over {name}: {points(pair)}{probability(pair.p)}" for name, pair in pairs.items()]
    return [f"verdict on {labels:,} labels: {text}", *lines, f"  points, [95 % interval, {covered(scores)}]"]


def points(pair: Paired, sign: int = 1) -> str:
    """`+6.1 [4.0 to 8.2]`; sign -1: the difference the other way round, `6.1 points [4.0 to 8.2]`."""
    low, high = sorted(100 * sign * end for end in pair.interval)
    difference = 100 * sign * pair.difference
    number = f"{difference:+.1f}" if sign > 0 else f"{difference:.1f} points"
    return f"{number} [{low:.1f} to {high:.1f}]"


def probability(p: float) -> str:
    """`, p = 0.012`."""
    return ", p < 0.001" if p < 0.001 else f", p = {p:.3f}"


def covered(scores: Sequence[Score]) -> str:
    """What the intervals cover."""
    several = any(score.correct is not None and score.correct.ndim == 2 for score in scores)
    return "paired, over test images and seeds" if several else "paired, over the test images of this one seed"
