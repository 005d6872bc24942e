"""What the commands print of a run: a table of accuracies, the verdict, what to do next."""

from diptych.base.files import read_lines
from diptych.runs.run import Run


def table(lines: list[dict]) -> str:
    """The lines of `evaluate` for a terminal: a row a subject, a column a protocol, then the verdict."""
    scores = [line for line in lines if "accuracy" in line]
    columns = list(dict.fromkeys(line["protocol"] for line in scores))
    rows = list(dict.fromkeys(line["subject"] for line in scores))
    found = {(line["subject"], line["protocol"]): line for line in scores}
    wide = {name: max(20, len(name) + 2) for name in columns}
    text = [f"{'accuracy, %':<14}" + "".join(f"{name:>{wide[name]}}" for name in columns)]
    for row in rows:
        cells = [f"{cell_of(found.get((row, column))):>{wide[column]}}" for column in columns]
        text.append(f"{row:<14}" + "".join(cells))
    one = scores[-1]
    text.append(f"{one['test_images']:,} test and {one['train_images']:,} training images of {one['classes']} classes; "
                "[95 % interval over the test images]")  # fmt: skip
    for line in scores:
        if each := line["details"].get("accuracies"):
            told = ", ".join(f"{100 * accuracy:.1f}" for accuracy in each)
            spread = f"{100 * line['details']['spread']:.1f}"
            text.append(f"{line['subject']}: mean of {len(each)} seeds, standard deviation {spread} ({told})")
    return "\n".join(text + [verdict(line["diagnosis"]) for line in lines if "diagnosis" in line])


def verdict(diagnosis: dict) -> str:
    """The verdict, why, and what to try, a line each."""
    first = "; ".join([f"verdict: {diagnosis['verdict']}", *diagnosis["reasons"]])
    return "\n  try: ".join([first, *diagnosis["advice"]])


def finished(run: Run) -> str:
    """What a run that has ended says: its folder, the verdict, what to do next."""
    told = [line["diagnosis"] for line in read_lines(run.folder / "evaluations.jsonl") if "diagnosis" in line]
    after = f"next: diptych evaluate {run.folder} --train SOURCE --test SOURCE, or diptych report {run.folder}"
    return "\n".join([str(run.folder), *map(verdict, told[-1:]), after])


def cell_of(line: dict | None) -> str:
    return (
        ""
        if line is None
        else f"{100 * line['accuracy']:.1f} [{100 * line['interval'][0]:.1f}-{100 * line['interval'][1]:.1f}]"
    )
