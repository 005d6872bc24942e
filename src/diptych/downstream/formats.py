"""The formats of `diptych export`, and which of them carry an encoder: what cannot is refused before anything is written."""

from collections.abc import Sequence

from diptych.base.errors import RecipeError
from diptych.networks.encoders import NETWORKS
from diptych.runs.encoder import Trained

FORMATS = ("timm", "transformers", "torchvision", "onnx", "torch-export")
CARRY_ALL = ("onnx", "torch-export")  # the computation itself, whatever network it is
# The networks that timm and torchvision build alike, with the same names of weights.
TORCHVISION = {*(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), "wide_resnet50_2", "wide_resnet101_2",
               "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"}  # fmt: skip
OF_TRAINING = ("zero_init_last",)  # options that change nothing in evaluation; and all that end in _rate
MOST_ONNX_BYTES = 2 * 10**9  # of one file: protobuf's limit is 2 GiB


def require_formats(names: Sequence[str], trained: Trained) -> list[str]:
    """The formats named, once each, in the order of FORMATS. Raises RecipeError, in one line, for one that is unknown, does
    not carry the encoder, or needs a package that is not installed."""
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        problem = f"there is no format {unknown[0]!r}" if unknown else "no format is named"
        raise RecipeError(f"{problem}; --to is one of {', '.join(FORMATS)}, and may be repeated")
    for name in FORMATS:
        if name in names and (reason := why_not(name, trained)):
            carrying = [other for other in FORMATS if why_not(other, trained) is None]
            raise RecipeError(
                f"--to {name} does not support this encoder: {reason}; use --to {' or --to '.join(carrying)}"
            )
    if "onnx" in names:
        require_onnx()
    return [name for name in FORMATS if name in names]


def why_not(name: str, trained: Trained) -> str | None:
    """The reason why a format does not carry an encoder; None where it does."""
    if name == "torch-export":
        return None
    if name == "onnx":
        size = sum(tensor.numel() * 4 for tensor in trained.encoder.state_dict().values())
        return f"its weights take {size / 1e9:.1f} GB, one file holds 2" if size > MOST_ONNX_BYTES else None
    built, program = trained.built_with, "torchvision" if name == "torchvision" else "timm"
    if built is None:
        return f"{type(trained.encoder).__name__} is a module of your own, which {program} does not know"
    if built["name"] in NETWORKS:
        return f"{built['name']} is a network of Diptych's, which {program} does not know"
    if (stem := built.get("stem", "standard")) != "standard":
        return f"{program} cannot build {built['name']} with the stem {stem!r}"
    if name != "torchvision":
        return None
    if built["name"].split(".")[0] not in TORCHVISION:
        return f"torchvision has no network with the weights of {built['name']}"
    options = [key for key in built if key not in ("name", "stem", "size", *OF_TRAINING) and not key.endswith("_rate")]
    return f"torchvision cannot build {built['name']} with {', '.join(options)}" if options else None


def require_onnx() -> None:
    """Raise RecipeError where a package is missing that writes or runs ONNX."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f'--to onnx needs {error.name}: pip install "diptych[onnx]", or use --to torch-export'
        ) from error
