"""float32 is float32 on a GPU, tf32 is a recipe's word, and the process gets its own settings back."""

import os
import sys

import pytest
import torch
from pretend import DEVICE, pretended_device
from test_loop import different
from tiny import tiny_images, tiny_method, tiny_run, weights_of
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.base import arithmetic, device, threads
from diptych.base.arithmetic import bfloat16_gain, exact_product, float32_as
from diptych.base.errors import DivergedError, RecipeError
from diptych.commands import doctor
from diptych.commands.ending import as_diptych_error
from diptych.data import resident
from diptych.methods.coding_rate import coding_rate
from diptych.methods.losses import barlow_twins
from diptych.runs import checkpoints
from diptych.training import guard
from diptych.training.optimizers import sgd
from diptych.views import Together, simsiam

pytestmark = pytest.mark.skipif(not arithmetic.NEW, reason="this torch has the older switches only")


def settings() -> tuple[str, str, bool]:
    return (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision,
            torch.are_deterministic_algorithms_enabled())  # fmt: skip


@pytest.fixture
def careless():
    """A program that has allowed tf32 everywhere."""
    with float32_as("tf32"):
        yield settings()


@pytest.mark.parametrize(("precision", "word"), [("float32", "ieee"), ("tf32", "tf32"), ("float64", "ieee")])
def test_a_run_has_its_own_settings(precision, word, careless, tmp_path):
    seen = []
    tiny_run(tmp_path / "run", epochs=1, precision=precision, deterministic=precision == "tf32",
             watch=[lambda step, encoder: seen.append(settings()) or {}])  # fmt: skip
    assert set(seen) == {(word, word, precision == "tf32")} and settings() == careless


def test_a_budget_is_measured_in_the_runs_own_settings(careless, monkeypatch, tmp_path):
    """By itself torch convolves as tf32 on a GPU: a run in float32 would take longer than its budget."""
    seen = []
    monkeypatch.setattr(
        sys.modules["diptych.training.pretrain"], "steps_within", lambda *_: seen.append(settings()) or 4
    )
    tiny_run(tmp_path / "run", epochs=None, budget="20m", precision="float32")
    assert seen == [("ieee", "ieee", False)] and settings() == careless


class Products(TorchDispatchMode):
    """How matrices are multiplied while this holds."""

    def __init__(self):
        super().__init__()
        self.words: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.words.append(torch.backends.cuda.matmul.fp32_precision)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("what", ["gram", "correlation", "coding_rate", "views"])
def test_loss_and_views_are_never_tf32(what, careless):
    rng = torch.Generator().manual_seed(0)
    with pretended_device(), Products() as products:
        if what == "views":
            views = simsiam(32)
            images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=rng).to(DEVICE)
            Together(views).apply(images, [view.sample(4, rng) for view in views])
        else:
            width = {"gram": 64}.get(what, 8)
            z1, z2 = (torch.randn(20, width, generator=rng).to(DEVICE).requires_grad_() for _ in "ab")
            loss = coding_rate(z1, 0.2) if what == "coding_rate" else barlow_twins(z1, z2, 0.005, 1e-5)[0]
            loss.backward()
            assert len(products.words) >= 3, "forward and backward"
        own = products.words[:1] if what == "coding_rate" else products.words  # the factorisation's gradient is torch's
        assert set(own) == {"ieee"}


def test_an_exact_product_has_the_products_gradient():
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4, 2)))
    assert torch.autograd.gradcheck(arithmetic._ExactProduct.apply, (a, b))
    assert torch.equal(exact_product(a, b), a @ b)


def test_what_cannot_be_deterministic_is_said():
    with pytest.raises(
        RecipeError,
        match="foo does not have a deterministic implementation, .*; leave pretrain",
    ):
        with arithmetic.arithmetic("float32", deterministic=True):
            raise RuntimeError("foo does not have a deterministic implementation, but you set it. Turn it off")
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_the_environment_must_say_is_said(monkeypatch):
    """torch reads it at the first product on a GPU of a process, which may come before a run that asks for the same bits."""
    monkeypatch.delenv(arithmetic.WORKSPACE, raising=False)
    message = (
        "Deterministic behavior was enabled with `torch.use_deterministic_algorithms(True)`, but this operation is not "
    )
    message += "deterministic because it uses CuBLAS. To enable it, set CUBLAS_WORKSPACE_CONFIG=:4096:8."
    with pytest.raises(
        RecipeError, match="has used cuBLAS before this run.*start it with CUBLAS_WORKSPACE_CONFIG=:4096:8, or"
    ):
        with arithmetic.arithmetic("float32", deterministic=True):
            assert os.environ[arithmetic.WORKSPACE] == ":4096:8"
            raise RuntimeError(message)


@pytest.mark.parametrize("warn_only", [True, False])
def test_two_numbers_are_added_in_any_order(warn_only):
    with arithmetic.any_order():
        assert not torch.are_deterministic_algorithms_enabled()
    with arithmetic.arithmetic("float32", deterministic=True):
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        with arithmetic.any_order():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only


def test_the_gain_of_bfloat16_is_measured():
    assert 0.05 < bfloat16_gain(repeats=1) < 20


@pytest.mark.parametrize(("gain", "better"), [(0.64, "float32"), (1.05, "float32"), (2.5, "bfloat16")])
def test_doctor_says_what_bfloat16_gains(gain, better, monkeypatch):
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda: gain)
    said = doctor.bfloat16()
    assert said.startswith(f"{gain:.2f} times") and said.endswith(f"pretrain.precision=auto selects {better}")


@pytest.mark.parametrize(("cores", "local", "own"), [(128, "8", 16), (4, "8", 1), (2, "", 2)])
def test_processes_of_a_machine_share_its_cores(cores, local, own, monkeypatch):
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.delenv("SLURM_STEP_TASKS_PER_NODE", raising=False)
    assert device.own_cores() == own
    used, pool = [], threads.ThreadPoolExecutor
    monkeypatch.setattr(threads, "ThreadPoolExecutor", lambda workers: used.append(workers) or pool(1))
    assert list(threads.in_order(abs, [-1])) == [1] and used == [own]


@pytest.mark.parametrize(
    ("seen", "visible", "local", "own"), [(1, "3", "3", 0), (1, "", "0", 0), (4, "", "2", 2), (4, "4,5,6,7", "2", 2)]
)
def test_a_process_takes_its_own_gpu(seen, visible, local, own, monkeypatch):
    """Also where the system shows it no other, before the processes have met."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_RANK", local)
    assert device.choose_device("cuda") == torch.device("cuda", own) and chosen == [torch.device("cuda", own)]
    monkeypatch.delenv("LOCAL_RANK")
    assert device.own_gpu({"LOCAL_RANK": ""}) == 0


def test_a_full_gpu_says_what_fills_it(monkeypatch):
    monkeypatch.setattr(device, "held_bytes", {})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7_900_000_000)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a capacity of 8 GiB")
    assert "(tried to allocate 20.00 MiB, peak use 7.9 GB): halve" in str(as_diptych_error(error))
    device.held_bytes |= {"the images": 1_500_000_000, "weights and gradients": 200_000_000}
    said = str(as_diptych_error(error))
    assert "peak use 7.9 GB: the images 1.5, weights and gradients 0.2, the step itself 6.2): halve" in said


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
            "over NCCL (Duplicate GPU detected : rank 1",
        ),
        (
            "socketProgress: Connection closed by remote process there<45201>",
            "has lost another process, whose own message",
        ),
    ],
)
def test_what_nccl_says_of_itself_is_passed_on(last, said):
    error = torch.distributed.DistBackendError(
        f"NCCL error in: NCCLUtils.cpp:94, NCCL version 2.28.9\nLast error:\n{last}"
    )
    known = str(as_diptych_error(error))
    assert (
        said in known and known.endswith("the last checkpoint is kept: run again with --resume") and "\n" not in known
    )


def test_what_is_held_on_a_device_is_noted(monkeypatch):
    for place in (device, resident, guard):
        monkeypatch.setattr(place, "held_bytes", (noted := {}) if place is device else noted)
    monkeypatch.setattr(resident, "free_bytes", lambda where: 2**40)
    with pretended_device():
        method, photos = tiny_method().to(DEVICE), tiny_images()
        next(photos.read([0], 1, device=DEVICE))
        guard.Guard(method, sgd(method), undoes=True)
    weights = sum(p.numel() for p in method.parameters())
    assert list(noted.values()) == [photos.pixels().nbytes, 8 * weights]


@pytest.mark.parametrize(("gain", "chosen"), [(2.0, "bfloat16"), (0.64, "float32")])
def test_a_run_chooses_its_precision_once(gain, chosen, monkeypatch, tmp_path):
    monkeypatch.setattr(arithmetic, "bfloat16_gain", lambda where: gain)
    assert arithmetic.choose_precision("float64", torch.device("cpu")) == "float64"
    method = tiny_method()
    method.nan_at = 6
    with pytest.raises(DivergedError):
        tiny_run(tmp_path / "run", method, precision="auto")
    monkeypatch.setattr(arithmetic, "bfloat16_gain", None)  # not asked again
    resumed = tiny_run(tmp_path / "run", precision="auto")
    assert different(weights_of(resumed), weights_of(tiny_run(tmp_path / chosen, precision=chosen))) == []
    state = checkpoints.read_state(checkpoints.newest(tmp_path / "run" / "checkpoints"))
    assert state["precision"] == chosen
    assert [line["precision"] for line in resumed.lines("precision")] == [chosen], "and says so once"
