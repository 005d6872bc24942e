"""A run as training and evaluation leave it, made of formulas. As a program it also renders its report."""

import json
import math
import sys
from pathlib import Path

import numpy as np

CLASSES = ("disc", "square", "stripes", "cross", "ring")
STEPS = 60
RECIPE = """\
recipe: barlow-twins-small
source: shapes/
method: {name: barlow_twins, projector: [1024, 1024, 1024], off_diagonal_weight: 0.0078125}
encoder: {name: resnet18, stem: small}
views:
- times: 2
  do:
  - random_resized_crop: {size: 32, scale: [0.2, 1.0]}
  - grayscale: {p: 0.2}
optimizer: {name: adamw, lr: 0.002, weight_decay: 0.0001}
pretrain:
  epochs: 60
  batch_size: 256
  seed: 0
"""
ENVIRONMENT = {
    "python": "3.11.7",
    "versions": {"diptych": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"},
    "device": "NVIDIA H200",
    "threads": 16,
    "commit": None,
    "command": ["diptych", "pretrain", "shapes/", "--out", "runs/first"],
}
DIAGNOSIS = {
    "verdict": "OK",
    "readings": {"rank": 171.4, "rank_share": 0.335, "spread": 0.84},
    "reasons": [],
    "advice": ["Accuracy was still rising at the last reading: longer training would help."],
    "lamps": {
        "collapse": {"word": "OK", "text": "different images have different embeddings"},
        "learning": {"word": "OK", "text": "another view of an image is nearer than 97.1 % of 1,024 held-out images"},
        "worth": {"word": "OK", "text": "linear: 5.2 points above the closed form [+4.1 to +6.3]"},
    },
}


def shapes(labels: np.ndarray, size: int = 32, seed: int = 0) -> np.ndarray:
    """(n, size, size, 3) uint8: one coloured shape of the label's class on a coloured, grainy ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    images = []
    for label in labels:
        cx, cy, radius = rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(0.4, 0.6)
        u, v = (x - cx) / radius, (y - cy) / radius
        distance = np.hypot(u, v)
        masks = (
            distance < 1,
            np.maximum(abs(u), abs(v)) < 0.85,
            (np.sin(7 * u) > 0) & (distance < 1.2),
            (np.minimum(abs(u), abs(v)) < 0.3) & (distance < 1.1),
            (distance < 1) & (distance > 0.55),
        )
        ground, ink = rng.uniform(30, 225, 3), rng.uniform(0, 255, 3)
        image = np.where(masks[label % len(masks)][..., None], ink, ground)
        images.append(np.clip(image + rng.normal(0, 7, image.shape), 0, 255).astype(np.uint8))
    return np.stack(images)


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def log_lines() -> list[dict]:
    """60 steps, 13 watches, an end."""
    rng = np.random.default_rng(1)
    lines: list[dict] = [{"event": "watch", "step": 0, "epoch": 0, **readings(0.0)}]
    for epoch in range(1, STEPS + 1):
        progress, step = epoch / STEPS, 20 * epoch
        on = 240 * math.exp(-5 * progress) + 9 + rng.normal(0, 1)
        off = 900 * math.exp(-2 * progress) + rng.normal(0, 12)
        rate = min(progress / 0.1, 0.5 * (1 + math.cos(math.pi * max(progress - 0.1, 0) / 0.9)) + 1e-3)
        line = {"event": "step", "step": step, "epoch": epoch, "progress": progress}
        line |= {"loss": on + 0.0051 * off, "parts": {"on_diagonal": on, "off_diagonal": off}}
        line |= {"gradient_norm": 12 * math.exp(-progress) + rng.normal(0, 0.4)}
        line |= {"lr": [0.2 * rate, 0.048 * rate, 0.048 * rate], "elapsed_seconds": 1.93 * step}
        line |= {"images_per_second": 0.0 if epoch == 1 else 2650 + rng.normal(0, 60)}
        lines.append(line)
        if epoch % 5 == 0:
            lines.append({"event": "watch", "step": step, "epoch": epoch, **readings(progress)})
    end = {"event": "end", "step": 1200, "epochs": 60, "elapsed_seconds": 2319.4, "images_per_second": 2648.3}
    return [*lines, end]


def readings(progress: float) -> dict[str, float]:
    learned = 1 - math.exp(-3 * progress)
    return {
        "knn_accuracy": 0.38 + 0.45 * learned,
        "spread": 0.35 + 0.5 * learned,
        "rank": 20 + 160 * learned,
        "on_diagonal_mean": 0.1 + 0.85 * learned,
        "off_diagonal_mean": 0.3 * math.exp(-4 * progress) + 0.02,
    }


def evaluation_lines() -> list[dict]:
    sizes = {"train_images": 50000, "test_images": 10000, "classes": len(CLASSES), "seed": 0}
    as_in = "softmax regression by L-BFGS, its penalty chosen on a held-out part"
    details = {"knn": {"k": 200, "temperature": 0.1}, "linear": {"as_in": as_in, "penalty": 1e-4, "converged": True}}
    numbers = {"raw pixels": (0.352, 0.394), "untrained": (0.421, 0.468), "trained": (0.831, 0.868)}
    rows = [("chance", "chance", 0.2)]
    rows += [(p, s, a) for s, pair in numbers.items() for p, a in zip(details, pair, strict=True)]
    lines: list[dict] = []
    for protocol, subject, accuracy in rows:
        line = {"protocol": protocol, "subject": subject, "accuracy": accuracy, **sizes}
        line |= {"interval": [accuracy - 0.0085, accuracy + 0.0082], "details": details.get(protocol, {})}
        if subject == "trained":
            gain = accuracy - numbers["untrained"][protocol == "linear"]
            line["gains"] = {"untrained": {"difference": gain, "interval": [gain - 0.015, gain + 0.015]}}
        lines.append(line)
    return [*lines, {"diagnosis": DIAGNOSIS}]


def write_pictures(folder: Path, classes: tuple[str, ...], keys: tuple[str, ...], mapped: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(2)
    originals = shapes(np.arange(12) % 5)
    tint = rng.uniform(0.6, 1.3, (12, 1, 1, 3))
    first = np.clip(originals[:, :, ::-1] * tint, 0, 255).astype(np.uint8)
    second = originals[:, 8:24, 8:24].repeat(2, axis=1).repeat(2, axis=2)
    second[::3] = second[::3].mean(axis=-1, keepdims=True).astype(np.uint8)
    np.savez_compressed(folder / "views.npz", originals=originals, view_0=first, view_1=second)
    noise = rng.normal(0, 0.05, (128, 128))
    matrix = (0.92 * np.eye(128) + noise + noise.T).clip(-1, 1).astype(np.float32)
    np.savez_compressed(folder / "correlation.npz", matrix=matrix)
    labels = rng.integers(0, len(classes), mapped)
    angle = 2 * np.pi * labels / len(classes)
    xy = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 6 + rng.normal(0, 1.9, (mapped, 2))
    names = np.array([*keys, *(f"test/{classes[label]}/{row:05d}.png" for row, label in enumerate(labels))][:mapped])
    places = {"xy": xy.astype(np.float32), "labels": labels, "names": names, "classes": np.array(classes)}
    places |= {
        "made_by": np.array("t-SNE"),
        "shows": np.array("test images"),
        **overview_arrays(labels, len(classes), rng),
    }
    np.savez_compressed(folder / "map.npz", thumbnails=shapes(labels, seed=3), **places)
    tested = {"labels": labels, "predicted": places["predicted"], "confidence": places["confidence"]}
    np.savez_compressed(folder / "predictions.npz", classes=np.array(classes), protocol=np.array("linear"), **tested)


def overview_arrays(labels: np.ndarray, classes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What `downstream.overview` adds to a map: neighbours, clusters, copies, predictions."""
    m = len(labels)
    arrays: dict[str, np.ndarray] = {}
    for space in ("trained", "untrained", "pixels"):
        arrays[f"near_{space}"] = np.stack(
            [np.delete(np.arange(m), row)[rng.permutation(m - 1)[:8]] for row in range(m)]
        )
        arrays[f"cosine_{space}"] = -np.sort(-rng.uniform(0.6, 0.999, (m, 8)), axis=1).astype(np.float32)
    wrong = rng.random(m) < 0.2
    large = np.arange(0, m, 7)
    return arrays | {
        "cluster": labels,
        "members": np.array([(np.flatnonzero(labels == c).tolist() + [-1] * 6)[:6] for c in range(classes)]),
        "oddness": rng.uniform(0.2, 1.2, m).astype(np.float32),
        "copies": np.array([[0, 5], [3, 9]]),
        "likeness": np.array([0.99, 0.97], np.float32),
        "queries": np.arange(8),
        "predicted": np.where(wrong, (labels + 1) % classes, labels),
        "confidence": rng.uniform(0.5, 1, m).astype(np.float32),
        "large": shapes(labels[large], seed=4).repeat(3, axis=1).repeat(3, axis=2),
        "large_rows": large,
    }


def fake_run(folder: Path, classes: tuple[str, ...] = CLASSES, keys: tuple[str, ...] = (), mapped: int = 60) -> Path:
    """Makes a finished, evaluated run in the new folder `folder`."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    write_lines(folder / "log.jsonl", log_lines())
    write_lines(folder / "evaluations.jsonl", evaluation_lines())
    keys = keys or tuple(f"test/{classes[i % len(classes)]}/{i:04d}.png" for i in range(8))
    write_pictures(folder / "pictures", classes, keys, mapped)
    return folder


if __name__ == "__main__":
    from diptych.reporting.report import report

    print(report(fake_run(Path(sys.argv[1]), mapped=400)))
