"""The report's numbers: accuracies beside their references, the cost of the run, its environment."""

import statistics

from diptych.embeddings.duplicates import why_undecided
from diptych.reporting.charts import number
from diptych.reporting.figures import values
from diptych.reporting.keras import KERAS_PROTOCOL_TEXTS
from diptych.reporting.record import LONGEST_TEXT, Record, clip, interval, real
from diptych.runs.run import flatten
from diptych.runs.subjects import PHRASES, frozen_name

# In the order of the table, references first.
SUBJECTS = {
    "chance": "guessing, without the image",
    "raw pixels": "the images themselves, no network",
    "closed form": "a dictionary of the images' own patches, without gradients",
    "untrained": "the same encoder before training",
    "trained": "this run's encoder",
    "joined": "the closed form and this run's encoder side by side (`diptych quick --join`)",
    **dict.fromkeys(
        map(frozen_name, PHRASES), "this run's encoder as it is: only a linear layer is fitted to the same labels"
    ),
    "from scratch": "the same network, never pretrained, trained on the same labels",
}
# Of the run's own encoder, where `diptych quick` made it.
OWN = {
    "closed form": "this run's encoder: a dictionary of the images' own patches, without gradients",
    "joined": "this run's encoder: the closed form and a trained encoder side by side",
}
EXPECTED = ("chance", "raw pixels", "untrained")  # and the run's own: rows that a run should have, also without a score
PROTOCOL_TEXTS = {
    "knn": ("kNN", "A test image gets the class of its nearest training images; nothing is fitted."),
    "linear": (
        "linear",
        "One linear layer is fitted to the frozen encoder's embeddings of the training images.",
    ),
    "linear-sgd": (
        "linear-sgd",
        "One linear layer is trained by SGD on crops and flips through the frozen encoder.",
    ),
    **KERAS_PROTOCOL_TEXTS,
    "finetune": (
        "finetune",
        "Encoder and linear layer are trained together on labels. Raw pixels and the frozen encoder get a linear layer only.",
    ),
}
SIZE_TEXTS = {"train_images": "training images", "test_images": "test images", "classes": "classes"}


def accuracy_section(run: Record) -> dict | None:
    """Accuracies: a row per subject (chance, raw pixels, ...), a column per protocol. None before an evaluation."""
    results = {(line["protocol"], line["subject"]): line for line in run.results}
    chance = next((line for line in run.results if line["subject"] == "chance"), None)
    measured = [protocol for protocol, subject in results if subject != "chance"]
    protocols = list(dict.fromkeys([name for name in PROTOCOL_TEXTS if name in measured] + measured))[:6]
    if not protocols:
        return None
    rows, missing = [], False
    for subject in subjects_in_order(run):
        # Chance does not depend on the protocol: one line of it is used in all columns.
        lines = [results.get((name, subject), chance if subject == "chance" else None) for name in protocols]
        befores = [results.get((name, "untrained")) if subject == run.main else None for name in protocols]
        cells = [cell(line, before) for line, before in zip(lines, befores, strict=True)]
        missing = missing or None in cells
        texts = SUBJECTS | {run.main: OWN.get(run.main, SUBJECTS[run.main])}
        rows.append({"subject": subject, "why": texts.get(subject, ""), "own": subject == run.main, "cells": cells})
    return {
        "protocols": [protocol_note(name, run) for name in protocols],
        "rows": rows,
        "missing": missing,
        "chance": chance["accuracy"] if chance else None,
        "leaks": leaks_text(run),
    }


def protocol_title(name: str) -> str:
    """What people call a protocol: `kNN` for "knn"."""
    return PROTOCOL_TEXTS.get(name, (name, ""))[0]


def leaks_text(run: Record) -> str:
    """Test images that are in the training set, and the run's own accuracies without them; "" without any."""
    leaks = run.leaks
    exact, near, tested = (real((leaks or {}).get(key)) for key in ("exact", "near", "test_images"))
    if leaks is None or exact is None or near is None or tested is None:
        return ""
    unsure, alike = real(leaks.get("undecided")) or 0, real(leaks.get("alike")) or 0.0
    more = f" {number(unsure)} test images that are not counted are {why_undecided(alike)}." if unsure > 0 else ""
    if exact + near <= 0:
        return more.strip()
    text = (f"{number(exact + near)} of {number(tested)} test images {'is' if exact + near == 1 else 'are'} in the training set: "
            f"{number(exact)} with the same pixels, {number(near)} as near copies.")  # fmt: skip
    rows = leaks.get("without")
    accuracies = [(clip(row.get("protocol", ""), 40), real(row.get("accuracy"))) for row in rows
                  if isinstance(row, dict) and row.get("subject") == run.main] if isinstance(rows, list) else []  # fmt: skip
    shown = [
        f"{protocol_title(name)} {number(value, percent=True)}" for name, value in accuracies[:6] if value is not None
    ]
    return f"{text} Without them {PHRASES[run.main]} has {', '.join(shown)}.{more}" if shown else text + more


def subjects_in_order(run: Record) -> list[str]:
    """The rows of the table: those of EXPECTED, the run's own and others that have a score.

    What `diptych quick` made has nothing untrained.
    """
    measured = [line["subject"] for line in run.results]
    expected = [run.main, *(name for name in EXPECTED if not (run.closed_form and name == "untrained"))]
    return list(dict.fromkeys([name for name in SUBJECTS if name in (*expected, *measured)] + measured))[:20]


def cell(line: dict | None, untrained: dict | None) -> dict | None:
    """One accuracy with its interval and its gains over the references. untrained: of the run's own encoder.

    "gain" is the difference to the untrained encoder in points, "apart" whether that is more than chance explains.
    """
    if line is None:
        return None
    accuracy, ends = line["accuracy"], line["interval"]
    paired = paired_gains(line)
    gain = apart = better = None
    if untrained:
        gain = 100 * (accuracy - untrained["accuracy"])
        if "untrained" in paired:
            apart = not paired["untrained"][1] <= 0 <= paired["untrained"][2]
        elif ends and untrained["interval"]:
            apart = ends[0] > untrained["interval"][1] or ends[1] < untrained["interval"][0]
        better = gain > 0 and apart is not False
    texts = [f"{100 * value:+.1f} over {name} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "\N{MINUS SIGN}")
             for name, (value, low, high) in paired.items()]  # fmt: skip
    if gain is not None and "untrained" not in paired:
        texts.append(f"{gain:+.1f} over untrained".replace("-", "\N{MINUS SIGN}"))
    return {"value": accuracy, "ends": ends, "gain": gain, "apart": apart, "better": better, "gains": texts}


def paired_gains(line: dict) -> dict[str, tuple[float, float, float]]:
    """Reference -> (difference, low, high) of a score's line."""
    known = {}
    for name, entry in (line["gains"] if isinstance(line.get("gains"), dict) else {}).items():
        if name not in SUBJECTS:
            continue
        ends = interval(entry.get("interval")) if isinstance(entry, dict) else None
        if ends is not None and (value := real(entry.get("difference"))) is not None:
            known[name] = (value, *ends)
    return known


def protocol_note(name: str, run: Record) -> dict:
    """A protocol in words: what it does, on how many images, with which settings."""
    lines = [line for line in run.results if line["protocol"] == name and line["subject"] != "chance"]
    line = next((line for line in lines if line["subject"] == run.main), lines[0])
    title, explained = PROTOCOL_TEXTS.get(name, (name, PROTOCOL_TEXTS.get(name.split(",")[0], ("", ""))[1]))
    sizes = [(real(line.get(key)), what) for key, what in SIZE_TEXTS.items()]
    details = line["details"] if isinstance(line.get("details"), dict) else {}
    details = {key: value for key, value in details.items() if not isinstance(value, (dict, list))}
    details = dict(list(details.items())[:16]) | {"seed": line.get("seed")}
    return {
        "title": title,
        "text": explained,
        "sizes": ", ".join(f"{number(size)} {what}" for size, what in sizes if size is not None),
        "settings": ", ".join(setting(key, value) for key, value in details.items() if value is not None),
        "measurements": max(line["measurements"] for line in lines),
    }


def setting(key: object, value: object) -> str:
    """`k 200`, `converged yes`; where a protocol is from (`as_in`) without its key."""
    finite = real(value)
    if finite is not None:
        text = number(finite)
    else:
        text = "yes" if value is True else "no" if value is False else clip(value, 100)
    return text if key == "as_in" else f"{clip(key, 40).replace('_', ' ')} {text}"


def summary(accuracy: dict | None, main: str) -> str:
    """The result of `main`, the run's own encoder, in one sentence."""
    title, trained = main_result(accuracy)
    if trained is None:
        return ""
    text = f"{PHRASES[main].capitalize()} reaches {number(trained['value'], percent=True)} ({title} accuracy)"
    if trained["gain"] is None:
        return f"{text}."
    if trained["apart"] is False:
        return f"{text}, which cannot be distinguished from the same encoder untrained: training has shown no gain yet."
    more = "more" if trained["gain"] > 0 else "less"
    return f"{text}, {abs(trained['gain']):.1f} points {more} than the same encoder untrained."


def main_result(accuracy: dict | None) -> tuple[str, dict | None]:
    """The title and the cell of the run's own encoder under `linear`, else under the last protocol that has one."""
    own = next((row["cells"] for row in accuracy["rows"] if row["own"]), []) if accuracy else []
    titles = [protocol["title"] for protocol in accuracy["protocols"]] if accuracy else []
    cells = [pair for pair in zip(titles, own, strict=True) if pair[1] is not None]
    return next((pair for pair in cells if pair[0] == "linear"), cells[-1] if cells else ("", None))


def facts(run: Record) -> list[str]:
    """The run in a few words: method, encoder, source."""
    names = []
    for key in ("method", "encoder", "source"):
        value = run.recipe.get(key)
        value = value.get("name") if isinstance(value, dict) else value
        if isinstance(value, str):
            names.append(clip(value, 80).replace("_", " ") if key == "method" else clip(value, 80))
    return names


def cost(run: Record) -> list[tuple[str, str]]:
    """Time, images, steps and device of the run: (name, value)."""
    last, end = run.steps[-1] if run.steps else {}, run.end or {}
    rates = [rate for _, rate in values(run.steps, "images_per_second") if rate > 0]
    seconds = real((run.end or last).get("elapsed_seconds"))
    speed = real(end.get("images_per_second")) or (statistics.median(rates) if rates else None)
    step, epoch = real(last.get("step")), real(last.get("epoch"))
    sizes = [real(size) for key, size in flatten(run.recipe).items() if key.split(".")[-1] == "batch_size"]
    batch = sizes[0] if sizes else None
    device = run.environment.get("device")
    rows = {
        "Time": duration(seconds) if seconds is not None else None,
        "Images per second": number(round(speed)) if speed else None,
        "Images seen": number(step * batch) if step and batch else None,
        "Steps": number(step) if step is not None else None,
        "Epochs": number(epoch) if epoch is not None else None,
        "Batch": f"{number(batch)} images" if batch else None,
        "Device": clip(device, 60) if isinstance(device, str) else None,
    }
    return [(name, value) for name, value in rows.items() if value]


def environment_rows(run: Record) -> list[tuple[str, str]]:
    """The values of environment.json: (name, value)."""
    rows = []
    for key, value in list(flatten(run.environment).items())[:60]:
        value = " ".join(map(str, value)) if isinstance(value, list) else value
        rows.append((clip(key, 80), "none" if value is None else clip(value)))
    return rows


def clipped_texts(value: object, longest: int = LONGEST_TEXT) -> list[str]:
    """At most 12 texts of bounded length, from a list or one text; [] for anything else."""
    items = value if isinstance(value, list) else [value] if isinstance(value, str) else []
    return [clip(item, longest) for item in items[:12]]


def duration(seconds: float) -> str:
    """Seconds in readable units: 4.1 s, 41 s, 3 min 12 s, 2 h 05 min."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
