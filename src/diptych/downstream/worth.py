"""Is an encoder worth its training? Its accuracy beside that of references that cost little or nothing, in pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diptych.data.images import Images
from diptych.embeddings.diagnose import Diagnosis
from diptych.embeddings.lamps import NOT_MEASURED, Lamp, judge
from diptych.embeddings.paired import Paired, paired_difference
from diptych.embeddings.scores import Score
from diptych.networks.patches import SMALLEST_SIZE, PatchDictionary
from diptych.runs.encoder import Trained
from diptych.runs.proposed import UNKNOWN, Proposed
from diptych.runs.run import Run, is_run
from diptych.runs.subjects import CLOSED_FORM, RAW_PIXELS, TRAINED, UNTRAINED
from diptych.training.quick import FEWEST, quick

REFERENCES = (RAW_PIXELS, CLOSED_FORM, UNTRAINED)  # an encoder below one of them is not OK


@dataclass(frozen=True)
class Gain:
    """The accuracy of the trained encoder less that of a reference, by one protocol, on the same test images."""

    protocol: str
    reference: str
    paired: Paired

    def line(self) -> dict:
        """As a line of evaluations.jsonl has it."""
        return {"difference": self.paired.difference, "interval": list(self.paired.interval)}

    def __str__(self) -> str:
        low, high = (100 * end for end in self.paired.interval)
        points = 100 * self.paired.difference
        position = "above" if points >= 0 else "below"
        name = "the closed form" if self.reference == CLOSED_FORM else self.reference
        return f"{self.protocol}: {abs(points):.1f} points {position} {name} [{low:+.1f} to {high:+.1f}]"


def closed_form(
    trained: Trained, images: Images, seed: int, say: Callable[[str], object], *, device: torch.device | str = "auto"
) -> Trained | None:
    """The closed-form encoder of the training images (`training.quick`), the strongest reference that seconds can buy.

    say: called before it is computed. device: where it is computed. Returns None where it would be no reference: for an
    encoder of that kind, and for images too few or too small to compute one.
    """
    if isinstance(trained.encoder, PatchDictionary) or len(images) < FEWEST or images.size < SMALLEST_SIZE:
        return None
    say("closed-form encoder of the training images ...")
    return quick(images, seed=seed, device=str(device), show=False)


def proposed_for(trained: Trained, train: Images) -> Proposed:
    """What the advice proposes: of the images that were fitted on, or else of the run's source."""
    folder = trained.folder
    recorded = Run(folder).recipe.get("source") if folder is not None and is_run(folder) else None
    return Proposed(train.origin or (recorded if isinstance(recorded, str) and recorded else None), folder)


def gains(scores: Sequence[Score], subject: str) -> list[Gain]:
    """The gain of `subject` over each other reference, by every protocol that both have a score of."""
    by_name = {(score.protocol, score.subject): score for score in scores}
    pairs = []
    for (protocol, name), score in by_name.items():
        for reference in REFERENCES if name == subject else ():
            other = None if reference == subject else by_name.get((protocol, reference))
            if other is not None and score.correct is not None and other.correct is not None:
                pairs.append(Gain(protocol, reference, paired_difference(score.correct, other.correct)))
    return pairs


def worth(compared: Sequence[Gain]) -> Lamp:
    """The lamp of an encoder's gains. WORSE where a reference is better for certain, WARNING where one could be.

    OK takes a gain over the best reference, by one protocol at least, whose interval is above 0, and no loss by another.
    """
    losing = [gain for gain in compared if gain.paired.difference < 0]
    if losing:
        surely = any(gain.paired.interval[1] < 0 for gain in losing)
        return Lamp("WORSE" if surely else "WARNING", "; ".join(map(str, losing)))
    # The least gain of a protocol is the one over its best reference.
    least = {gain.protocol: gain for gain in sorted(compared, key=lambda gain: -gain.paired.difference)}
    if not least:
        return Lamp(NOT_MEASURED, "there is no reference to compare with")
    text = "; ".join(str(gain) for gain in least.values())
    return Lamp("OK" if any(gain.paired.interval[0] > 0 for gain in least.values()) else "WARNING", text)


def with_worth(
    diagnosis: Diagnosis,
    learning: Lamp,
    compared: Sequence[Gain],
    joined: Sequence[Gain] = (),
    *,
    own: bool = True,
    main: str = TRAINED,
    proposed: Proposed = UNKNOWN,
) -> Diagnosis:
    """The verdict of all three lamps, and what to do where a reference is better.

    own: whether the encoder was trained here, so that advice on its training can be followed.
    joined: the gains of the closed form and the encoder side by side; where they are clear, it is advised.
    main: the subject that was judged. proposed: the commands of the advice.
    """
    losing = [gain for gain in compared if gain.paired.difference < 0]
    collapsed = diagnosis.verdict == "COLLAPSED"
    known = main == CLOSED_FORM or any(gain.reference == CLOSED_FORM for gain in compared)
    texts = advice(losing, joined, proposed, known, own=own) if losing and not collapsed else ()
    return judge(diagnosis, learning, worth(compared), texts)


def advice(losing: Sequence[Gain], joined: Sequence[Gain], proposed: Proposed, known: bool, *, own: bool) -> list[str]:
    """What to do where references are better. known: whether the closed form was measured. The rest: see `with_worth`."""
    better = {gain.reference for gain in losing}
    beside = [gain for gain in joined if gain.reference == CLOSED_FORM]
    clear = [gain for gain in beside if gain.paired.interval[0] > 0]
    texts = []
    if clear and not any(gain.paired.interval[1] < 0 for gain in beside):
        texts.append(f"join both: `{proposed.joined}` ({'; '.join(map(str, clear))})")
    elif CLOSED_FORM in better:
        texts.append(f"use the closed form on these images: `{proposed.closed_form}` computes it without training")
    elif better:
        rest = f": {' and '.join(sorted(better))} did better" if known else f"; try `{proposed.closed_form}`"
        texts.append(f"do not use this encoder on these images{rest}")
    training = ("train longer (--extend), and look at the views (`diptych views`): centred objects need crops of scale "
                "[0.6, 1], and letters no flips")  # fmt: skip
    return [*texts, training] if own else texts
