"""The report's map and what stands around it: neighbours in three spaces, clusters, copies, oddities. Dicts for the template.

The pictures of all mapped images form one sheet, from which the page cuts; those shown one by one are larger. m: mapped
images.
"""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from diptych.base.terminal import counted
from diptych.reporting.charts import COLOURS, MAP_HEIGHT, MAP_WIDTH, SHAPES, mark, scatter
from diptych.reporting.mistakes import confident_errors, confused_pairs, mistakes
from diptych.reporting.pictures import data_uri, shrink_to_fit
from diptych.reporting.record import Record, clip
from diptych.runs.subjects import RAW_PIXELS, TRAINED, UNTRAINED

# Where an image's neighbours are looked up: the subject, and its name in the keys of pictures/map.npz.
SPACES = {TRAINED: "trained", UNTRAINED: "untrained", RAW_PIXELS: "pixels"}
NEAR, ODD, COPIES = 4, 12, 12  # neighbours of a row; oddities and pairs of copies that are shown
QUERIES, CLUSTERS, MEMBERS = 8, 12, 6  # rows of neighbours; clusters and images of each
PAIRS, EXAMPLES, ERRORS = 5, 4, 12  # confused pairs of classes and pictures of each; confident errors
SHEET_BYTES, LARGE_BYTES = 2_400_000, 1_200_000  # of the pictures in base64; the page stays below 6 MB for any run
QUALITIES = (85, 75, 60, 40)  # of JPEG, the first one that fits
LONGEST_NAME = 100  # characters
MARKS = 1500  # in the map that needs no script
MOST_CLASSES = 40  # in the legend
PIXELATED = 64  # pixels up to which a picture is enlarged with sharp edges

Arrays = Mapping[str, np.ndarray]


def shown_rows(arrays: Arrays) -> list[int]:
    """The images that the page shows one by one, the most important first. arrays: of pictures/map.npz."""
    rows: list[int] = []
    for query in arrays["queries"][:QUERIES].tolist():
        rows.append(query)
        for key in SPACES.values():
            if f"near_{key}" in arrays:
                rows += arrays[f"near_{key}"][query, :NEAR].tolist()
    rows += arrays["members"].reshape(-1).tolist() + arrays["copies"][:COPIES].reshape(-1).tolist()
    rows += oddest(arrays)
    if "predicted" in arrays:
        labels, predicted = arrays["labels"], arrays["predicted"]
        rows += confident_errors(labels, predicted, arrays["confidence"], ERRORS)
        rows += [row for pair in confused_pairs(labels, predicted, PAIRS) for row in pair.rows[:EXAMPLES]]
    return [row for row in dict.fromkeys(rows) if row >= 0]


def oddest(arrays: Arrays) -> list[int]:
    return np.argsort(-arrays["oddness"], kind="stable")[:ODD].tolist()


class Pictures:
    """The pictures of a run's mapped images as the page refers to them."""

    def __init__(self, arrays: Arrays, main: str):
        """main: what the space of the run's own encoder is called."""
        self.arrays = arrays
        self.spaces = {
            main if name == TRAINED else name: key for name, key in SPACES.items() if f"near_{key}" in arrays
        }
        self.names = [end_of(str(name)) for name in arrays["names"]]
        self.classes = [clip(name, 60) for name in arrays.get("classes", [])]
        self.large: dict[int, str] = {}
        left = LARGE_BYTES
        for row, image in zip(arrays.get("large_rows", []), arrays.get("large", []), strict=True):
            small = max(image.shape[:2]) <= PIXELATED  # lossless: JPEG would blur the few pixels that there are
            uri = data_uri(image) if small else data_uri(image, "JPEG", quality=84)
            left -= len(uri)
            if left < 0:
                break
            self.large[int(row)] = uri

    def tile(self, row: int, note: str = "") -> dict[str, Any]:
        """One picture: its place on the sheet, its large version where there is one, and its texts."""
        label = int(self.arrays["labels"][row])
        return {"row": int(row), "uri": self.large.get(int(row)), "name": self.names[row], "class": self.class_of(label),
                "note": note}  # fmt: skip

    def class_of(self, label: int) -> str | None:
        """The name of a class; None for an unlabelled image."""
        return None if label < 0 else self.classes[label] if label < len(self.classes) else f"class {label}"


def end_of(name: str) -> str:
    """A name of bounded length; the end of a path says more than its beginning."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def sheet_of(thumbnails: np.ndarray) -> dict[str, Any]:
    """The pictures (m, t, t, 3) in rows of one JPEG: {"uri", "tile": t, "across", "width", "height", "pixelated"}.

    They are shrunk, and compressed more, until the file fits SHEET_BYTES.
    """
    across = math.ceil(math.sqrt(len(thumbnails)))
    down = math.ceil(len(thumbnails) / across)
    for side in (thumbnails.shape[1], 48, 32, 16):
        tiles = shrink_to_fit(thumbnails, side)
        side = tiles.shape[1]
        sheet = np.zeros((down * across, side, side, 3), np.uint8)
        sheet[: len(tiles)] = tiles
        sheet = sheet.reshape(down, across, side, side, 3).swapaxes(1, 2).reshape(down * side, across * side, 3)
        for quality in QUALITIES:
            uri = data_uri(np.ascontiguousarray(sheet), "JPEG", quality=quality)
            if len(uri) <= SHEET_BYTES:
                return {"uri": uri, "tile": side, "across": across, "width": across * side, "height": down * side,
                        "pixelated": thumbnails.shape[1] <= PIXELATED // 2}  # fmt: skip
    raise ValueError(f"{len(thumbnails)} pictures do not fit on a sheet of {SHEET_BYTES} bytes")


def explored(run: Record) -> dict[str, Any]:
    """The variables of explore.html.jinja."""
    parts = {"map": None, "large": {}, "neighbours": None, "lists": None, "confused": [], "confident": []}
    if (arrays := run.pictures.get("map")) is not None:
        pictures = Pictures(arrays, run.main)
        parts |= {"map": explorer(pictures), "large": pictures.large, "neighbours": neighbour_rows(pictures),
                  "lists": lists(pictures)}  # fmt: skip
        if "predicted" in arrays:
            parts["confused"], parts["confident"] = errors_on_map(pictures)
    return {**parts, "mistakes": mistakes(run)}


def errors_on_map(pictures: Pictures) -> tuple[list[dict], list[dict]]:
    """The most confused pairs of classes with pictures, and the most confident errors, of the mapped images."""
    arrays = pictures.arrays
    labels, predicted, confidence = arrays["labels"], arrays["predicted"], arrays["confidence"]
    pairs = [{"truth": pictures.class_of(pair.truth), "predicted": pictures.class_of(pair.predicted),
              "text": f"{counted(len(pair.rows), 'image')}, {100 * pair.share:.1f} % of the class on the map",
              "tiles": [pictures.tile(row) for row in pair.rows[:EXAMPLES]]}
             for pair in confused_pairs(labels, predicted, PAIRS)]  # fmt: skip
    errors = [pictures.tile(row, f"{confidence[row]:.2f}") | {"predicted": pictures.class_of(int(predicted[row]))}
              for row in confident_errors(labels, predicted, confidence, ERRORS)]  # fmt: skip
    return pairs, errors


def explorer(pictures: Pictures) -> dict[str, Any]:
    """The map: marks and pictures for readers without scripts, and the data of the script."""
    arrays = pictures.arrays
    places, with_room = scatter(arrays["xy"].astype(np.float64))
    groups, colour_by = groups_of(arrays)
    names = [pictures.class_of(label) or "" for label in range(int(groups.max(initial=-1)) + 1)]
    if colour_by == "cluster":
        names = [f"cluster {number + 1}" for number in range(len(names))]
    drawn = [row for row in range(len(places)) if with_room[row] or row < MARKS]
    marks = [{"x": places[row][0], "y": places[row][1], **mark(int(groups[row])), "row": row, "shown": with_room[row]}
             for row in drawn]  # fmt: skip
    present = np.unique(groups[groups >= 0]).tolist()
    sheet = sheet_of(arrays["thumbnails"])
    return {
        "sheet": sheet,
        "marks": sorted(marks, key=lambda point: point["shown"]),  # pictures are drawn above marks
        "count": len(places),
        "shows": clip(arrays["shows"], 60),
        "method": clip(arrays["made_by"], 40) if "made_by" in arrays else None,
        "colour_by": colour_by,
        "legend": [{**mark(group), "name": names[group], "group": group} for group in present[:MOST_CLASSES]],
        "unlisted": max(0, len(present) - MOST_CLASSES),
        "errors": "predicted" in arrays,
        "density": "oddness" in arrays,
        "data": script_data(
            arrays,
            pictures,
            {"places": places, "groups": groups, "names": names, "sheet": sheet, "labelled": colour_by == "class"},
        ),
    }


def groups_of(arrays: Arrays) -> tuple[np.ndarray, str]:
    """What the marks are coloured by: classes, clusters where no image has a label, else nothing."""
    if (arrays["labels"] >= 0).any():
        return arrays["labels"], "class"
    if "cluster" in arrays:
        return arrays["cluster"], "cluster"
    return np.full(len(arrays["labels"]), -1), "none"


def script_data(arrays: Arrays, pictures: Pictures, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The map as JSON for the script; numbers of images and places are packed in base64."""
    sheet = drawn["sheet"]
    data = {
        "width": MAP_WIDTH,
        "height": MAP_HEIGHT,
        "xy": packed(np.asarray(drawn["places"]) * 10, "<u2"),  # tenths of a unit
        "group": packed(drawn["groups"] + 1, "<u2"),  # 0: none
        "groups": drawn["names"],
        "labelled": drawn["labelled"],
        "names": pictures.names,
        "classes": pictures.classes,
        "tile": sheet["tile"],
        "across": sheet["across"],
        "pixelated": sheet["pixelated"],
        "colours": COLOURS,
        "shapes": SHAPES,
        "near": [{"name": name, "k": arrays[f"near_{key}"].shape[1], "rows": packed(arrays[f"near_{key}"], "<u2")}
                 for name, key in pictures.spaces.items()],
    }  # fmt: skip
    if "cosine_trained" in arrays:
        data["cosine"] = packed(np.clip(arrays["cosine_trained"], 0, 1) * 65535, "<u2")
    if "predicted" in arrays:
        data |= {"labels": packed(arrays["labels"] + 1, "<u2"), "predicted": packed(arrays["predicted"] + 1, "<u2"),
                 "confidence": packed(np.clip(arrays["confidence"], 0, 1) * 255, "u1")}  # fmt: skip
    if "oddness" in arrays:
        rank = np.argsort(np.argsort(arrays["oddness"], kind="stable"), kind="stable")
        data["density"] = packed(255 - 255 * rank / max(1, len(rank) - 1), "u1")
    return data


def packed(values: np.ndarray, kind: str) -> str:
    """Numbers from 0 up, rounded, as little-endian base64."""
    kind_ = np.dtype(kind)
    return base64.b64encode(np.clip(np.rint(values), 0, np.iinfo(kind_).max).astype(kind_).tobytes()).decode("ascii")


def neighbour_rows(pictures: Pictures) -> dict[str, Any] | None:
    """For a few images, their nearest neighbours by the run's encoder, by the untrained one and by raw pixels."""
    arrays = pictures.arrays
    if "queries" not in arrays or "near_trained" not in arrays:
        return None
    labels = arrays["labels"]
    spaces = pictures.spaces
    rows = []
    for query in arrays["queries"][:QUERIES].tolist():
        strips = []
        for name, key in spaces.items():
            near = arrays[f"near_{key}"][query, :NEAR].tolist()
            cosines = (
                arrays[f"cosine_{key}"][query, :NEAR].tolist() if f"cosine_{key}" in arrays else [None] * len(near)
            )
            tiles = [pictures.tile(row, similarity(cosine)) | {"same": same_class(labels, query, row)}
                     for row, cosine in zip(near, cosines, strict=True)]  # fmt: skip
            strips.append({"space": name, "tiles": tiles})
        rows.append({**pictures.tile(query), "strips": strips})
    shares = {name: share_of_same(labels, arrays[f"near_{key}"]) for name, key in spaces.items()}
    known = [(name, share) for name, share in shares.items() if share is not None]
    return {
        "rows": rows,
        "spaces": list(spaces),
        "shares": known,
        "k": arrays["near_trained"].shape[1],
        "count": len(labels),
    }


def similarity(cosine: float | None) -> str:
    """Three digits where two would say 1.00 of different images."""
    return "" if cosine is None else f"{cosine:.3f}" if cosine > 0.985 else f"{cosine:.2f}"


def same_class(labels: np.ndarray, a: int, b: int) -> bool | None:
    return None if labels[a] < 0 or labels[b] < 0 else bool(labels[a] == labels[b])


def share_of_same(labels: np.ndarray, near: np.ndarray) -> float | None:
    """The share of all neighbours whose class is the image's; None without labels."""
    known = labels >= 0
    return float((labels[near[known]] == labels[known][:, None]).mean()) if known.any() else None


def lists(pictures: Pictures) -> dict[str, Any] | None:
    """Clusters with their most typical images, pairs of copies, and the images that are unlike all others."""
    arrays = pictures.arrays
    if "members" not in arrays:
        return None
    sizes = np.bincount(arrays["cluster"], minlength=len(arrays["members"]))
    clusters = [{"number": number + 1, "size": int(sizes[number]), "tiles": [pictures.tile(row) for row in rows if row >= 0]}
                for number, rows in enumerate(arrays["members"][:CLUSTERS, :MEMBERS].tolist())]  # fmt: skip
    copies = [[pictures.tile(row) for row in pair] for pair in arrays["copies"][:COPIES].tolist()]
    return {
        "clusters": clusters,
        "copies": [{"tiles": tiles, "likeness": f"{score:.3f}"}
                   for tiles, score in zip(copies, arrays["likeness"][:COPIES].tolist(), strict=True)],
        "all_copies": len(arrays["copies"]),
        "odd": [pictures.tile(row, f"{arrays['oddness'][row]:.2f}") for row in oddest(arrays)],
        "count": len(arrays["labels"]),
    }  # fmt: skip
