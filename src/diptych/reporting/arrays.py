"""What the arrays of pictures/NAME.npz must be like to be drawn: they come from a file that may be damaged or forged."""

from collections.abc import Mapping

import numpy as np

# Axes of the same letter have the same length; a number is a length. Kinds are numpy's: f floats, iu integers, U texts.
PIXELS = "B"  # uint8
SHAPES: dict[str, dict[str, tuple[str, str]]] = {
    "views": {"originals": ("n h w 3", PIXELS)},  # and view_0, view_1, ...
    "correlation": {"matrix": ("d d", "f")},
    "map": {
        "xy": ("m 2", "f"),
        "labels": ("m", "iu"),
        "thumbnails": ("m h w 3", PIXELS),
        "names": ("m", "U"),
        "shows": ("", "U"),
        "classes": ("c", "U"),
        "made_by": ("", "U"),
        **{f"near_{space}": ("m k", "iu") for space in ("trained", "untrained", "pixels")},
        **{f"cosine_{space}": ("m k", "f") for space in ("trained", "untrained", "pixels")},
        "cluster": ("m", "iu"),
        "members": ("g s", "iu"),
        "oddness": ("m", "f"),
        "copies": ("p 2", "iu"),
        "likeness": ("p", "f"),
        "queries": ("q", "iu"),
        "predicted": ("m", "iu"),
        "confidence": ("m", "f"),
        "large": ("l a b 3", PIXELS),
        "large_rows": ("l", "iu"),
    },
    "predictions": {
        "labels": ("n", "iu"),
        "predicted": ("n", "iu"),
        "confidence": ("n", "f"),
        "classes": ("c", "U"),
        "protocol": ("", "U"),
    },
}
# The numbers of these are places on an axis, from the lowest given; -1 stands for none.
PLACES: dict[str, dict[str, tuple[str, int]]] = {
    "map": {
        "near_trained": ("m", 0),
        "near_untrained": ("m", 0),
        "near_pixels": ("m", 0),
        "members": ("m", -1),
        "copies": ("m", 0),
        "queries": ("m", 0),
        "large_rows": ("m", 0),
        "cluster": ("g", 0),
    },
    "predictions": {"labels": ("c", 0), "predicted": ("c", 0)},
}
TOGETHER = {
    "map": [
        {"cluster", "members", "copies", "likeness", "queries", "oddness"},
        {"predicted", "confidence"},
        {"large", "large_rows"},
    ]
}
MOST_CLASSES, MOST_MAPPED = 65_000, 5_000  # class numbers are packed in 16 bits; a page has room for so many images


def check_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError for arrays of a picture that cannot be drawn, or that do not belong together."""
    lengths: dict[str, int] = {}
    for key, array in arrays.items():
        axes, kind = SHAPES[name].get(key, (f"n {key}.h {key}.w 3", PIXELS))
        check_array(key, array, axes.split(), kind, lengths)
    if lengths.get("m", 0) > MOST_MAPPED:
        raise ValueError(f"{lengths['m']} images are too many for a map")
    for key in ("labels", "predicted") if name == "map" else ():
        if key in arrays and len(arrays[key]) and int(arrays[key].max()) >= MOST_CLASSES:
            raise ValueError(f"{key} has classes above {MOST_CLASSES}")
    for key, (axis, lowest) in PLACES.get(name, {}).items():
        if key in arrays and arrays[key].size and not lowest <= arrays[key].min() <= arrays[key].max() < lengths[axis]:
            raise ValueError(f"{key} has numbers outside of {lowest} to {lengths[axis] - 1}")
    for group in TOGETHER.get(name, []):
        if group & set(arrays) and not group <= set(arrays):
            raise ValueError(f"its arrays do not belong together: {', '.join(sorted(group - set(arrays)))} missing")


def check_array(key: str, array: np.ndarray, axes: list[str], kind: str, lengths: dict[str, int]) -> None:
    """Raise ValueError unless the array has the axes and the kind; `lengths` is filled with those of its axes."""
    right = array.dtype == np.uint8 if kind == PIXELS else array.dtype.kind in kind
    if array.ndim != len(axes) or not right or (kind == PIXELS and 0 in array.shape[1:]):
        expected = "(n, H, W, 3) uint8" if kind == PIXELS else f"({', '.join(axes)}) of kind {kind}"
        raise ValueError(f"{key} is {array.shape} {array.dtype}, not {expected}")
    for axis, length in zip(axes, array.shape, strict=True):
        if length != (int(axis) if axis.isdigit() else lengths.setdefault(axis, length)):
            raise ValueError(f"its arrays do not belong together: {key} is {array.shape}")
    if kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{key} holds values that are not finite numbers")
