"""The result of `evaluate` and `finetune`: scores by protocol and subject, a diagnosis, and both as a readable table."""

from collections.abc import Sequence
from dataclasses import dataclass

from diptych.base.errors import RecipeError
from diptych.downstream.comparison import verdict_on_labels
from diptych.downstream.leaks import Leaks
from diptych.downstream.worth import gains
from diptych.embeddings.diagnose import Diagnosis
from diptych.embeddings.scores import Score
from diptych.runs.proposed import UNKNOWN, Proposed
from diptych.runs.subjects import JOINED, TRAINED


@dataclass(frozen=True)
class Evaluation:
    """Scores with their protocol and subject (see subjects.py), and the diagnosis of the embeddings of the test images.

    The diagnosis is None if nothing was embedded; leaks: test images that are in the training set, None where that was not
    looked for. main: the subject that was judged, "trained", "closed form" or "joined"; proposed: the commands of its
    advice. `str` returns the table.
    """

    scores: list[Score]
    diagnosis: Diagnosis | None = None
    leaks: Leaks | None = None
    main: str = TRAINED
    proposed: Proposed = UNKNOWN

    def score(self, protocol: str, subject: str | None = None) -> Score:
        """The score of one protocol and subject (None: `main`). Raises RecipeError if there is none."""
        subject = self.main if subject is None else subject
        for score in self.scores:
            if (score.protocol, score.subject) == (protocol, subject):
                return score
        existing = ", ".join(f"{score.protocol} of {score.subject}" for score in self.scores)
        raise RecipeError(f"there is no score of {subject!r} by {protocol!r}; there are {existing}")

    def lines(self) -> list[dict]:
        """Lines of a run's evaluations.jsonl: one per score, one with the leaks, then one with the diagnosis.

        Every line has one of the keys "protocol", "leaks", "diagnosis" and "label_curve" (of `labels`); readers pass over
        lines with none that they know.
        """
        lines = [score.line() for score in self.scores]
        for line in lines:
            over = gains(self.scores, line["subject"]) if line["subject"] in (self.main, JOINED) else []
            own = {gain.reference: gain.line() for gain in over if gain.protocol == line["protocol"]}
            line |= {"gains": own} if own else {}
        lines += [] if self.leaks is None else [self.leaks.line(self.scores)]
        return lines if self.diagnosis is None else [*lines, {"diagnosis": vars(self.diagnosis)}]

    def table(self) -> str:
        """One row per subject and one column per protocol, then the spread over several seeds, then the verdict."""
        text = [*accuracy_table(self.scores), *neighbours_of(self.scores), *seeds_of(self.scores)]
        text += verdict_on_labels([score for score in self.scores if score.protocol == "finetune"],
                                  self.main, self.proposed)  # fmt: skip
        text += [] if self.leaks is None else self.leaks.text(self.scores, self.main)
        if self.diagnosis is not None:
            text.append(verdict_of(self.diagnosis))
        return "\n".join(text)

    def __str__(self) -> str:
        return self.table()


def accuracy_table(scores: Sequence[Score]) -> list[str]:
    """Lines of text: accuracies in %, with their intervals."""
    columns = list(dict.fromkeys(score.protocol for score in scores))
    rows = list(dict.fromkeys(str(score.subject) for score in scores))
    cells = {(score.subject, score.protocol): percentages(score) for score in scores}
    widths = {name: max(20, len(name) + 2) for name in columns}
    first = max(map(len, ["accuracy, %", *rows])) + 2
    text = [f"{'accuracy, %':<{first}}" + "".join(f"{name:>{widths[name]}}" for name in columns)]
    for row in rows:
        text.append(f"{row:<{first}}" + "".join(f"{cells.get((row, name), ''):>{widths[name]}}" for name in columns))
    last = scores[-1]
    sizes = f"{last.test_images:,} test and {last.train_images:,} training images of {last.classes} classes"
    return [*text, f"{sizes}; [95 % interval over the test images]"]


def percentages(score: Score) -> str:
    low, high = (100 * end for end in score.interval)
    return f"{100 * score.accuracy:.1f} [{low:.1f}-{high:.1f}]"


def neighbours_of(scores: Sequence[Score]) -> list[str]:
    """A line with the number of neighbours of kNN; [] without kNN."""
    used = {(score.protocol, score.details["k"]) for score in scores if "k" in score.details}
    return [f"{protocol}: vote of the k = {k} nearest training images" for protocol, k in sorted(used)]


def seeds_of(scores: Sequence[Score]) -> list[str]:
    """A line for each score that is a mean over seeds."""
    text = []
    for score in scores:
        if accuracies := score.details.get("accuracies"):
            values = ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
            deviation = f"standard deviation {100 * score.details['spread']:.1f}"
            text.append(f"{score.subject}: mean of {len(accuracies)} seeds, {deviation} ({values})")
    return text


def verdict_of(diagnosis: Diagnosis) -> str:
    """The verdict, its lamps or (without lamps) its reasons, then the advice, one line each."""
    first = "; ".join([f"verdict: {diagnosis.verdict}", *([] if diagnosis.lamps else diagnosis.reasons)])
    lamps = [f"  {name}: {lamp['word']}; {lamp['text']}" for name, lamp in diagnosis.lamps.items()]
    return "\n".join([first, *lamps, *(f"  try: {advice}" for advice in diagnosis.advice)])
