"""What an encoder has learned of a set of images, as arrays for the report: a map, neighbours, clusters, copies, oddities.

m: mapped images, E: width, k: neighbours, C: clusters. None of it needs labels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diptych.base.device import choose_device
from diptych.base.errors import DataError
from diptych.base.random_at import random_at
from diptych.base.ranges import Count, Device, Seed, checked
from diptych.base.terminal import ProgressBar
from diptych.data.decode import fit_square
from diptych.data.images import Images
from diptych.downstream.copies import THUMBNAIL as COMPARED
from diptych.downstream.copies import find_copies
from diptych.embeddings import plane
from diptych.embeddings.nearest import nearest_others
from diptych.embeddings.outliers import outlier_scores
from diptych.embeddings.picking import clusters
from diptych.embeddings.scores import Score
from diptych.networks.inference import centred, raw_pixels, resized
from diptych.reporting.explore import CLUSTERS, MEMBERS, QUERIES, SPACES, shown_rows
from diptych.runs.encoder import load
from diptych.runs.pictures import save_picture
from diptych.runs.run import Run
from diptych.runs.subjects import RAW_PIXELS, TRAINED, UNTRAINED

MAPPED = 5000  # images at most, drawn at random
NEIGHBOURS = 8
TILES = ((1000, 96), (2500, 64), (MAPPED, 48))  # pixels of a mapped image's picture, by their number
LARGE = 128  # pixels of the pictures that are shown one by one
FEWEST = 3  # images of which a map says something


@checked
def overview(
    run: Run | str | Path,
    images: Images,
    *,
    most: Count = MAPPED,
    seed: Seed = 0,
    device: Device = "auto",
    show: bool = True,
) -> Path:
    """Embed up to `most` images of a set (MAPPED at most) with a run's encoder, and store what its report shows.

    The images need no labels. Their neighbours are looked up in the trained encoder's embeddings, in those of the
    encoder before training if the run has stored it, and among raw pixels. `diptych.report` draws them. Returns the run
    folder. Raises CheckpointError when the run has no encoder, DataError for fewer than FEWEST images, OutputError when
    it cannot write.
    """
    run = run if isinstance(run, Run) else Run(run)
    trained, where = load(run.folder), choose_device(device)
    if len(images) < FEWEST:
        raise DataError(f"there are {len(images)} images; a map needs at least {FEWEST}")
    rows = chosen_rows(len(images), seed)[:most]
    with ProgressBar("overview", show=show) as progress:
        good, batches = (list(parts) for parts in zip(*images.read(rows.numpy(), 512), strict=True))
        rows = torch.cat(good)  # without those that cannot be read
        options: dict[str, Any] = {"device": where, "output_device": where}
        spaces = {TRAINED: trained(iter(batches), **options)}
        if (untrained := trained.untrained()) is not None:
            spaces[UNTRAINED] = untrained(iter(batches), **options)
        spaces[RAW_PIXELS] = raw_pixels(iter(batches), *centred(trained.preprocessing), output_device=where)
        progress.say(f"map of {len(rows):,} images ...")
        arrays = overview_of(images, rows, spaces, pixels=torch.cat(batches), shows="training images", seed=seed)
    save_picture(run.folder, "map", **arrays)
    return run.folder


def chosen_rows(count: int, seed: int) -> Tensor:
    """The rows of the images that are mapped, in random order: the first of them get pictures where there is little room."""
    return torch.randperm(count, generator=random_at(seed, "pictures"))[:MAPPED]


def overview_of(
    images: Images,
    rows: Tensor,
    spaces: Mapping[str, Tensor],
    *,
    pixels: Tensor,
    shows: str,
    seed: int,
    score: Score | None = None,
) -> dict[str, np.ndarray]:
    """Arrays of pictures/map.npz (`runs.pictures.PICTURES`) of the images at `rows`.

    spaces: TRAINED and others of SPACES -> their vectors (m, E). pixels: the same images (m, 3, S, S) uint8. shows: what they
    are, in words. score: of all images of the set, with the predicted classes.
    """
    z_mE = spaces[TRAINED].float()
    xy, algorithm = plane.map_2d(z_mE.cpu().numpy(), seed)
    side = min(tile_side(len(rows)), pixels.shape[2])
    labels = images.labels or [-1] * len(images)
    arrays = {
        "xy": xy,
        "labels": np.array([labels[row] for row in rows.tolist()]),
        "thumbnails": resized(pixels, side).permute(0, 2, 3, 1).numpy(),
        "names": np.array([images.keys[row] for row in rows.tolist()]),
        "classes": np.array(classes_of(images, score), dtype=str),
        "made_by": np.array(algorithm),
        "shows": np.array(shows),
    }
    for name, key in SPACES.items():
        if name in spaces:
            cosine, index = nearest_others(spaces[name], NEIGHBOURS)
            arrays[f"near_{key}"], arrays[f"cosine_{key}"] = index.cpu().numpy(), cosine.float().cpu().numpy()
    arrays |= lists_of(z_mE, pixels, seed)
    if score is not None:
        predictions = predictions_of(images, score)
        arrays |= {name: predictions[name][rows.numpy()] for name in ("predicted", "confidence")}
    return arrays | large_pictures(images, rows, shown_rows(arrays))


def classes_of(images: Images, score: Score | None) -> list[str]:
    """The classes of a set, and after them those that it lacks and that can be predicted."""
    classes = images.classes or []
    return [*classes, *sorted(set(score.names if score is not None else ()) - set(classes))]


def predictions_of(images: Images, score: Score) -> dict[str, np.ndarray]:
    """Arrays of pictures/predictions.npz: labels and predicted classes as numbers in `classes_of`."""
    assert score.predicted is not None and score.confidence is not None
    classes = classes_of(images, score)
    number_of = {name: number for number, name in enumerate(classes)}
    predicted = torch.tensor([number_of[name] for name in score.names])[score.predicted]
    return {"labels": np.array(images.labels), "predicted": predicted.numpy(), "confidence": score.confidence.float().numpy(),
            "classes": np.array(classes, dtype=str), "protocol": np.array(score.protocol)}  # fmt: skip


def tile_side(count: int) -> int:
    return next(side for most, side in TILES if count <= most)


def lists_of(z_mE: Tensor, pixels: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Clusters with their medoids, the images that are unlike all others, and pairs of copies."""
    directions = F.normalize(z_mE, dim=1)
    count = max(2, min(CLUSTERS, round((len(z_mE) / 2) ** 0.5)))
    cluster = clusters(directions, count, seed).cpu()
    directions = directions.cpu()
    members = [nearest_to_mean(directions, (cluster == number).nonzero()[:, 0]) for number in range(count)]
    order = sorted(
        (number for number in range(count) if len(members[number])), key=lambda number: -len(members[number])
    )
    shown = np.full((len(order), MEMBERS), -1)
    for place, number in enumerate(order):
        shown[place, : len(members[number])] = members[number][:MEMBERS]
    odd, _ = outlier_scores(z_mE)
    # With fewer neighbours and decoys than an audit takes: a fifth of its time.
    pairs = find_copies(z_mE, resized(pixels, COMPARED), proposed=2, decoys=2000, seed=seed)
    queries = torch.cat([members[number][:1] for number in order])[:QUERIES]
    return {
        "cluster": np.array([order.index(number) for number in cluster.tolist()]),
        "members": shown,
        "oddness": odd.float().numpy(),
        "copies": torch.stack([pairs.first, pairs.second], dim=1).numpy(),
        "likeness": pairs.score.float().numpy(),
        "queries": queries.numpy(),
    }


def nearest_to_mean(directions: Tensor, rows: Tensor) -> Tensor:
    """Rows, the most similar to their common mean first: the first is the cluster's medoid by cosine."""
    if not len(rows):
        return rows
    own = directions[rows]
    return rows[(own @ own.mean(0)).argsort(descending=True, stable=True)]


def large_pictures(images: Images, rows: Tensor, shown: list[int]) -> dict[str, np.ndarray]:
    """The pictures that the report shows one by one, LARGE pixels where the sources have as many: `large`, `large_rows`."""
    squares, pictures = images.squares, []
    for place in shown:
        image = squares.opened(squares.read(int(images.rows[rows[place]])), 2 * LARGE)
        pictures.append(Image.fromarray(fit_square(image, min(LARGE, *image.size), squares.fit)))
    side = min((picture.width for picture in pictures), default=1)
    large = [np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)) for picture in pictures]
    return {"large": np.stack(large), "large_rows": np.array(shown)} if large else {}
