"""The loop's fast paths beside their slow twins: looking at log lines only, the networks on pieces of a batch."""

import json
import shutil

import pytest
import tiny
import torch
from tiny import (
    TOTAL,
    NormlessEncoder,
    TinyEncoder,
    tiny_method,
    tiny_run,
    told,
    weights_of,
    without_norms,
)

from diptych.base.errors import DivergedError, RecipeError
from diptych.methods import BarlowTwins, Method, SimSiam
from diptych.runs import checkpoints
from diptych.runs.run import Run
from diptych.training import optimizers
from diptych.training.diary import Diary


@pytest.fixture
def waiting(monkeypatch):
    """This CPU is treated as a device that one has to wait for."""
    for user in ("pretrain", "learner"):
        monkeypatch.setattr(f"diptych.training.{user}.waits_for", lambda device: True)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("quiet") / "run", log_steps=3)


def different(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    """The names under which two runs hold other bits."""
    assert ours.keys() == theirs.keys()
    return [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def test_looking_at_log_lines_only_changes_nothing(quiet, waiting, tmp_path, monkeypatch):
    looks, look = [], Diary.look
    monkeypatch.setattr(Diary, "look", lambda diary, *flags: looks.append(len(diary.taken)) or look(diary, *flags))
    run = tiny_run(tmp_path / "run", log_steps=3)
    assert looks == [1, 2, 1, 2, 2, 1, 3]  # after steps 0, 2, 3 (epoch), 5, 7 (epoch), 8, 11
    assert told(run) == told(quiet)
    assert different(weights_of(run), weights_of(quiet)) == []


class Breaks(type(tiny_method())):
    """Gives a loss that is not finite at one step, however often that step is taken."""

    bad_step, done = -1, 0

    def compare(self, projections, progress):
        compared = super().compare(projections, progress)
        return compared._replace(loss=compared.loss * float("nan")) if self.done == self.bad_step else compared

    def after_step(self, kept, progress) -> None:
        self.done = round(float(progress) * TOTAL) + 1


def breaking(step: int) -> Breaks:
    method = tiny_method()
    method.__class__, method.bad_step = Breaks, step
    return method


@pytest.mark.parametrize("optimizer", ["lars", "lamb", "adamw", "sgd"])
@pytest.mark.parametrize("bad", [9, 10])
def test_a_step_that_is_not_finite_moves_nothing(bad, optimizer, waiting, tmp_path, monkeypatch):
    """It is noticed at the look after step 11, up to two updates later, and what is saved is the step before it."""
    make = getattr(optimizers, optimizer)
    monkeypatch.setattr(tiny, "lars", lambda method, lr, weight_decay: make(method, lr=lr / 100))
    with pytest.raises(DivergedError, match=f"loss nan .* at step {bad}; step {bad - 1} is saved"):
        tiny_run(tmp_path / "run", breaking(bad), log_steps=3)
    assert json.loads((tmp_path / f"run/crash/step_{bad:07d}_rank_0.json").read_text())["step"] == bad
    resumed = tiny_run(tmp_path / "run", breaking(-2), log_steps=3)
    quiet = tiny_run(tmp_path / "quiet", breaking(-2), log_steps=3)
    assert different(weights_of(resumed), weights_of(quiet)) == []
    first = {bad + 1}  # a resumed run logs its first step
    assert [line for line in told(resumed) if line.get("step") not in first] == [
        line for line in told(quiet) if line.get("step") not in first
    ]


def test_a_first_step_that_is_not_finite_leaves_the_run_as_it_began(waiting, tmp_path):
    """The optimizer has begun to remember in that step; it is forgotten."""
    with pytest.raises(DivergedError, match="at step 0; nothing has been trained"):
        tiny_run(tmp_path / "run", breaking(0))
    resumed, quiet = tiny_run(tmp_path / "run", breaking(-2)), tiny_run(tmp_path / "quiet", breaking(-2))
    assert different(weights_of(resumed), weights_of(quiet)) == []


def normless(method: type[Method]) -> Method:
    torch.manual_seed(2)
    return without_norms(method(NormlessEncoder(), projector=(16, 16)))


@pytest.mark.parametrize("method", [BarlowTwins, SimSiam])
def test_pieces_are_the_batch(method, tmp_path):
    """Without batch normalisation: three epochs in pieces of 4 of 12 images end where whole batches end."""
    asked = dict(precision="float64", epochs=3)
    whole = tiny_run(tmp_path / "whole", normless(method), **asked)
    pieces = tiny_run(tmp_path / "pieces", normless(method), **asked, micro_batch=4)
    ours, theirs = weights_of(pieces), weights_of(whole)
    assert any(not torch.equal(ours[name], theirs[name]) for name in theirs), "pieces are summed in another order"
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12, msg=name)
    for mine, his in zip(pieces.lines("step"), whole.lines("step"), strict=True):
        assert mine["loss"] == pytest.approx(his["loss"], rel=1e-9)
        assert mine["gradient_norm"] == pytest.approx(his["gradient_norm"], rel=1e-9)


def test_one_piece_is_the_batch_with_its_statistics_and_dropout(tmp_path, quiet):
    """Batch statistics move once a step, dropout draws the same twice, bfloat16 weights get their gradient."""
    run = tiny_run(tmp_path / "run", log_steps=3, micro_batch=12)
    ours, theirs = weights_of(run), weights_of(quiet)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    options = dict(precision="bfloat16", epochs=1, log_steps=1)
    norms = [
        tiny_run(tmp_path / str(size), micro_batch=size, **options).lines("step")[0]["gradient_norm"]
        for size in (None, 12)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3) and norms[0] > 0


def test_a_last_update_that_no_loss_has_seen(tmp_path, monkeypatch):
    """One step of an enormous rate: its loss was finite, the encoder is not."""
    monkeypatch.setattr(tiny, "lars", lambda method, lr, weight_decay: optimizers.sgd(method, lr=1e18))
    with pytest.raises(DivergedError, match="embeddings are not finite after the last step"):
        tiny_run(tmp_path / "run", epochs=1, batch_size=48, schedule=lambda progress: 1.0)
    assert not (tmp_path / "run" / "encoder").exists()


@pytest.mark.parametrize("method", [BarlowTwins, SimSiam])
def test_compiled_training_is_training(method, tmp_path, monkeypatch):
    """As one graph without breaks, autograd included; without the last stage, which makes machine code and takes a minute."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="aot_eager", fullgraph=True))
    runs = []
    for compile in (False, True):
        torch.manual_seed(4)
        encoder = TinyEncoder()
        encoder[3].p = 0.0  # compiled dropout draws other numbers
        runs.append(
            tiny_run(tmp_path / str(compile), method(encoder, projector=(16, 16)), epochs=1, torch_compile=compile)
        )
    ours, theirs = map(weights_of, runs[::-1])
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_to_machine_code(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    whole, compiled = (
        tiny_run(tmp_path / str(compile), normless(BarlowTwins), epochs=1, torch_compile=compile)
        for compile in (False, True)
    )
    for mine, his in zip(compiled.lines("step"), whole.lines("step"), strict=True):
        assert mine["loss"] == pytest.approx(his["loss"], rel=1e-4)


def test_pieces_are_not_compiled(tmp_path):
    with pytest.raises(RecipeError, match="micro_batch and torch_compile do not go together"):
        tiny_run(tmp_path / "run", micro_batch=4, torch_compile=True)


@pytest.mark.parametrize("size", [1, 5, 24])
def test_pieces_of_another_size_are_refused(size, tmp_path):
    said = (
        "micro_batch is 1; it must be at least 2"
        if size == 1
        else f"micro_batch {size} must be at least 2 and divide the 12"
    )
    with pytest.raises(RecipeError, match=said):
        tiny_run(tmp_path / "run", micro_batch=size)
    assert not (tmp_path / "run").exists()


class FollowsItself(BarlowTwins):
    """With a target network, as BYOL has: one projection comes without a gradient, one is a count."""

    def project(self, views, draw):
        z1 = super().project(views, draw)["z1"]
        with torch.no_grad():
            target = super().project(views, draw)["z2"]
        return {"z1": z1, "z2": target, "index": torch.arange(len(z1))}


def test_pieces_of_a_method_with_a_target_network(tmp_path):
    runs = [tiny_run(tmp_path / str(size), normless(FollowsItself), precision="float64", epochs=1, micro_batch=size)
            for size in (None, 4)]  # fmt: skip
    whole, pieces = map(weights_of, runs)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-9, atol=1e-12, msg=name)


class Counts(torch.optim.SGD):
    """Remembers a plain number, and from its fifth step on a tensor that it did not have before."""

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            memory = self.state[parameter]
            memory["steps"] = memory.get("steps", 0) + 1
            if memory["steps"] >= 5:
                memory["late"] = memory.get("late", torch.zeros(())) + parameter.detach().sum()
                parameter.data.mul_(1 - 1e-3 * memory["steps"])


@pytest.mark.parametrize("bad", [4, 5, 10])
def test_whatever_an_optimizer_remembers_stays_as_it_was(bad, waiting, tmp_path, monkeypatch):
    """The late tensor comes in step 4, a plain number in the first."""
    monkeypatch.setattr(tiny, "lars", lambda method, lr, weight_decay: Counts(method.parameters(), lr=0.01))
    with pytest.raises(DivergedError, match=f"at step {bad}; step {bad - 1} is saved"):
        tiny_run(tmp_path / "run", breaking(bad), log_steps=3)
    monkeypatch.undo()
    monkeypatch.setattr(tiny, "lars", lambda method, lr, weight_decay: Counts(method.parameters(), lr=0.01))
    with pytest.raises(DivergedError, match=f"at step {bad}; step {bad - 1} is saved"):
        tiny_run(tmp_path / "looking", breaking(bad), log_steps=3)
    assert different(weights_of(Run(tmp_path / "run")), weights_of(Run(tmp_path / "looking"))) == []
    states = [
        checkpoints.read_state(checkpoints.newest(tmp_path / name / "checkpoints"))["optimizer"]
        for name in ("run", "looking")
    ]
    assert states[0] == states[1]


@pytest.mark.gpu
def test_between_two_looks_a_true_gpu_is_not_waited_for(tmp_path, monkeypatch):
    """From the first look to the last one, with the step in which graphs are recorded."""
    looked, look = [], Diary.look

    def at_ease(diary: Diary, *flags: bool):
        torch.cuda.set_sync_debug_mode("default")
        looked.append(look(diary, *flags))
        torch.cuda.set_sync_debug_mode("error" if len(looked) == 1 else "default")
        return looked[-1]

    monkeypatch.setattr(Diary, "look", at_ease)
    try:
        tiny_run(tmp_path / "run", device="cuda", epochs=1, log_steps=100, checkpoint_minutes=5.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(looked) == 2
