"""How many labels are needed, as a text, as a part of a page and as a page: from the line `label_curve` of evaluations.jsonl."""

import math
from collections.abc import Sequence
from typing import Any

from jinja2 import UndefinedError

from diptych.reporting.charts import COLOURS, linear_ticks, number
from diptych.reporting.page import page_template, text_of
from diptych.reporting.record import Record, clip
from diptych.runs.subjects import PHRASES, TRAINED

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 52, 16, 12, 40
BEYOND = "beyond what was measured"


def label_table(line: dict[str, Any]) -> list[str]:
    """Lines of text: accuracies by number of labels, the forecast at twice the labels, and the labels for a target."""
    curve = line["label_curve"]
    subjects, sizes = names_of(curve, "subject"), names_of(curve, "labels")
    cells = {(row["subject"], row["labels"]): row for row in curve["rows"]}
    header = ["labels", *subjects]
    rows = [[f"{size:,} ({cells[(subjects[0], size)]['name']})", *(cell_text(cells.get((name, size))) for name in subjects)]
            for size in sizes]  # fmt: skip
    if curve["fits"]:
        twice = {name: fit["twice"] for name, fit in curve["fits"].items()}
        size = next(iter(twice.values()))["labels"]
        rows.append([f"{size:,} (forecast)", *(band_text(twice.get(name)) for name in subjects)])
    widths = [max(len(row[i]) for row in [header, *rows]) + 2 for i in range(len(header))]
    lines = [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
    ]
    lines[0] = "accuracy, %\n" + lines[0]
    lines += [f"{curve['test_images']:,} test images; mean of {curve['draws']} draws of the labels, +- their standard deviation "
              f"(all labels: one draw); forecasts are {BEYOND} [95 % band]", *sentences(curve)]  # fmt: skip
    return lines


def main_of(curve: dict[str, Any]) -> str:
    """The subject that the others are compared with."""
    return curve.get("main", TRAINED)


def names_of(curve: dict[str, Any], key: str) -> list:
    values = list(dict.fromkeys(row[key] for row in curve["rows"]))
    return sorted(values) if key == "labels" else values


def cell_text(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    accuracies = row["accuracies"]
    text = f"{100 * row['accuracy']:.1f}"
    if len(accuracies) > 1:
        mean = sum(accuracies) / len(accuracies)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in accuracies) / (len(accuracies) - 1))
        text += f" +- {100 * deviation:.1f}"
    return text


def band_text(point: dict[str, Any] | None) -> str:
    if point is None:
        return "-"
    return f"{100 * point['accuracy']:.1f} [{100 * point['low']:.1f}-{100 * point['high']:.1f}]"


def sentences(curve: dict[str, Any]) -> list[str]:
    """Where the main encoder is better than each other row, and how many labels a target takes."""
    lines = []
    for name in names_of(curve, "subject"):
        rows = [row for row in curve["rows"] if row["subject"] == name and "gain" in row]
        words = [(row["labels"], word_of(row)) for row in rows]
        parts = []
        for word in ("better than", "worse than", "not significantly different from"):
            if sizes := [f"{size:,}" for size, other in words if other == word]:
                parts.append(f"{word} {name} at {', '.join(sizes)} labels")
        if parts:
            lines.append(f"{main_of(curve)} is {'; '.join(parts)}")
    if curve["target"] is not None:
        aim = f"{100 * curve['target']:.4g} %"
        for name, fit in curve["fits"].items():
            point = fit.get("needed")
            if point is None:
                lines.append(f"{name}: {aim} is not reached by any number of labels on the fitted curve")
            else:
                low, high = 100 * point["low"], 100 * point["high"]
                beyond = f", {BEYOND}" if point["beyond"] else ""
                lines.append(f"{name}: {aim} takes about {rounded(point['labels']):,} labels; the band there is {low:.1f} to "
                             f"{high:.1f} %{beyond}")  # fmt: skip
    return lines


def word_of(row: dict[str, Any]) -> str:
    low, high = row["gain_interval"]
    if low <= 0 <= high or row["gain_p"] >= 0.05:
        return "not significantly different from"
    return "better than" if row["gain"] > 0 else "worse than"


def rounded(count: int) -> int:
    """Two significant digits."""
    return round(count, 2 - len(str(count))) if count >= 100 else count


def label_chart(line: dict[str, Any]) -> dict[str, Any]:
    """The figure as numbers for the template: accuracy in percent over labels on a logarithmic scale."""
    curve = line["label_curve"]
    subjects, sizes = names_of(curve, "subject"), names_of(curve, "labels")
    points = {name: fit["curve"] for name, fit in curve["fits"].items()}
    last = max([sizes[-1], *(point["labels"] for fit in points.values() for point in fit)])
    shares = [100 * row["accuracy"] for row in curve["rows"]]
    shares += [100 * point[end] for point in points.get(main_of(curve), ()) for end in ("low", "high")]
    ticks, low, high = linear_ticks(max(0.0, min(shares)), min(100.0, max(shares)), 5)
    first = max(1, sizes[0])

    def x_of(labels: float) -> float:
        span = math.log(last / first) or 1.0
        return round(LEFT + math.log(labels / first) / span * (WIDTH - LEFT - RIGHT), 1)

    def y_of(share: float) -> float:
        place = (min(max(100 * share, low), high) - low) / (high - low)
        return round(HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for name in subjects:
        rows = [row for row in curve["rows"] if row["subject"] == name]
        fitted = points.get(name, [])
        inside = [point for point in fitted if not point["beyond"]]
        outside = inside[-1:] + [point for point in fitted if point["beyond"]]
        places = [(x_of(row["labels"]), y_of(row["accuracy"])) for row in rows]
        lines.append({
            "label": name, "colour": len(lines) % COLOURS, "dots": places, "last": f"{100 * rows[-1]['accuracy']:.1f} %",
            "path": path(inside, x_of, y_of) or "M" + "L".join(f"{x:g} {y:g}" for x, y in places),
            "beyond": path(outside, x_of, y_of), "band": band(fitted, x_of, y_of) if name == main_of(curve) else "",
        })  # fmt: skip
    return {"lines": lines, "x_ticks": [(x_of(size), f"{size:,}") for size in spaced(sizes, x_of)],
            "y_ticks": [(y_of(tick / 100), f"{number(tick)} %") for tick in ticks], "measured": x_of(sizes[-1]),
            "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM,
            "top": TOP}  # fmt: skip


def path(points: Sequence[dict], x_of, y_of) -> str:
    if len(points) < 2:
        return ""
    return "M" + "L".join(f"{x_of(point['labels']):g} {y_of(point['accuracy']):g}" for point in points)


def band(points: Sequence[dict], x_of, y_of) -> str:
    upper = [f"{x_of(point['labels']):g} {y_of(point['high']):g}" for point in points]
    lower = [f"{x_of(point['labels']):g} {y_of(point['low']):g}" for point in reversed(points)]
    return "M" + "L".join(upper + lower) + "z" if points else ""


def spaced(sizes: Sequence[int], x_of) -> list[int]:
    """Sizes whose names do not overlap."""
    chosen: list[int] = []
    for size in sorted(sizes, reverse=True):
        if not chosen or x_of(chosen[-1]) - x_of(size) >= 52:
            chosen.append(size)
    return chosen


def label_figure(line: dict[str, Any]) -> str:
    """The figure, its table and its sentences as a part of a page, whose style needs report.css and compare.css."""
    curve = line["label_curve"]
    sizes, subjects = names_of(curve, "labels"), names_of(curve, "subject")
    cells = {(row["subject"], row["labels"]): row for row in curve["rows"]}
    rows = [(f"{size:,}", [cell_text(cells.get((name, size))) for name in subjects]) for size in sizes]
    twice = {name: fit["twice"] for name, fit in curve["fits"].items()}
    if twice:
        size = next(iter(twice.values()))["labels"]
        rows.append((f"{size:,}, forecast", [band_text(twice.get(name)) for name in subjects]))
    return page_template("labels_part.html.jinja").render(
        chart=label_chart(line),
        subjects=subjects,
        rows=rows,
        sentences=sentences(curve),
        curve=curve,
        beyond=BEYOND,
        main=PHRASES.get(main_of(curve), main_of(curve)),
    )


def label_part(run: Record) -> str:
    """The figure of a run's last `diptych labels`; "" without one. A damaged line is left out and noted."""
    if run.label_curve is None:
        return ""
    try:
        return label_figure({"label_curve": run.label_curve})
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        StopIteration,
        UndefinedError,
    ) as error:
        run.notes.append(f"evaluations.jsonl: the curve of labels cannot be drawn ({clip(error, 80)})")
        return ""


def label_page(line: dict[str, Any], name: str) -> str:
    """The page of `diptych labels`."""
    curve = line["label_curve"]
    facts = [
        f"{curve['test_images']:,} test images",
        f"{curve['classes']} classes",
        f"{curve['draws']} draws of the labels",
    ]
    return page_template("labels.html.jinja").render(
        name=name, facts=facts, part=label_figure(line), style=text_of("report.css", "compare.css")
    )
