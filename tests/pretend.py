"""A device that is not there: its tensors hold a CPU tensor and compute on it. What a GPU would have to do is counted.

    with PretendDevice() as device:
        there = tensor.to(DEVICE)

torch knows it as a backend of its own (`PrivateUse1`), so autograd and autocast run as they do for a GPU. It refuses to mix
tensors of the CPU with its own, and counts operations that would launch a kernel, waits (a number or a copy for the CPU, a
shape that depends on numbers) and uploads. `tests/pretend_gpu.py` says "cuda" instead, and has neither autograd nor counts.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

if torch.cuda.is_available():
    # torch has one accelerator: it would ask the pretended device for pinned memory, for one.
    pytest.skip("the machine has a GPU, whose place the pretended device would take", allow_module_level=True)
try:
    Backend = backend_registration._DummyBackendModule
    set_up = backend_registration._setup_privateuseone_for_python_backend
except AttributeError:  # torch before 2.10
    pytest.skip("this torch knows no backend in Python, which the pretended device needs", allow_module_level=True)

aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
# Of `eigh`: a GPU's says whether it has converged.
LEAVES_NUMBERS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default,
                  aten._linalg_check_errors.default, aten._linalg_eigh.default}  # fmt: skip
# The shape of the result depends on numbers, which the CPU must have to allocate it.
SHAPES = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
          aten.bincount.default, aten.repeat_interleave.Tensor}  # fmt: skip
ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view", "alias",
             "lift_fresh", "_reshape_alias", "set_"}  # fmt: skip
LOW = (
    "matmul",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "conv2d",
    "convolution",
)  # what autocast computes in 16 bits
PINNED_LIMIT = 64 * 2**10  # bytes of a copy from memory that is not pinned above which a GPU may be waited for


class Module(Backend):
    """What torch asks of the device's Python module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(0)  # it draws by the CPU's generator

    def set_rng_state(self, state: Tensor, device: object = None) -> None: ...


def in_low_precision(operation: Callable) -> Callable:
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def run(*args, **kwargs):
        def low(x):
            return x.to(torch.bfloat16) if isinstance(x, Tensor) and x.dtype == torch.float32 else x

        with torch._C._ExcludeDispatchKeyGuard(key):
            args, kwargs = tree_map(low, (args, kwargs))
            return operation(*args, **kwargs)

    return run


def registered() -> list[torch.library.Library]:
    """The backend, and autocast for it: what is not listed computes as it is."""
    set_up("pretend", backend_module=Module())
    others, low = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOW:
        low.impl(name, in_low_precision(getattr(aten, name).default), "AutocastPrivateUse1")
    return [others, low]


LIBRARIES = registered()  # for the life of the process: torch has one such backend
DEVICE = torch.device("pretend", 0)


class There(Tensor):
    """Lies on the pretended device; its numbers are in `held`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(cls, held.size(), strides=held.stride(), dtype=held.dtype, device=DEVICE,
                                             storage_offset=held.storage_offset())  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # noqa: D105
        return f"There({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} of a tensor of the pretended device needs `with PretendDevice()`")


_foreach_utils._foreach_supported_types.append(There)  # as a plain tensor of a GPU


def is_there(device: object) -> bool:
    return device is not None and torch.device(device).type == "pretend"  # pyrefly: ignore


class NewTensors(TorchFunctionMode):
    """`torch.tensor(numbers, device=DEVICE)` asks the device for memory before anyone can step in."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        numbers = not (args and isinstance(args[0], Tensor))
        if function in (torch.tensor, torch.as_tensor) and numbers and is_there(kwargs.get("device")):
            return function(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if function is Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(*args[1:], dtype=args[0].dtype, **kwargs).to(DEVICE)
        return function(*args, **kwargs)


class PretendDevice(TorchDispatchMode):
    """Runs what touches the device, and counts it.

    launched: operations by name, without views and allocations. waits: what the CPU would have waited for, by name and shape.
    uploads: bytes of each copy to the device, which the CPU waits for too unless it is `non_blocking`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.waits: list[tuple[str, tuple[int, ...]]] = []
        self.uploads: list[int] = []
        self.new_tensors = NewTensors()
        self.tape: list[tuple] | None = None
        self.memory: dict[int, tuple] = {}

    def __enter__(self):
        self.new_tensors.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.new_tensors.__exit__(*error)

    @property
    def launches(self) -> int:
        return self.launched.total()

    @contextmanager
    def counting(self) -> Iterator["PretendDevice"]:
        """Counts from here on, without what came before."""
        self.launched.clear()
        self.waits.clear()
        self.uploads.clear()
        yield self

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [leaf for leaf in leaves if isinstance(leaf, There)]
        target = kwargs.get("device")
        if not here and not is_there(target):
            return function(*args, **kwargs)
        if any(not isinstance(leaf, There) and leaf.ndim > 0 for leaf in leaves) and here and function not in MOVES:
            raise RuntimeError(f"{function} mixes tensors of the CPU with tensors of the device")
        if "device" in kwargs:
            kwargs = kwargs | {"device": torch.device("cpu")}
        plain = tree_map(lambda leaf: leaf.held if isinstance(leaf, There) else leaf, (args, kwargs))
        if self.tape is not None:
            self.before_recording(function, plain, mixed=len(here) < len(leaves))
        made = function(*plain[0], **plain[1])
        if self.tape is not None:
            self.tape.append((function, plain, made))
        if self.leaves(function, args, kwargs, target, made):
            return made
        if "out" in kwargs:
            return tree_map(lambda leaf: leaf, kwargs["out"] if not isinstance(made, tuple) else made)
        if function._schema.is_mutable and isinstance(args[0], There) and not isinstance(made, tuple | list):
            return args[0]
        return tree_map(lambda leaf: There(leaf) if isinstance(leaf, Tensor) else leaf, made)

    def before_recording(self, function, plain: tuple, *, mixed: bool) -> None:
        """A graph that is being recorded refuses to talk to the CPU, and launches nothing: memory is put back afterwards."""
        if mixed or function in SHAPES | LEAVES_NUMBERS:
            raise RuntimeError(f"{function} is not permitted while a graph is recorded")
        for leaf in tree_leaves(plain):
            if isinstance(leaf, Tensor) and (place := leaf.untyped_storage().data_ptr()) not in self.memory:
                self.memory[place] = leaf.untyped_storage(), leaf.untyped_storage().clone()

    def leaves(self, function, args: tuple, kwargs: dict, target: object, made: object) -> bool:
        """Count an operation; whether its result is for the CPU."""
        name, shape = function.__name__, tuple(getattr(made, "shape", ()))
        if function in MOVES:
            source = args[1] if function is aten.copy_.default else args[0]
            to_device = isinstance(args[0], There) if function is aten.copy_.default else is_there(target)
            if isinstance(source, There) and (target is not None or function is aten.copy_.default) and not to_device:
                self.waits.append((name, shape))
                return True
            if not isinstance(source, There):
                self.uploads.append(source.nbytes)
                if not kwargs.get("non_blocking", args[2:3] == (True,)):
                    self.waits.append((f"blocking {name}", shape))
        elif function in SHAPES | LEAVES_NUMBERS or self.chooses_by_mask(function, args):
            self.waits.append((name, shape))
        if not is_view(function):
            self.launched[name] += 1
        return False

    def chooses_by_mask(self, function, args: tuple) -> bool:
        return function in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )


class PretendGraph:
    """What `base.graph.CudaGraph` is on a GPU: the operations of a recording, on the same memory, with other numbers."""

    def __init__(self, device: PretendDevice):
        self.device, self.tape = device, []

    @contextmanager
    def record(self) -> Iterator[None]:
        self.device.tape, random = self.tape, torch.get_rng_state()
        try:
            yield
        finally:
            self.device.tape = None
            torch.set_rng_state(random)
            for storage, before in self.device.memory.values():
                storage.copy_(before)
            self.device.memory.clear()

    def replay(self) -> None:
        self.device.launched["replay"] += 1
        for function, (args, kwargs), made in self.tape:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def is_view(function) -> bool:
    """Whether an operation only describes memory anew, or allocates it."""
    returned = function._schema.returns
    aliases = bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write
    return aliases or function._schema.name.removeprefix("aten::") in ALLOCATES


@contextmanager
def pretended_device() -> Iterator[PretendDevice]:
    """A pretended device, to which modules may be moved."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with PretendDevice() as pretended:
            yield pretended
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
