"""A GPU that is not there: tensors that say they lie on one, compute on the CPU, and refuse what a GPU refuses.

Unlike torch's fake tensors they have numbers, so that a whole optimisation can be followed.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
# Rows may be chosen by an index that lies on the CPU.
CHOOSES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class OnGpu(Tensor):
    """Says that it lies on the GPU; its numbers are in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )  # as torch's fake tensors: to the C++ side a GPU would be one to start
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return GPU

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # noqa: D105
        return f"OnGpu({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} of a pretended GPU's tensor needs `with PretendGpu()`")


class NewTensors(TorchFunctionMode):
    """`torch.tensor(numbers, device=GPU)` would start the GPU before anyone could step in."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and str(kwargs.get("device")).startswith("cuda"):
            return function(*args, **kwargs | {"device": "cpu"}).to(GPU)
        if function is Tensor.pin_memory:  # there is no GPU to pin it for
            return args[0]
        if function is Tensor.new_tensor and isinstance(args[0], OnGpu):
            return torch.tensor(*args[1:], dtype=args[0].dtype, **kwargs).to(GPU)
        return function(*args, **kwargs)


class PretendGpu(TorchDispatchMode):
    """Runs what touches the GPU; `fetched` lists the tensors that were copied from it to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[Tensor] = []

    def __enter__(self):
        self.initialise, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None  # there is nothing to start
        self.new_tensors = NewTensors()
        self.new_tensors.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.new_tensors.__exit__(*error)
        torch.cuda._lazy_init = self.initialise

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [leaf for leaf in leaves if isinstance(leaf, OnGpu)]
        target = kwargs.get("device")
        to_gpu = target is not None and torch.device(target).type in (
            "cuda",
            "meta",
        )  # meta: a number that C++ put there
        if not here and not to_gpu:
            return function(*args, **kwargs)
        strangers = [leaf for leaf in leaves if not isinstance(leaf, OnGpu) and leaf.ndim > 0]
        if here and strangers and function not in MOVES | CHOOSES:
            raise RuntimeError(f"{function} mixes tensors of the CPU with tensors of the GPU")
        if target is not None:
            kwargs = kwargs | {"device": torch.device("cpu")}
        plain = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnGpu) else leaf, (args, kwargs))
        made = function(*plain[0], **plain[1])
        if function in MOVES and here:
            stays = isinstance(args[0], OnGpu) if function is aten.copy_.default else target is None or to_gpu
            if not stays:
                self.fetched.append(made)
                return made
        if function._schema.is_mutable and isinstance(args[0], OnGpu) and not isinstance(made, tuple | list):
            return args[0]
        return tree_map(lambda leaf: OnGpu(leaf) if isinstance(leaf, Tensor) else leaf, made)
