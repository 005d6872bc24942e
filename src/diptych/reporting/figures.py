"""The report's figures of training: curves, views, correlation, as dicts for the template (or None)."""

import numpy as np

from diptych.reporting.charts import heat_map, line_chart, number
from diptych.reporting.pictures import data_uri, shrink_to_fit
from diptych.reporting.record import Record, clip, real

# The bytes that the pictures of views may take; those of the map are in explore.py.
VIEWS_BYTES = 700_000
MOST_PARTS, LARGEST_MATRIX = 8, 256

SENTENCES = {
    "loss": "The number that training lowers. It should fall, then flatten. A jump, or no fall at all, is suspicious.",
    "on_diagonal": "How far the same dimension differs between the two views; 0 is perfect.",
    "off_diagonal": "How redundant the dimensions are; 0 means that no two of them are correlated.",
    "gradient_norm": "The size of a step's gradient. It should stay in one range, without spikes.",
    "lr": "How large the optimizer's steps are. It usually warms up briefly, then falls to nearly zero.",
    "knn_accuracy": "On a fifth of a sample of training images, by the others. It tracks training; it is not a test accuracy.",
    "rank": "How many dimensions the embeddings use. It depends on the number of images. A fall towards 1 is a collapse.",
    "spread": "How much embeddings vary: random directions give 1; near 0 is a collapse.",
    "correlation": "The same dimension in both views (diagonal) should approach 1, different ones 0.",
    "images_per_second": "How fast training reads images. A drop often means that another program used the machine.",
}
TITLES = {
    "loss": "Loss",
    "gradient_norm": "Gradient norm",
    "lr": "Learning rate",
    "knn_accuracy": "kNN among training images",
    "rank": "Effective rank",
    "spread": "Spread of the embeddings",
    "correlation": "Correlation of views",
    "images_per_second": "Images per second",
}
CORRELATION_NAMES = {"on_diagonal_mean": "mean of the diagonal", "off_diagonal_mean": "mean off the diagonal"}


def training_charts(run: Record) -> list[dict]:
    """Loss, its parts, gradient norm and learning rates over steps."""
    charts = [chart("loss", {"loss": values(run.steps, "loss")}, wide=True)]
    parts = [{**line["parts"], "step": line["step"]} for line in run.steps if isinstance(line.get("parts"), dict)]
    names = list(dict.fromkeys(name for line in parts for name in line if name != "step"))
    for name in names[:MOST_PARTS]:
        charts.append(chart(f"parts.{name}", {name: values(parts, name)}, name, wide=True))
    charts.append(chart("gradient_norm", {"gradient norm": values(run.steps, "gradient_norm")}, wide=True))
    charts.append(chart("lr", learning_rates(run.steps)))
    return [figure for figure in charts if figure]


def learning_rates(steps: list[dict]) -> dict[str, list[tuple[float, float]]]:
    """One line per group of weights; groups with equal rates at all steps share a line."""
    lines = [(line["step"], [real(rate) for rate in line["lr"]]) for line in steps if isinstance(line.get("lr"), list)]
    groups: dict[tuple, list[int]] = {}
    for group in range(min((len(rates) for _, rates in lines), default=0)):
        points = tuple((step, rates[group]) for step, rates in lines if rates[group] is not None)
        groups.setdefault(points, []).append(group + 1)
    shown = list(groups.items())[:MOST_PARTS]
    if len(shown) == 1:
        return {"learning rate": list(shown[0][0])}
    return {f"group {', '.join(map(str, members))}": list(points) for points, members in shown}


def watch_charts(run: Record) -> list[dict]:
    """The readings taken in training: accuracy, rank, spread, correlation, then those that a user has added."""
    charts = [
        chart(
            "knn_accuracy",
            {"accuracy": values(run.watches, "knn_accuracy")},
            percent=True,
        ),
        chart("rank", {"rank": values(run.watches, "rank")}, of=watched_images(run)),
        chart("spread", {"spread": values(run.watches, "spread")}),
        chart("correlation", {label: values(run.watches, name) for name, label in CORRELATION_NAMES.items()}),
    ]
    known = {"event", "step", "epoch", "knn_accuracy", "rank", "spread", *CORRELATION_NAMES}
    others = dict.fromkeys(name for line in run.watches for name in line if name not in known)
    charts += [chart(f"watch.{name}", {name: values(run.watches, name)}, name) for name in list(others)[:MOST_PARTS]]
    return [figure for figure in charts if figure]


def speed_chart(run: Record) -> dict | None:
    """Images per second over steps. The first step warms up: it is logged as 0 and left out."""
    points = [(step, rate) for step, rate in values(run.steps, "images_per_second") if rate > 0]
    return chart("images_per_second", {"images per second": points})


def watched_images(run: Record) -> str:
    """ " of up to N images", those that the watches read; "" where the recipe does not tell."""
    section = run.recipe.get("watch")
    count = real(section.get("images")) if isinstance(section, dict) else None
    return f" of up to {number(count)} images" if count else ""


def chart(name: str, series: dict, own: str | None = None, *, of: str = "", **options) -> dict | None:
    """A line chart with title and sentence; `own` is the name of a reading that only this run has. of: the title's end."""
    unknown = "One of the loss's terms." if name.startswith("parts.") else "A reading that this run added."
    sentence = SENTENCES.get(own or name, unknown)
    title = clip(own, 60).replace("_", " ") if own else TITLES[name] + of
    title = title[:1].upper() + title[1:]
    series = {clip(label, 40): points for label, points in series.items()}
    return line_chart(clip(name, 60), title, sentence, series, **options)


def values(lines: list[dict], name: str) -> list[tuple[float, float]]:
    """(step, value) where the value is a finite number."""
    pairs = [(real(line.get("step")), real(line.get(name))) for line in lines]
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def view_rows(run: Record) -> list[list[str]]:
    """Rows of pictures (image, view 1, view 2, ...), as many as fit into VIEWS_BYTES."""
    images_of = run.pictures.get("views", {})
    size = 112 if len(images_of) <= 9 else 64  # many views are drawn smaller on the page, too
    columns = [shrink_to_fit(images[:24], size) for images in images_of.values()]
    rows, bytes_left = [], VIEWS_BYTES
    for images in zip(*columns, strict=True):
        row = [data_uri(image) for image in images]
        bytes_left -= sum(map(len, row))
        if bytes_left < 0:
            break
        rows.append(row)
    return rows


def correlation(run: Record) -> dict | None:
    """The leading block of the cross-correlation as a picture, with the means that should approach 1 and 0."""
    if "correlation" not in run.pictures:
        return None
    matrix = run.pictures["correlation"]["matrix"][:LARGEST_MATRIX, :LARGEST_MATRIX].astype(np.float64)
    d = len(matrix)
    diagonal = np.diag(matrix)
    off = np.abs(matrix)[~np.eye(d, dtype=bool)]
    return {
        "uri": data_uri(heat_map(matrix)),
        "d": d,
        "on": number(float(diagonal.mean())),
        "off": number(float(off.mean())) if d > 1 else None,
    }
