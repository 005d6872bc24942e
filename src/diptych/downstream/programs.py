"""An encoder as a program that needs none of our code: one ONNX file, or one file of torch.export. Both take any number of
images at a time, and both are run and compared with the encoder before they count. N: images, S: pixels, E: width."""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diptych.base.errors import OutputError, RecipeError
from diptych.networks.encoders import REFUSALS
from diptych.networks.inference import Preprocessing

BATCH_SIZES = (1, 3)  # that are compared; a batch of 1 shows a batch dimension that an exporter has frozen
MOST_DIFFERENCE = 1e-4  # of the largest number of the embeddings
INPUT, OUTPUT = "images", "embeddings"
SAMPLE = 2  # images in the sample batch: an exporter takes a 1 for a constant
FIX = "nothing has been written: update torch and what reads this format, or use another --to"

Program = Callable[[Tensor], Tensor]


class FromBytes(nn.Module):
    """Squares of pixels (N, S, S, 3) uint8, RGB, S as in `opened_side` -> embeddings (N, E)."""

    def __init__(self, encoder: nn.Module, expected: Preprocessing):
        super().__init__()
        self.encoder = encoder
        self.size, self.margin = expected.size, (opened_side(expected) - expected.size) // 2
        self.register_buffer("mean", torch.tensor(expected.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(expected.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        part = slice(self.margin, self.margin + self.size)
        images = pixels[:, part, part].permute(0, 3, 1, 2).float() / 255
        return self.encoder((images - self.mean) / self.std)


def opened_side(expected: Preprocessing) -> int:
    """The side in pixels of the squares of which an encoder takes the centre."""
    return max(expected.size, expected.opened)


def onnx_program(network: nn.Module, sample: Tensor) -> bytes:
    """The ONNX file of a network; sample: (SAMPLE, ...) of its input. Raises RecipeError for a network it cannot express."""
    with quiet("onnx", network):
        program = torch.onnx.export(network, (sample,), dynamo=True, external_data=False, verbose=False, input_names=[INPUT],
                                    output_names=[OUTPUT], dynamic_shapes=({0: any_number()},))  # fmt: skip
        assert program is not None  # of the exporter that dynamo=True chooses
        return program.model_proto.SerializeToString()


def open_onnx(data: bytes) -> Program:
    """The program of an ONNX file, run by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def exported_program(network: nn.Module, sample: Tensor) -> bytes:
    """The file of torch.export for a network; sample: (SAMPLE, ...) of its input. Raises RecipeError where it has none."""
    file = io.BytesIO()
    with quiet("torch-export", network):
        program = torch.export.export(network, (sample,), dynamic_shapes=({0: any_number()},))
        torch.export.save(program, file)
    return file.getvalue()


def open_exported(data: bytes) -> Program:
    """The program in a file of torch.export. Only for bytes that this process has made: reading others could run code."""
    return torch.export.load(io.BytesIO(data)).module()


def any_number() -> torch.export.Dim:
    return torch.export.Dim("batch", min=1)


@contextmanager
def quiet(name: str, network: nn.Module) -> Iterator[None]:
    """Without the exporters' warnings; what they raise becomes a RecipeError of one line."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RecipeError(f"--to {name} cannot express {type(network).__name__} ({type(error).__name__}: {reason}); "
                          "use another --to, or a network without branches that depend on the images") from error  # fmt: skip


@torch.no_grad()
def difference(program: Program, inputs: Tensor, expected: Tensor, name: str) -> float:
    """The largest difference of a program's embeddings from those expected (N, E), in units of the largest number of these.

    All inputs are run in batches of each of BATCH_SIZES. Raises OutputError where it is above MOST_DIFFERENCE or NaN.
    """
    largest, scale = 0.0, max(float(expected.abs().max()), 1e-30)
    for count in BATCH_SIZES:
        vectors = torch.cat([program(batch) for batch in inputs.split(count)])
        if vectors.shape != expected.shape:
            raise OutputError(
                f"{name} gives {tuple(vectors.shape)} in batches of {count}, not {tuple(expected.shape)}; {FIX}"
            )
        gap = float((vectors - expected).abs().max()) / scale
        if not gap <= MOST_DIFFERENCE:  # NaN too
            raise OutputError(
                f"{name} gives other embeddings than the encoder (difference {gap:.1e} of their size); {FIX}"
            )
        largest = max(largest, gap)
    return largest
