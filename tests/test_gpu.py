"""Training and evaluation on a GPU: `python -m pytest -m gpu -n 0`. Without one, the same tests run on a device that is not there
(tests/pretend.py), so that a GPU is not the first to read them."""

import itertools
import os
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import slow_kernels
import torch
from tiny import TinyEncoder, tiny_images, tiny_run, told, weights_of
from torch import nn

from diptych import Trained, evaluate
from diptych.base import graph
from diptych.base.arithmetic import arithmetic
from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at
from diptych.base.signals import Preempted
from diptych.data.ahead import Copies
from diptych.methods import BYOL, DINO, BarlowTwins, CodingRate, MoCo, MoCoV3, SimCLR, SimSiam, SwAV, VICReg
from diptych.methods.keras import keras_barlow_twins, keras_simsiam
from diptych.networks import batch_norm
from diptych.networks.inference import Preprocessing, embeddings
from diptych.networks.keras import KerasResNet20v2, KerasResNet34
from diptych.runs.encoder import precision_for
from diptych.runs.run import Run
from diptych.training import optimizers
from diptych.training.capture import capture
from diptych.training.feed import Feed
from diptych.training.learner import Learner
from diptych.training.schedules import constant
from diptych.views import barlow_twins, simsiam
from diptych.views.together import Together

if not torch.cuda.is_available():
    with suppress(pytest.skip.Exception):  # an older torch: only the tests that need the device are skipped
        import pretend  # noqa: F401 - torch has to know the device before its first backward pass

METHODS = {
    "barlow_twins": lambda: BarlowTwins(TinyEncoder(), projector=(16, 16)),
    "simsiam": lambda: SimSiam(TinyEncoder(), projector=(16, 16), predictor=8),
    "coding_rate": lambda: CodingRate(TinyEncoder(), projector=(16, 16)),
    "the Keras ResNet-34": lambda: keras_barlow_twins(KerasResNet34(), projector=(16, 16), eps=1e-5),
    "the Keras ResNet-20": lambda: keras_simsiam(KerasResNet20v2(), projector=(16, 16), predictor=8),
}
CPU = torch.device("cpu")


@dataclass
class Place:
    """device: where it is computed. forbid_waits: called with True, a wait for the device raises from then on."""

    device: torch.device
    forbid_waits: Callable[[bool], object]


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request, monkeypatch):
    """A GPU, or the device that stands in for it; `device="cuda"` means it."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU")
        modes = {True: "error", False: "default"}
        yield Place(torch.device("cuda", 0), lambda forbid: torch.cuda.set_sync_debug_mode(modes[forbid]))
        return
    from pretend import DEVICE, PretendGraph, pretended_device  # not beside a GPU, whose place it would take

    with pretended_device() as device:
        monkeypatch.setattr("diptych.base.graph.new_graph", lambda where: PretendGraph(device))
        monkeypatch.setattr("diptych.data.resident.free_bytes", lambda where: 2**40)
        for module in ("training.pretrain", "downstream.evaluate"):
            monkeypatch.setattr(sys.modules[f"diptych.{module}"], "choose_device",
                                lambda name: CPU if name == "cpu" else DEVICE)  # fmt: skip
        before: list[int] = []

        def forbid(on: bool) -> None:
            assert not before or len(device.waits) == before.pop()
            before.extend([len(device.waits)] * on)

        yield Place(DEVICE, forbid)


@pytest.fixture
def exact():
    with arithmetic("float32", deterministic=True):
        yield


def seeded(name: str) -> nn.Module:
    torch.manual_seed(1)
    return METHODS[name]()


@pytest.mark.parametrize("preset", [barlow_twins, simsiam])
def test_views_are_the_cpus(preset, place):
    views, images = preset(32), torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    draws = [view.sample(64, random_at("gpu", index)) for index, view in enumerate(views)]
    there, together = images.to(place.device), Together(views)
    together.apply(there, draws)  # the libraries' own start
    place.forbid_waits(True)
    try:
        applied = together.apply(there, draws)
    finally:
        place.forbid_waits(False)
    for view, draw, mine in zip(views, draws, applied, strict=True):
        assert (mine.cpu() - view.apply(images, draw)).abs().max() <= 1e-4


def steps(
    name: str, optimizer: str, where: torch.device, *, graphs: bool | str = False, count: int = 8
) -> tuple[list, dict]:
    """(numbers of each step, weights) of a few steps in float32, without TF32."""
    method = seeded(name).to(where).to(memory_format=torch.channels_last)
    feed = Feed(tiny_images(), barlow_twins(12), epochs=count, batch_size=24, device=where)
    learner = Learner(method, getattr(optimizers, optimizer)(method, lr=0.05), constant())
    said: list[str] = []
    capture(learner, feed, graphs, said.append, log_steps=2, hindrance=None if graphs else "not asked for")
    taken = itertools.islice(feed.starting_at(0), count)
    numbers = [learner.step(step, feed.total, views).numbers.clone() for step, views in taken]
    assert said == []
    return torch.stack(numbers).tolist(), {key: value.cpu() for key, value in method.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(24, 6, 5, 5), (24, 6), (8, 6, 2, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_fused_batch_normalisation_is_the_other_one(affine, shape, dtype, place, exact, monkeypatch):
    """torch's kernels for CUDA against the form in torch's operations; without a GPU, kernels in operations too."""
    if place.device.type != "cuda":
        monkeypatch.setattr(batch_norm, "KERNELS", slow_kernels)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    rng = torch.Generator().manual_seed(0)
    x, slope = ((3 * torch.randn(shape, generator=rng) + 5).to(dtype).to(place.device) for _ in "ab")
    affine_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (torch.randn(6, generator=rng).to(affine_dtype).to(place.device).requires_grad_() for _ in "ab")
    results = []
    for form in (batch_norm._FusedOverRanks, batch_norm._NormalizeOverRanks):
        leaf = x.detach().to(memory_format=layout).requires_grad_()
        leaves = (leaf, weight, bias) if affine else (leaf,)
        y, *statistics = form.apply(leaf, *((weight, bias) if affine else (None, None)), 1e-5)
        assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
        results.append([y, *statistics, *torch.autograd.grad(y, leaves, slope)])
    close = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2}[dtype]
    for mine, witness in zip(*results, strict=True):
        torch.testing.assert_close(mine.cpu(), witness.cpu(), rtol=close, atol=close)


STREAMS = {"from threads": {"resident": False}, "from memory": {"resident": True}}


@pytest.mark.parametrize("what", STREAMS)
def test_a_stream_is_the_cpus_one_batch_ahead(what, place, monkeypatch):
    """The same bytes on either; a batch comes when the next one is on its way, and nothing waits for a copy."""
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda where: 0)  # no room for all images at once
    order, photos = torch.arange(47, -1, -1), tiny_images(**STREAMS[what])
    photos.prepare()
    here = [pixels for _, pixels in photos.read(order, 10)]
    copies, begin = [], Copies.begin
    monkeypatch.setattr(Copies, "begin", lambda self, batch: copies.append(1) or begin(self, batch))
    place.forbid_waits(True)
    try:
        there, ahead = [], []
        for _, pixels in photos.read(order, 10, device=place.device):
            there.append(pixels * 1)  # computed beside the copies
            ahead.append(len(copies))
    finally:
        place.forbid_waits(False)
    assert ahead == [2, 3, 4, 5, 5]
    assert {pixels.device for pixels in there} == {place.device}
    assert all(torch.equal(mine.cpu(), wanted) for mine, wanted in zip(there, here, strict=True))


@pytest.fixture
def recorder(monkeypatch):
    """torch's recording, which is not begun: (the modes in which it was asked for, what was put right after it)."""
    modes, repaired = [], []

    @contextmanager
    def record(graph, capture_error_mode="global"):
        modes.append(capture_error_mode)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream of before")
    monkeypatch.setattr(torch.cuda, "set_stream", repaired.append)
    monkeypatch.setattr(graph, "renew_generator", repaired.append)
    return modes, repaired


def test_a_recording_forbids_nothing_to_other_threads(recorder):
    with graph.CudaGraph(CPU).record():
        pass
    assert recorder == (["thread_local"], [])


def test_a_recording_that_fails_leaves_stream_and_random_numbers_as_before(recorder):
    with pytest.raises(RuntimeError, match="not permitted"), graph.CudaGraph(CPU).record():
        raise RuntimeError("operation not permitted when stream is capturing")
    assert recorder[1] == ["the stream of before", CPU]


def test_waits_are_noticed_with_their_places(monkeypatch):
    """torch says them as warnings; others stay warnings."""
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 2)
    notice = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    monkeypatch.setattr(
        torch.cuda, "set_sync_debug_mode", lambda mode: modes.append(mode) or warnings.warn(notice, stacklevel=1)
    )
    with pytest.warns(UserWarning, match="something else") as others:
        with graph.waits_noticed(torch.device("cuda", 0)) as places:
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert len(others) == 1 and len(places) == 1 and places[0].startswith("test_gpu.py, line ")
    assert modes == ["warn", 2], "as before"
    with graph.waits_noticed(CPU) as places:
        pass
    assert places == [] and len(modes) == 2


class CopiesPageable(BarlowTwins):
    """A step that no graph may hold, for a reason that torch does not report before: memory that is not pinned."""

    def compare(self, projections, progress):
        compared = super().compare(projections, progress)
        return compared._replace(loss=compared.loss * torch.ones(()).to(compared.loss.device, non_blocking=True))


class Reads(BarlowTwins):
    def compare(self, projections, progress):
        return super().compare(projections, float(progress))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [Reads, CopiesPageable])
@pytest.mark.parametrize("resident", [True, False])
def test_a_step_that_cannot_be_captured_goes_on(kind, resident, tmp_path, capsys):
    """Dropout draws after it, images are streamed after it, and the process can train another method as a graph."""
    method = kind(TinyEncoder(), projector=(16, 16))
    run = tiny_run(tmp_path / "run", method, tiny_images(resident=resident), device="cuda", show=True, epochs=6)
    assert run.finished and len(run.lines("step")) == 24
    assert "note: steps run without a CUDA graph" in "".join(capsys.readouterr())
    plain = BarlowTwins(TinyEncoder(), projector=(16, 16))
    assert tiny_run(tmp_path / "plain", plain, device="cuda", cuda_graph=True).finished
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
def test_a_step_is_captured_while_threads_decode(tmp_path):
    """They ask for pinned memory, which a recording would forbid to the whole process."""
    method = BarlowTwins(TinyEncoder(), projector=(16, 16))
    run = tiny_run(tmp_path / "run", method, tiny_images(resident=False), device="cuda", cuda_graph=True)
    assert run.finished


SLOW_HERE = ("the Keras ResNet-34",)
NETWORKS = [pytest.param(name, marks=pytest.mark.slow if name in SLOW_HERE else ()) for name in METHODS]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_cpus(name, place, exact, monkeypatch):
    """Of the first step; later ones of networks with dropout draw otherwise."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda layer, x: x)
    there, here = (steps(name, "sgd", where, count=1)[0][0] for where in (place.device, CPU))
    assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


# On the pretended device tests/test_pretend_device.py holds the others, bit for bit.
@pytest.mark.parametrize(
    "optimizer", ["lars", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("lamb", "sgd", "adamw"))]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_captured_step_is_the_eager_one(name, optimizer, place, exact):
    if place.device.type != "cuda" and ("Keras" in name or optimizer != "lars"):
        pytest.skip("held by tests/test_pretend_device.py")
    eager, weights = steps(name, optimizer, place.device)
    captured, same = steps(name, optimizer, place.device, graphs=True)
    for mine, wanted in zip(captured, eager, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(same[key], value, rtol=1e-4, atol=1e-5, msg=key)


SIBLINGS = {
    "byol": lambda: BYOL(TinyEncoder(), projector=(16, 16), predictor=8),
    "moco": lambda: MoCo(TinyEncoder(), projector=(16, 16), queue=32, statistics_rows=None),
    "moco_v3": lambda: MoCoV3(TinyEncoder(), projector=(16, 16), predictor=8),
    "simclr": lambda: SimCLR(TinyEncoder(), projector=(16, 16)),
    "swav": lambda: SwAV(TinyEncoder(), projector=(16, 16), prototypes=12, queue=24, queue_start=0.0),
    "vicreg": lambda: VICReg(TinyEncoder(), projector=(16, 16)),
    "dino": lambda: DINO(TinyEncoder(), projector=(16, 16), prototypes=16, warmup=0.5),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", SIBLINGS)
def test_a_step_of_every_method_is_captured(name, place, monkeypatch):
    """tests/test_pretend_device.py compares them bit for bit. Sums in another order differ here, and more so step by step."""
    monkeypatch.setitem(METHODS, name, SIBLINGS[name])
    eager, captured = (steps(name, "sgd", place.device, graphs=graphs, count=6)[0] for graphs in (False, True))
    assert captured[0] == pytest.approx(eager[0], rel=1e-3, abs=1e-3)
    assert captured[-1][0] == pytest.approx(eager[-1][0], rel=0.1, abs=0.1)


def stop(step: int, encoder: nn.Module) -> dict:
    """A watch that asks the run to stop after its first epoch."""
    if step == 4:
        os.kill(os.getpid(), signal.SIGTERM)
    return {}


def watch_on(step: int, encoder: nn.Module) -> dict:
    return {}


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_resumed_run_is_the_undisturbed_one(deterministic, place, tmp_path):
    """Twelve steps, most of them as a graph, stopped after five: the same bits where they are asked for, else close."""
    options = {
        "device": "cuda",
        "deterministic": deterministic,
        "log_steps": 1,
        "checkpoint_minutes": 5.0,
        "resume": False,
    }
    whole = tiny_run(tmp_path / "whole", **options, watch=[watch_on])
    with pytest.raises(Preempted):
        tiny_run(tmp_path / "stopped", **options, watch=[stop])
    assert len(Run(tmp_path / "stopped").lines("step")) == 5
    resumed = tiny_run(tmp_path / "stopped", **options | {"resume": True}, watch=[watch_on])
    assert len(resumed.lines("step")) == 12
    wanted, weights = weights_of(whole), weights_of(resumed)
    for name, value in wanted.items():
        if deterministic:
            assert torch.equal(weights[name], value), name
        else:
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
    losses = [[line["loss"] for line in told(run) if line["event"] == "step"] for run in (whole, resumed)]
    assert losses[1] == (losses[0] if deterministic else pytest.approx(losses[0], rel=1e-3))


def test_an_evaluation_is_the_cpus(place, tmp_path):
    run, photos = tiny_run(tmp_path / "run", epochs=1), tiny_images()
    trained = Trained(run_encoder(run), Preprocessing(12))
    there, here = (evaluate(trained, photos, photos, device=name, show=False) for name in ("cuda", "cpu"))
    for mine, wanted in zip(there.scores, here.scores, strict=True):
        assert (mine.subject, mine.protocol) == (wanted.subject, wanted.protocol)
        assert mine.accuracy == pytest.approx(wanted.accuracy, abs=0.05), mine.subject
    assert there.diagnosis.readings == pytest.approx(here.diagnosis.readings, rel=0.02)


@pytest.mark.parametrize(
    ("of_run", "there"), [("bfloat16", "bfloat16"), ("tf32", "tf32"), ("float64", "float32"), (None, "float32")]
)
def test_an_evaluation_takes_the_precision_of_the_run(of_run, there, place, tmp_path):
    """On a GPU; a CPU embeds in float32 whatever the run took, and who names a precision gets it."""
    record = {} if of_run is None else {"pretrain": {"precision": of_run}}
    run = Run.start(tmp_path / "run", record)
    run.release()
    trained = Trained(TinyEncoder(), Preprocessing(12), folder=run.folder)
    assert precision_for("auto", trained, place.device) == there
    assert precision_for("auto", trained, CPU) == "float32"
    assert precision_for("tf32", trained, place.device) == "tf32"
    assert precision_for("auto", Trained(TinyEncoder(), Preprocessing(12)), place.device) == "float32"
    with pytest.raises(RecipeError, match="precision 'int8' is unknown"):
        precision_for("int8", trained, place.device)


def test_embeddings_in_sixteen_bits_are_close(place):
    """And those of a device lie there, batch by batch, without a wait; the last of a batch is not lost."""
    pixels, encoder = torch.randint(256, (50, 3, 12, 12), dtype=torch.uint8), TinyEncoder().eval()
    here = embeddings(encoder, pixels, Preprocessing(12), batch_size=20)
    encoder.to(place.device)
    options = {"batch_size": 20, "precision": "bfloat16", "output_device": place.device}
    pixels_there = pixels.to(place.device)
    embeddings(encoder, pixels_there, Preprocessing(12), **options)  # the libraries' own start
    place.forbid_waits(True)
    try:
        there = embeddings(encoder, pixels_there, Preprocessing(12), **options)
    finally:
        place.forbid_waits(False)
    assert there.device == place.device and there.dtype == torch.float32
    torch.testing.assert_close(there.cpu(), here, rtol=0.05, atol=0.05)
    assert embeddings(encoder, pixels, Preprocessing(12), batch_size=20).device == CPU


def run_encoder(run: Run) -> nn.Module:
    encoder = TinyEncoder()
    prefix = "model.encoder."
    state = {key.removeprefix(prefix): value for key, value in weights_of(run).items() if key.startswith(prefix)}
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_processes_are_one(device, tmp_path):
    """torchrun with two processes, over gloo or NCCL: three steps in float64 end within 1e-10 of one process on the same global
    batch; with `micro_batch`, pieces of two processes end where one process' whole batch ends."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip(f"two processes need two GPUs of their own; torch sees {torch.cuda.device_count()}")
    from two_processes import train, train_in_pieces

    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folders = [str(tmp_path / name) for name in ("two", "two-pieces")]
    done = subprocess.run([*command, str(here / "two_processes.py"), *folders, device], capture_output=True, text=True,
                          timeout=240, cwd=here)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for alone, name in ((train, "two"), (train_in_pieces, "two-pieces")):
        one, two = alone(tmp_path / f"{name}-alone", device), Run(tmp_path / name)
        ours, theirs = weights_of(two), weights_of(one)
        assert ours.keys() == theirs.keys()
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-10
        for a, b in zip(two.lines("step"), one.lines("step"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-10)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], abs=1e-10)


def test_the_pretended_device_keeps_away_from_a_gpu(monkeypatch):
    """torch has one accelerator at most: pinned memory would be asked of the pretended device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(pytest.skip.Exception, match="the machine has a GPU"):
        runpy.run_path(str(Path(__file__).with_name("pretend.py")))
