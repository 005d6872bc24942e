"""Made photographs with planted faults: copies of every kind, blank ones, wrong labels, files that are no images."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.audit_planted import KINDS, copy_of


def scene(rng: np.random.Generator, size: int = 48, hue: float | None = None) -> np.ndarray:
    """A gradient, some shapes, a grain: (size, size, 3) uint8. hue: 0 to 1, the share of red in its background."""
    y, x = np.mgrid[0:size, 0:size] / size
    start, end = rng.uniform(0, 255, (2, 3))
    if hue is not None:
        start, end = (255 * np.array([hue, rng.uniform(0, 0.4), 1 - hue]) * rng.uniform(0.6, 1) for _ in "ab")
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) + 0.5, 0, 1)[..., None]
    image = Image.fromarray((start * (1 - ramp) + end * ramp).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 6)):
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        left, top = rng.uniform(0, 0.8, 2) * size
        width, height = rng.uniform(0.1, 0.4, 2) * size
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)([left, top, left + width, top + height], fill=colour)
    grain = rng.normal(0, rng.uniform(0, 10), (size, size, 3))
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def spoiled_photographs(root: Path, count: int = 60, seed: int = 0) -> Path:
    """root/blue, root/red: `count` scenes each, and among them what an audit has to find; names say what it is."""
    rng = np.random.default_rng(seed)
    for name, hue in (("blue", 0.1), ("red", 0.9)):
        for i in range(count):
            pixels = scene(rng, hue=hue)
            save(root / name / f"{i:03d}.png", pixels)
            if i < len(KINDS):
                save(root / name / f"{i:03d} {KINDS[i]}.png", copy_of(pixels, KINDS[i], rng))
    for i in range(3):
        save(root / "blue" / f"wrong {i}.png", scene(rng, hue=0.9))
    save(root / "red" / "blank.png", np.full((48, 48, 3), 200, np.uint8))
    save(root / "red" / "strip.png", scene(rng, 96, hue=0.9)[:20])
    save(root / "blue" / "outlier.png", rng.integers(0, 2, (48, 48, 1), np.uint8).repeat(3, 2) * 255)
    (root / "blue" / "text.jpg").write_text("<html>not a picture</html>")
    (root / "red" / "empty.png").write_bytes(b"")
    return root
