"""config.json of an encoder folder: every value that is used has its type and range, or is refused with its key."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diptych.base.errors import CheckpointError
from diptych.data.untrusted import one_line
from diptych.networks.encoders import STEMS, has_fixed_size
from diptych.networks.inference import Preprocessing

LARGEST_SIDE = 4096  # pixels; a network is tried on one image of its size when it is built
LARGEST_NUMBER = 1 << 17  # of channels, entries, layers ... in the options of a network
ABSENT = object()
MOST_BYTES = 16 << 20


def is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_SIDE


def is_number(value: Any) -> bool:
    """Whether a value is a number that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


def are_positive(value: Any) -> bool:
    return are_numbers(value) and all(np.float32(number) > 0 for number in value)


def is_option(value: Any) -> bool:
    """Whether a value may be an option of a network: texts and numbers of ordinary size, and lists and objects of them."""
    if isinstance(value, list | dict):
        return all(map(is_option, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, bool | str) or is_number(value) and abs(value) <= LARGEST_NUMBER


SIDE = f"a whole number of pixels from 1 to {LARGEST_SIDE}"
# Key -> (whether a value is right, what it must be). Keys of the other program (timm) are not read.
Rule = tuple[Callable[[Any], bool], str]
KEYS: dict[str, Rule] = {
    "architecture": (is_text, "a name"),
    "sha256": (is_text, "a text"),
    "diptych": (lambda value: isinstance(value, dict), "an object"),
    "diptych.preprocessing": (lambda value: isinstance(value, dict), "an object"),
    "diptych.preprocessing.size": (is_side, SIDE),
    "diptych.preprocessing.resize": (
        lambda value: value is None or value is ABSENT or is_side(value),
        f"null or {SIDE}",
    ),
    "diptych.preprocessing.mean": (are_numbers, "three numbers"),
    "diptych.preprocessing.std": (are_positive, "three numbers above 0"),
    "diptych.encoder": (lambda value: value is None or isinstance(value, dict), "null or an object"),
}
ENCODER_KEYS: dict[str, Rule] = {
    "name": (is_text, "the name of a network"),
    "stem": (lambda value: value is ABSENT or value in STEMS, f"one of {', '.join(STEMS)}"),
    "size": (lambda value: value is None or value is ABSENT or is_side(value), f"null or {SIDE}"),
}
OPTION = is_option, f"a text, a number up to {LARGEST_NUMBER}, or a list of these"


def read_config(folder: Path) -> dict:
    """config.json of an encoder folder. Raises CheckpointError naming the file, and the key of a value that cannot be."""
    file = folder / "config.json"
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            raise ValueError("no file, or one that is too large")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, f"{type(error).__name__}: {error}") from None
    for name, rule in KEYS.items():
        check_value(file, config, tuple(name.split(".")), rule)
    own = config["diptych"]["encoder"]
    for key in dict.fromkeys([*ENCODER_KEYS, *own]) if own is not None else ():
        check_value(file, config, ("diptych", "encoder", key), ENCODER_KEYS.get(key, OPTION))
    return config


def check_value(file: Path, content: Any, keys: tuple[str, ...], rule: Rule) -> None:
    """Raise CheckpointError unless the value at `keys`, a key in each other, is as the rule says."""
    value, (is_right, kind) = content, rule
    for key in keys:
        value = value.get(key, ABSENT) if isinstance(value, dict) else ABSENT
    try:
        right = is_right(value)
    except (
        TypeError,
        OverflowError,
        RecursionError,
    ):  # a list as stem, a number beyond floats, 10,000 lists in each other
        right = False
    if not right:
        problem = "is missing" if value is ABSENT else f"is {shown(value)}"
        raise damaged(file, f"{'.'.join(keys)} {problem}, not {kind}")


def shown(value: Any) -> str:
    """The beginning of a value, as JSON has it."""
    try:
        return json.dumps(value)[:60]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"


def damaged(file: Path, problem: str) -> CheckpointError:
    """The error of a config.json that is no encoder's."""
    return CheckpointError(
        f"{file} is missing or damaged ({one_line(problem)}); restore it, or create the folder again"
    )


def preprocessing_of(own: dict) -> Preprocessing:
    """The preprocessing in the section "diptych" of config.json; old folders have no `resize`."""
    part = own["preprocessing"]
    return Preprocessing(part["size"], tuple(part["mean"]), tuple(part["std"]), part.get("resize"))


def timm_part(built: dict | None, name: str, width: int | None, expected: Preprocessing, fit: str = "crop") -> dict:
    """The keys of config.json that timm, and transformers through it, build the network from. They leave out `first_conv`:
    with it, timm before 1.0.31 draws the first layer anew where images have neither one nor three channels.

    built: arguments of `diptych.encoder`. name: of another network's class. width: E. fit: as in `diptych.images`.
    """
    options = {key: value for key, value in (built or {}).items() if key not in ("name", "stem", "size")}
    if built is not None:
        name = built["name"].split(".")[0]  # what follows is a tag, which names weights of timm's
        if built.get("size") is not None and has_fixed_size(built["name"]):
            options = {"img_size": built["size"], **options}
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": width,
        **({"model_args": options} if options else {}),
        "pretrained_cfg": {
            "input_size": [len(expected.mean), expected.size, expected.size],
            "mean": list(expected.mean),
            "std": list(expected.std),
            "interpolation": "bilinear",
            "crop_pct": crop_share(expected.size, expected.opened),
            "crop_mode": "squash" if fit == "squash" else "center",
            "num_classes": 0,
        },
    }


def crop_share(size: int, opened: int) -> float:
    """The share of `opened` pixels that a crop of `size` has, as a number of which timm's floor(size / share) is `opened`."""
    opened = max(size, opened)
    share = size / opened
    while math.floor(size / share) < opened:
        share = math.nextafter(share, 0.0)
    return share
