"""The report's figures: curves, views, correlation, map, neighbours, as dicts for the template (or None)."""

import numpy as np

from diptych.reporting.charts import MAP_THUMBNAIL, heat_map, line_chart, mark, number, scatter
from diptych.reporting.pictures import data_uri, shrink_to_fit
from diptych.reporting.record import Record, clip, real

# The bytes that a figure's pictures may take. With the text, the page stays below 5 MB for any run.
VIEWS_BYTES, MAP_BYTES, NEIGHBOURS_BYTES = 1_000_000, 1_900_000, 1_000_000
MOST_PARTS, MOST_POINTS, MOST_CLASSES, LARGEST_MATRIX = 8, 800, 40, 256

SENTENCES = {
    "loss": "The number that training lowers. It should fall, then flatten. A jump, or no fall at all, is suspicious.",
    "on_diagonal": "How far the same dimension differs between the two views; 0 is perfect.",
    "off_diagonal": "How much different dimensions repeat each other; 0 means that no two of them agree.",
    "gradient_norm": "The size of a step's gradient. It should stay in one range, without spikes.",
    "lr": "How large the optimizer's steps are. It usually warms up briefly, then falls to nearly zero.",
    "knn_accuracy": "Share of held-out images whose nearest neighbours predict their class; higher is better.",
    "rank": "How many dimensions the embeddings use. A fall towards 1 is a collapse.",
    "spread": "How far embeddings vary: random directions give 1; near 0 is a collapse.",
    "correlation": "The same dimension in both views (diagonal) should approach 1, different ones 0.",
    "images_per_second": "How fast training reads images. A drop often means that another program used the machine.",
}
TITLES = {
    "loss": "Loss",
    "gradient_norm": "Gradient norm",
    "lr": "Learning rate",
    "knn_accuracy": "Online kNN accuracy",
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
    chance = next((line["accuracy"] for line in run.results if line["subject"] == "chance"), None)
    reference = ("chance", chance) if chance is not None else None
    charts = [
        chart(
            "knn_accuracy",
            {"accuracy": values(run.watches, "knn_accuracy")},
            percent=True,
            reference=reference,
        ),
        chart("rank", {"rank": values(run.watches, "rank")}),
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


def chart(name: str, series: dict, own: str | None = None, **options) -> dict | None:
    """A line chart with title and sentence; `own` is the name of a reading that only this run has."""
    unknown = "One of the loss's terms." if name.startswith("parts.") else "A reading that this run adds."
    sentence = SENTENCES.get(own or name, unknown)
    title = clip(own, 60).replace("_", " ") if own else TITLES[name]
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


def map_figure(run: Record) -> dict | None:
    """The map of the embeddings: places, class marks and, where there is room, the images."""
    if "map" not in run.pictures:
        return None
    arrays = run.pictures["map"]
    offered = len(arrays["xy"])
    chosen = np.unique(np.linspace(0, offered - 1, min(offered, MOST_POINTS)).astype(int))
    labels = [int(label) for label in arrays["labels"][chosen]]
    places, with_room = scatter(arrays["xy"][chosen].astype(np.float64))
    uris = pictures_within(shrink_to_fit(arrays["thumbnails"][chosen], 40), with_room, MAP_BYTES)
    names = stored_class_names(run)
    points = [
        {
            "x": x,
            "y": y,
            **mark(label),
            "name": class_name(names, label),
            "uri": uri,
            "shown": free and uri is not None,
        }
        for (x, y), label, uri, free in zip(places, labels, uris, with_room, strict=True)
    ]
    present = sorted({label for label in labels if label >= 0})
    legend = [{**mark(label), "name": class_name(names, label)} for label in present[:MOST_CLASSES]]
    return {
        "points": points,
        "legend": legend,
        "unlisted": len(present) - len(legend),
        "offered": offered,
        "drawn": len(points),
        "method": clip(arrays["made_by"], 40) if "made_by" in arrays else None,
        "size": MAP_THUMBNAIL,
    }


def pictures_within(images: np.ndarray, first: list[bool], most: int) -> list[str | None]:
    """Images as data URIs, those marked `first` before others; None for the images beyond `most` bytes."""
    uris: list[str | None] = [None] * len(images)
    for index in sorted(range(len(images)), key=lambda i: not first[i]):
        uri = data_uri(images[index])
        most -= len(uri)
        if most < 0:
            break
        uris[index] = uri
    return uris


def neighbours(run: Record) -> dict | None:
    """Test images with their nearest neighbours, similarities, and whether the class is the same."""
    if "neighbours" not in run.pictures:
        return None
    arrays, names = run.pictures["neighbours"], stored_class_names(run)
    rows, bytes_left, right, known = [], NEIGHBOURS_BYTES, 0, 0
    for index in range(min(len(arrays["query"]), 20)):
        query = int(arrays["query_labels"][index])
        tiles = np.concatenate([arrays["query"][index : index + 1], arrays["neighbours"][index, :12]])
        uris = [data_uri(image) for image in shrink_to_fit(tiles, 64)]
        bytes_left -= sum(map(len, uris))
        if bytes_left < 0:
            break
        nearest = []
        for uri, label, similarity in zip(
            uris[1:], arrays["neighbour_labels"][index], arrays["similarity"][index], strict=False
        ):
            same = None if query < 0 or label < 0 else bool(label == query)
            known, right = known + (same is not None), right + bool(same)
            nearest.append(
                {
                    "uri": uri,
                    "name": class_name(names, int(label)),
                    "similarity": f"{similarity:.2f}",
                    "same": same,
                }
            )
        rows.append(
            {
                "uri": uris[0],
                "name": class_name(names, query),
                "key": clip(arrays["query_keys"][index], 80),
                "neighbours": nearest,
            }
        )
    return {"rows": rows, "right": right, "known": known}


def stored_class_names(run: Record) -> list[str]:
    """The classes' names, stored with the map or with the neighbours; [] where neither has them."""
    for arrays in (run.pictures.get("map", {}), run.pictures.get("neighbours", {})):
        if "classes" in arrays:
            return [clip(name, 60) for name in arrays["classes"]]
    return []


def class_name(names: list[str], label: int) -> str:
    """The name of a class, or a text in its place."""
    return "unknown class" if label < 0 else names[label] if label < len(names) else f"class {label}"
