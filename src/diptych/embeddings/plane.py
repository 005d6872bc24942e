"""Embeddings in two dimensions: t-SNE where scikit-learn is installed, else the two principal components."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.errors import DataError

MOST_TSNE = 5000  # embeddings; its time grows faster than their number
ROWS_PER_BLOCK = 16384
LARGE = 1500  # embeddings above which t-SNE takes half its rounds, with coarser sums: a third of the time
COMPONENTS = 50  # of the embeddings, of which it takes neighbours (van der Maaten and Hinton's 30, rounded up)


def project(vectors: Tensor, seed: int = 0) -> tuple[np.ndarray, str]:
    """`map_2d` of any number of (M, E) embeddings: beyond MOST_TSNE, the two principal components of their directions.

    These are computed in blocks: `vectors` may be memory-mapped and larger than memory, which holds E * E numbers beside.
    """
    if len(vectors) <= MOST_TSNE:
        return map_2d(vectors.numpy(), seed)
    width = vectors.shape[1]
    sum_E, products_EE = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for block in vectors.split(ROWS_PER_BLOCK):
        directions = F.normalize(block.double(), dim=1)
        sum_E += directions.sum(0)
        products_EE += directions.T @ directions
    mean_E = sum_E / len(vectors)
    _, axes_EE = torch.linalg.eigh(products_EE / len(vectors) - torch.outer(mean_E, mean_E))
    axes = axes_EE[:, -2:].flip(1)  # of largest variance first
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    blocks = [(F.normalize(block.double(), dim=1) - mean_E) @ axes for block in vectors.split(ROWS_PER_BLOCK)]
    xy = torch.cat(blocks).float().numpy()
    return np.pad(xy, ((0, 0), (0, 2 - xy.shape[1]))), "principal components"


def principal_map(vectors: np.ndarray) -> np.ndarray:
    """The first two principal components of (m, E) vectors, as (m, 2) float32.

    The sign of a component is arbitrary; here its largest loading is positive, so equal vectors give equal maps.
    Raises `DataError` when a vector is not finite.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise DataError(
            f"a map needs finite vectors (m, E), got {vectors.shape} with values that are not finite numbers"
        )
    centred = vectors - vectors.mean(axis=0, keepdims=True) if len(vectors) else vectors
    directions = principal_directions(centred, 2)
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.where(directions[np.arange(len(directions)), largest] < 0, -1.0, 1.0)[:, None]
    xy = np.zeros((len(vectors), 2), dtype=np.float32)
    xy[:, : len(directions)] = centred @ directions.T
    return xy


def principal_directions(centred: np.ndarray, count: int) -> np.ndarray:
    """The first `count` right singular vectors of (m, E) centred vectors, (at most count, E), from the smaller Gram matrix."""
    m, width = centred.shape
    if m >= width:
        return np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :count].T
    values, left = (part[..., ::-1][..., :count] for part in np.linalg.eigh(centred @ centred.T))
    directions = left.T @ centred
    return directions / np.maximum(np.sqrt(np.maximum(values, 0)), 1e-12)[:, None]


def leading(vectors: np.ndarray) -> np.ndarray:
    """The leading principal components of (m, E) vectors, at most COMPONENTS: t-SNE takes its neighbours from them."""
    centred = vectors - vectors.mean(axis=0, keepdims=True)
    return vectors if vectors.shape[1] <= COMPONENTS else centred @ principal_directions(centred, COMPONENTS).T


def map_2d(vectors: np.ndarray, seed: int = 0) -> tuple[np.ndarray, str]:
    """Map (m, E) embeddings to two dimensions: `(xy (m, 2) float32, name of the algorithm)`.

    t-SNE (van der Maaten and Hinton 2008) of the vectors' directions if scikit-learn is installed and there are at least
    ten, otherwise principal components. The same vectors and seed give the same map. Distances in the map have no
    meaning.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    directions = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    start = principal_map(directions)
    if start.size and start.std() < 1e-6:  # all directions are equal up to rounding, so there is nothing to show
        return np.zeros_like(start), "principal components"
    if len(start) < 10:
        return start, "principal components"
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        return start, "principal components"
    # With several threads the order of a sum, and with it the map, differs from call to call.
    with threadpool_limits(1):
        begin, perplexity = start / start[:, 0].std() * 1e-4, min(30, (len(start) - 1) / 3)
        rounds, angle = (500, 0.8) if len(start) > LARGE else (1000, 0.5)
        tsne = TSNE(init=begin, perplexity=perplexity, random_state=seed, max_iter=rounds, angle=angle)
        return tsne.fit_transform(leading(directions)).astype(np.float32), "t-SNE"
