"""How a device multiplies float32 numbers, in which order it sums, and what 16 bits gain."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.base.errors import RecipeError
from diptych.base.machine import remembered
from diptych.base.processes import means

NEW = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # torch 2.9; the older switches refuse to be read beside it
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS is not deterministic


@contextmanager
def float32_as(word: str, *, convolutions: bool = True) -> Iterator[None]:
    """Inside, a GPU multiplies float32 matrices, and convolves, as "ieee" or as "tf32": 10 bits of mantissa instead of 23.

    By itself torch convolves as tf32 and multiplies as ieee; a program may have said otherwise.
    """
    cudnn: Any = torch.backends.cudnn
    places = [torch.backends.cuda.matmul, *[cudnn.conv if NEW else cudnn] * convolutions]
    name, value = ("fp32_precision", word) if NEW else ("allow_tf32", word == "tf32")
    before = [getattr(place, name) for place in places]
    for place in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            setattr(place, name, old)


def exact_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of two matrices as ieee, in the wider of their types, and its gradient too, whenever that is computed."""
    kind = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(kind), b.to(kind)
    return a @ b if a.device.type == "cpu" else _ExactProduct.apply(a, b)


class _ExactProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with float32_as("ieee", convolutions=False):
            return a @ b

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyrefly: ignore
        a, b = ctx.saved_tensors
        with float32_as("ieee", convolutions=False):
            return (slope @ b.T if ctx.needs_input_grad[0] else None), (
                a.T @ slope if ctx.needs_input_grad[1] else None
            )


@contextmanager
def arithmetic(precision: str, *, deterministic: bool = False) -> Iterator[None]:
    """Inside, products and convolutions of a run: tf32 if that is its precision, else ieee; afterwards as before.

    deterministic: the same sums in the same order each time, on a GPU slower ways for some operations. Raises RecipeError
    where an operation has no such way, or torch has multiplied on a GPU before: it reads an environment variable of cuBLAS at
    its first product and never again, so the variable stays set.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    tuned = torch.backends.cudnn.benchmark
    if deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    try:
        with float32_as("tf32" if precision == "tf32" else "ieee"):
            yield
    except RuntimeError as error:
        if deterministic and WORKSPACE in str(error):
            raise RecipeError(
                f"deterministic: this process has used cuBLAS before this run, or {WORKSPACE} has another value: "
                f"start it with {WORKSPACE}=:4096:8, or leave pretrain.deterministic out"
            ) from error
        if deterministic and "deterministic" in str(error):
            raise RecipeError(
                f"deterministic: {str(error).split('. ')[0]}; leave pretrain.deterministic out"
            ) from error
        raise
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = tuned


@contextmanager
def any_order() -> Iterator[None]:
    """Inside, `scatter_add_` adds as fast as it can even where the same bits are asked for: at most two numbers other than 0
    must come together. torch's deterministic way is a sort, and cannot be recorded as a graph in every version."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


MEASURED = "bfloat16_gain"  # its name in the user's cache
GAIN = 1.1  # how many times as fast bfloat16 must be to be worth its rounding


def choose_precision(wanted: str, device: torch.device) -> str:
    """`wanted`, or for "auto" what computes faster there: bfloat16 or float32, the same for all processes.

    Of a CPU that was measured, once for the machine (see `remembered`).
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    (gain,) = means(remembered(MEASURED, lambda: bfloat16_gain(device)))
    return "bfloat16" if gain > GAIN else "float32"


def bfloat16_gain(device: torch.device | str = "cpu", repeats: int = 10) -> float:
    """How many times as fast bfloat16 is as float32 here: the seconds of a product and of a convolution, with gradients."""
    rng = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(shape, generator=rng).to(device) for shape in ((256, 512), (512, 512)))
    images, kernel = (torch.randn(shape, generator=rng).to(device) for shape in ((32, 64, 16, 16), (64, 64, 3, 3)))
    images = images.contiguous(memory_format=torch.channels_last)

    def seconds(function: Callable[[Tensor, Tensor], Tensor], *tensors: Tensor) -> float:
        leaves, best = [x.requires_grad_() for x in tensors], float("inf")
        for _ in range(repeats + 1):  # the fastest: others compute here too
            began = time.perf_counter()
            result = function(*leaves)
            torch.autograd.grad(result, leaves, torch.ones_like(result))[0].flatten()[0].item()
            best = min(best, time.perf_counter() - began)
        return best

    def both(dtype: torch.dtype) -> float:
        product = seconds(torch.matmul, rows.to(dtype).detach(), weight.to(dtype).detach())
        return product + seconds(
            lambda x, w: F.conv2d(x, w, padding=1), images.to(dtype).detach(), kernel.to(dtype).detach()
        )

    return both(torch.float32) / both(torch.bfloat16)
