"""Where an encoder errs: the confusion matrix, accuracy by class, confused pairs, confident errors. K: classes."""

from typing import Any, NamedTuple

import numpy as np

from diptych.embeddings.scores import accuracy_interval
from diptych.reporting.charts import heat_map
from diptych.reporting.pictures import data_uri
from diptych.reporting.record import Record, clip

CELLS = 20  # classes up to which the matrix is a table; above, it is a picture
LARGEST_MATRIX = 256  # classes of the picture
LISTED = 20  # classes with the lowest accuracy, confused pairs


class Confused(NamedTuple):
    """Images of class `truth` that are predicted as `predicted`: their rows, and their share of the class."""

    truth: int
    predicted: int
    rows: list[int]
    share: float


def confident_errors(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, most: int) -> list[int]:
    """The rows of wrong predictions, the most confident first."""
    wrong = np.flatnonzero((labels >= 0) & (predicted != labels))
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:most].tolist()


def confused_pairs(labels: np.ndarray, predicted: np.ndarray, most: int) -> list[Confused]:
    """The pairs (class, wrong prediction) that are met most often."""
    wrong = np.flatnonzero((labels >= 0) & (predicted != labels))
    rows: dict[tuple[int, int], list[int]] = {}
    for row in wrong.tolist():
        rows.setdefault((int(labels[row]), int(predicted[row])), []).append(row)
    sizes = {truth: int((labels == truth).sum()) for truth, _ in rows}
    pairs = [Confused(*pair, members, len(members) / sizes[pair[0]]) for pair, members in rows.items()]
    return sorted(pairs, key=lambda pair: (-len(pair.rows), pair.truth, pair.predicted))[:most]


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (K, K): row i, column j: images of class i that are predicted as class j."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def neighbouring_order(counts: np.ndarray) -> np.ndarray:
    """An order of the classes in which those that are confused stand beside each other.

    Classes are sorted by the second eigenvector of the graph whose edges are the confusions in either direction (Fiedler).
    """
    edges = (counts + counts.T).astype(np.float64)
    np.fill_diagonal(edges, 0)
    edges += 1e-3 * max(1.0, edges.max(initial=0.0)) / max(1, len(edges))  # one graph, also without any confusion
    degree = edges.sum(1)
    scale = 1 / np.sqrt(degree)
    _, vectors = np.linalg.eigh(np.eye(len(edges)) - scale[:, None] * edges * scale)
    return np.argsort(vectors[:, 1] * scale, kind="stable") if len(edges) > 2 else np.arange(len(edges))


def mistakes(run: Record) -> dict[str, Any] | None:
    """The section's numbers, of all test images of the last evaluation. None before one."""
    arrays = run.pictures.get("predictions")
    if arrays is None:
        return None
    labels, predicted = arrays["labels"], arrays["predicted"]
    names = [clip(name, 60) for name in arrays["classes"]]
    counts = confusion(labels, predicted, len(names))
    tested = np.flatnonzero(counts.sum(1))
    order = tested[neighbouring_order(counts[np.ix_(tested, tested)])]
    return {
        "protocol": clip(arrays["protocol"], 40),
        "tested": len(labels),
        "wrong": int((labels != predicted).sum()),
        "matrix": matrix_of(counts, order, names) if len(order) <= CELLS else None,
        "picture": picture_of(counts, order) if CELLS < len(order) <= LARGEST_MATRIX else None,
        "classes": class_rows(counts, order, names),
        "unlisted": max(0, len(order) - LISTED),
        "pairs": [{"truth": names[pair.truth], "predicted": names[pair.predicted], "count": len(pair.rows),
                   "share": f"{100 * pair.share:.1f}"} for pair in confused_pairs(labels, predicted, LISTED)],
    }  # fmt: skip


def matrix_of(counts: np.ndarray, order: np.ndarray, names: list[str]) -> dict[str, Any]:
    """The matrix as a table of shares of a class, in percent; `strength` (0 to 1) of a cell is for its colour."""
    part = counts[np.ix_(order, order)]
    shares = part / np.maximum(1, counts[order].sum(1))[:, None]
    rows = []
    for i, row in enumerate(order):
        cells = [{"count": int(part[i, j]), "text": f"{100 * shares[i, j]:.0f}" if part[i, j] else "",
                  "strength": round(float(shares[i, j]) ** 0.5, 2), "right": i == j} for j in range(len(order))]  # fmt: skip
        rows.append({"name": names[row], "cells": cells})
    return {"columns": [names[row] for row in order], "rows": rows}


def picture_of(counts: np.ndarray, order: np.ndarray) -> str:
    part = counts[np.ix_(order, order)] / np.maximum(1, counts[order].sum(1))[:, None]
    return data_uri(heat_map(part))


def class_rows(counts: np.ndarray, order: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Accuracy by class with its 95 % interval (Wilson), the lowest first, and what the class is most often taken for."""
    rows = []
    for number in order.tolist():
        total, right = int(counts[number].sum()), int(counts[number, number])
        low, high = accuracy_interval([True] * right + [False] * (total - right))
        others = counts[number].copy()
        others[number] = 0
        other = int(others.argmax())
        taken = f"{names[other]} ({others[other]:,})" if others[other] else ""
        rows.append(
            {"name": names[number], "value": right / total, "ends": (low, high), "images": total, "taken": taken}
        )
    return sorted(rows, key=lambda row: row["value"])[:LISTED]
