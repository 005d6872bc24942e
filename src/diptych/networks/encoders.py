"""Encoders by name, images (N, 3, S, S) -> embedding (N, E): timm's networks and those of this package."""

import copy
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import timm
import torch
from torch import Tensor, nn

from diptych.base.errors import RecipeError
from diptych.base.ranges import Options, Share, Side, Words, check_range, checked
from diptych.networks.joined import Described, Joined
from diptych.networks.keras import KERAS_NETWORKS
from diptych.networks.limits import bounded
from diptych.networks.patches import PatchDictionary
from diptych.networks.small import SmallConvolutions


@checked
def _joined(
    size: Side | None = None,
    dictionary: Options = None,
    trained: Options = None,
    parts: Options = (),
    maps: bool = True,
    mirrored: bool = True,
    mean: Options = (0.0, 0.0, 0.0),
    std: Options = (1.0, 1.0, 1.0),
) -> Joined:
    """dictionary, trained: the arguments of `encoder` for both networks, whose weights are loaded afterwards. parts: width,
    width of the code and length of the code, for each of the parts that describe an image. maps, mirrored: see `Described`."""
    if not dictionary or not trained or trained.get("name") == "joined":
        raise RecipeError("joined is not an encoder to train: `diptych quick SOURCE --join RUN` joins two encoders")
    first: Any = encoder(**without_weights(dictionary))
    second: Any = encoder(**without_weights(trained))
    if not isinstance(first, PatchDictionary):
        raise RecipeError(f"joined needs a patch_dictionary, not {dictionary.get('name')!r}")
    described = Described(second, maps=maps, mirrored=mirrored)
    layers, lengths = [nn.Linear(wide, width) for wide, width, _ in parts], [length for _, _, length in parts]
    return Joined(first, described, layers, lengths, list(mean), list(std))


# Defined in this package. A network that has a fixed size or options takes them as arguments.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **KERAS_NETWORKS,
    "joined": _joined,
    "patch_dictionary": PatchDictionary,
    "small_convolutions": SmallConvolutions,
}
STEMS = ("auto", "small", "small-stride2", "small-padded", "standard")
Stem = Annotated[str, Words("|".join(STEMS))]
# What the code of networks raises for options that it cannot use.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Options that make timm read or fetch files: not allowed in recipes and encoder folders, which may come from others.
REACHING = ("checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")
# The arguments of `encoder` for every network that it has built and that is still in use.
_ARGUMENTS: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
# "auto" takes the first stem whose size is not exceeded, so that the first stage gets maps of 16 to 32 pixels. At 64 pixels
# the small stem takes 4 times as long as the one of stride 2, and 14 times as long as the standard one.
STEM_PIXELS = {"small": 32, "small-stride2": 64}


@checked
def encoder(
    name: str,
    stem: Stem = "auto",
    size: Side | None = None,
    pretrained: bool = False,
    **options: Options,
) -> nn.Module:
    """A network without classifier: images (N, 3, S, S) -> embedding (N, E). E is its `num_features`.

    name: any timm name ("resnet18", "convnext_tiny", ...) or one of `NETWORKS`.
    stem: "small" makes the first convolution 3x3 at stride 1 and removes the max-pool, "small-stride2" does so at
    stride 2, "small-padded" at stride 1 and padding 2 (solo-learn's CIFAR networks: maps of 34 pixels from 32),
    "standard" changes nothing. "auto" is "small" for images of up to 32 pixels and "small-stride2" up to 64, if the network
    has such a stem and no pretrained weights, else "standard"; `built_with` has the chosen stem.
    size: S in pixels. A network of fixed size (a ViT) is built for this size.
    pretrained: load timm's weights, from its cache or from the internet.
    options: for the timm network: `channels=(32, 64, 128, 256)`, `zero_init_last=False`, `drop_path_rate=0.1`.

    Raises RecipeError for an unknown name, stem or option, and for weights that are not available.
    """
    if stem == "auto" and (pretrained or name in NETWORKS):
        stem = "standard"  # the one that the weights are for, or the only one
    if name not in NETWORKS:  # timm takes None for its default here, and for a value where it opens a folder
        options = {key: value for key, value in options.items() if value is not None}
    for key in options:
        if key.endswith("_rate"):  # of dropout and the like: timm checks them in training, or not at all
            check_range(options[key], Share, f"encoder: {key}")
    with bounded(f"encoder {name}"):
        if name in NETWORKS:
            network = _own_network(name, stem, size, pretrained, options)
        else:
            network, stem = _timm_network(name, stem, size, pretrained, options)
    _ARGUMENTS[network] = {"name": name, "stem": stem, "size": size, **without_weights(options)}
    return network


def built_with(network: nn.Module) -> dict[str, Any] | None:
    """The arguments with which `encoder` builds such a network again, without its weights; None if `encoder` did not build
    it. A `copy.deepcopy` of an encoder has no such record: use `copy_of`, as for a target network that is saved."""
    arguments = _ARGUMENTS.get(network)
    return None if arguments is None else dict(arguments)


def copy_of(network: nn.Module) -> nn.Module:
    """A deep copy with separate tensors, for which `built_with` returns the same arguments as for `network`."""
    twin = copy.deepcopy(network)
    if network in _ARGUMENTS:
        _ARGUMENTS[twin] = dict(_ARGUMENTS[network])
    return twin


def without_weights(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `encoder` except those that say where weights come from."""
    return {key: value for key, value in options.items() if key not in (*REACHING, "pretrained")}


def not_taken(name: str, options: dict[str, Any]) -> list[str]:
    """The keys of `options`, arguments of `encoder`, that the network `name` does not take.

    Builds it once a key, without memory for its weights. An unknown name takes all: `encoder` reports it.
    """
    known = name in NETWORKS or timm.is_model(name)
    return [key for key, value in options.items() if known and not _takes(name, key, value)]


def _takes(name: str, key: str, value: Any) -> bool:
    if key == "size" or (key == "stem" and not str(value).startswith("small")):
        return True
    if name in NETWORKS or key == "pretrained":
        return key == "pretrained" and not (value and name in NETWORKS)
    try:
        with torch.device("meta"):
            network = _from_timm(name, None, False, {} if key == "stem" else {key: value})
    except RecipeError:
        return False
    return key != "stem" or _has_stem(network)


def _timm_network(name: str, stem: str, size: int | None, pretrained: bool, options: dict[str, Any]) -> tuple[Any, str]:
    """The network, and the stem that "auto" took."""
    if not timm.is_model(name):
        near = _near(name, [*timm.list_models(), *NETWORKS])
        raise RecipeError(f"no encoder is named {name!r}{near}")
    if pretrained and stem.startswith("small"):
        fix = "use stem standard, or pretrained false"
        raise RecipeError(f"stem {stem!r} discards a pretrained layer of {name}: {fix}")

    network = _from_timm(name, size, pretrained, options)
    if stem == "auto":
        fitting = [known for known, most in STEM_PIXELS.items() if size is not None and size <= most]
        stem = fitting[0] if fitting and _has_stem(network) else "standard"
    if stem.startswith("small"):
        _make_stem_small(network, name, 2 if stem == "small-stride2" else 1, 2 if stem == "small-padded" else 1)
    width = embedding_width(
        network, f"{name} with {options}" if options else name, size or network.pretrained_cfg["input_size"][-1]
    )
    if network.num_features != width:  # timm may give the width before a last, widening layer (MobileNetV3, VGG)
        network.num_features = width
    return network, stem


def _own_network(name: str, stem: str, size: int | None, pretrained: bool, options: dict[str, Any]) -> Any:
    known = inspect.signature(NETWORKS[name]).parameters
    refused = [option for option in options if option not in known or option == "size"]
    refused += ["pretrained"] * pretrained + [f"stem {stem!r}"] * stem.startswith("small")
    if refused:
        takes = ", ".join(option for option in known if option != "size") or "no options"
        raise RecipeError(f"{name} does not take {', '.join(refused)}; it takes {takes}")
    try:
        return NETWORKS[name](**({"size": size} if size is not None and "size" in known else {}), **options)
    except REFUSALS as error:
        raise RecipeError(f"{name} with {options}: {_first_line(error)}") from error


def _from_timm(name: str, size: int | None, pretrained: bool, options: dict[str, Any]) -> Any:
    """An nn.Module with the attributes that timm adds to its networks."""
    if "img_size" in options:
        raise RecipeError(f"say size instead of img_size (for {name})")
    try:
        if size is not None and has_fixed_size(name):
            options = {"img_size": size, **options}
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except OSError as error:  # no internet, offline mode, no such repository: the hub raises OSErrors for all
        problem = f"cannot fetch the pretrained weights of {name} ({type(error).__name__})"
        raise RecipeError(f"{problem}: connect once to have them cached, or use pretrained false") from error
    except REFUSALS as error:
        raise RecipeError(_why_not(name, options, error)) from error


def has_fixed_size(name: str) -> bool:
    """Whether a timm network is built for one size of images."""
    return bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))


def _why_not(name: str, options: dict[str, Any], error: Exception) -> str:
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unknown is None:
        given = f" with {options}" if options else ""
        return f"timm cannot make {name}{given}: {_first_line(error)}"
    network = getattr(sys.modules[timm.model_entrypoint(name).__module__], unknown[1], None)
    known = inspect.signature(network).parameters if network else ()
    return f"{name} has no option {unknown[2]!r}{_near(unknown[2], known)}"


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def _near(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; near: {', '.join(matches)}" if matches else ""


def _has_stem(network: nn.Module) -> bool:
    convolution = getattr(network, "conv1", None)  # three in a sequence in a deep stem
    return isinstance(convolution, nn.Conv2d | nn.Sequential) and hasattr(network, "maxpool")


def _make_stem_small(network: Any, name: str, stride: int, padding: int) -> None:
    if not _has_stem(network):
        fix = "use stem auto or standard, or a resnet"
        raise RecipeError(f"{name} has no first convolution and max-pool to make small: {fix}")
    first = "conv1.0" if isinstance(network.conv1, nn.Sequential) else "conv1"
    old = network.get_submodule(first)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, stride, padding, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # as timm starts its resnets
    network.set_submodule(first, new)
    network.set_submodule("maxpool", nn.Identity())


def embedding_width(network: nn.Module, name: str, size: int) -> int:
    """E, measured by embedding one black image: the width that a network states is not always what it returns."""
    network.eval()
    try:
        with torch.no_grad():
            embedding = network(torch.zeros(1, 3, size, size))
    except REFUSALS as error:
        raise RecipeError(f"{name} cannot embed images of {size} pixels: {_first_line(error)}") from error
    network.train()
    if not isinstance(embedding, Tensor) or embedding.ndim != 2:
        output = tuple(embedding.shape) if isinstance(embedding, Tensor) else f"a {type(embedding).__name__}"
        raise RecipeError(f"{name} with these options makes {output} of one image, not one row (1, E)")
    return embedding.shape[1]
