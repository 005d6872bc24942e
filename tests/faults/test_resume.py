"""Rows 26, 34, 36 and 38 of docs/faults.md: whatever stops a run or damages what it has saved, it goes on as if undisturbed,
or says in one line why it cannot."""

import hashlib
import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import struck
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoiled import SMALL, diptych, jpeg, photographs, refusal
from struck import in_own_process
from tiny import SIGKILL, TOTAL, tiny_images, tiny_method, tiny_run, told

from diptych.base.errors import CheckpointError
from diptych.base.signals import Preempted
from diptych.commands import pretraining
from diptych.data.squares import Squares
from diptych.runs import checkpoints
from diptych.runs.run import Run
from diptych.training.keeper import Keeper
from diptych.training.optimizers import lars

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Run:
    """A run that nothing disturbed."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "quiet", checkpoint_minutes=5.0)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """A run that was stopped at step 6, with checkpoints of step 5 and 6."""
    method = tiny_method()
    method.signal_at = (5, signal.SIGTERM)
    out = tmp_path_factory.mktemp("runs") / "halfway"
    with pytest.raises(Preempted):
        tiny_run(out, method)
    return out


def copied(halfway: Path, to: Path) -> Path:
    return Path(shutil.copytree(halfway, to))


def assert_as_quiet(run: Run, quiet: Run) -> None:
    """The same weights, the same memory of the optimizer, the same log but for what clocks wrote."""
    ours, theirs = (checkpoints.newest(each.folder / "checkpoints") for each in (run, quiet))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert told(run) == told(quiet)
    assert not list(run.folder.rglob("*.tmp*"))


# ---- 26: the images have changed


def test_26_changed_images_are_refused_with_both_fingerprints(tmp_path):
    photos, out = photographs(tmp_path / "photos"), tmp_path / "run"
    words = ["pretrain", photos, *SMALL, "--out", out, "--resume"]
    assert diptych(*words)[0] == 0
    (photos / "cat" / "new.jpg").write_bytes(jpeg(seed=5))
    code, _, err = diptych(*words)
    told = refusal(err)
    assert (
        code == 4
        and "was made from" in told
        and "bring the same images back, or start a new run with another --out" in told
    )
    (photos / "cat" / "new.jpg").unlink()
    (photos / "cat" / "00.jpg").write_bytes(jpeg(seed=5) + bytes(9))  # as many as before
    code, _, err = diptych(*words)
    assert code == 4 and "was made from other images (fingerprint " in refusal(err)


def test_26_an_image_that_can_no_longer_be_read_is_a_change_too(halfway, tmp_path):
    """Names and sizes are the same, so the fingerprint is; but who is first in line would not be."""
    photos = tiny_images()
    shorter = tiny_images().subset(range(47))
    shorter.__class__ = type("Shorter", (type(shorter),), {"fingerprint": photos.fingerprint})
    record = Run(halfway).recipe
    with pytest.raises(CheckpointError, match="was made from 48 images, of which now 47 can be read"):
        tiny_run(copied(halfway, tmp_path / "run"), photos=shorter, record=record)


# ---- 45: what is left of a run


@pytest.mark.parametrize("log_steps", [1, 5])
@pytest.mark.parametrize("stops", [(0,), (2,), (6, 8), (11,)], ids=str)
def test_45_the_log_of_a_resumed_run_has_each_step_once(stops, log_steps, tmp_path):
    """Whatever is logged, and wherever it stops: no line more and none less than undisturbed."""
    undisturbed = tiny_run(tmp_path / "quiet", log_steps=log_steps, checkpoint_minutes=5.0)
    for step in stops:
        method = tiny_method()
        method.signal_at = (step, signal.SIGTERM)
        with pytest.raises(Preempted):
            tiny_run(tmp_path / "run", method, log_steps=log_steps)
    run = tiny_run(tmp_path / "run", log_steps=log_steps)
    assert told(run) == told(undisturbed)
    assert [line["step"] for line in run.lines("step")] == ([1, 5, 10, 12] if log_steps == 5 else list(range(1, 13)))


def test_45_a_finished_run_without_checkpoints_stays_finished(tmp_path):
    photos, out = photographs(tmp_path / "photos"), tmp_path / "run"
    words = ["pretrain", photos, *SMALL, "--out", out, "--resume"]
    assert diptych(*words)[0] == 0
    shutil.rmtree(out / "checkpoints")
    before = {
        name: (out / name).read_bytes() for name in ("encoder/model.safetensors", "log.jsonl", "evaluations.jsonl")
    }
    code, said, err = diptych(*words)
    assert code == 0, err
    assert f"{out} had finished: nothing was trained" in said
    assert before == {name: (out / name).read_bytes() for name in before}
    code, _, err = diptych(*words[:-1], "--extend", 2)
    assert code == 4 and "has no checkpoint to continue from" in refusal(err)


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/step_*"])
def test_45_an_unfinished_run_without_checkpoints_is_not_begun_again(gone, halfway, tmp_path):
    """Its log says that it has begun; starting at step 0 would pass for a continuation."""
    out = copied(halfway, tmp_path / "run")
    for path in list(out.glob(gone)):
        shutil.rmtree(path)
    before = (out / "log.jsonl").read_bytes()
    with pytest.raises(
        CheckpointError, match=f"{out}/checkpoints has lost its checkpoints: restore them, or start over"
    ):
        tiny_run(out)
    assert (out / "log.jsonl").read_bytes() == before


def test_45_a_run_without_its_log_is_not_begun_again(halfway, tmp_path):
    out = copied(halfway, tmp_path / "run")
    (out / "log.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"run/log.jsonl is missing: restore it"):
        tiny_run(out)


@pytest.mark.parametrize("moment", range(4))
def test_45_killed_before_the_first_checkpoint_it_starts_at_step_0(moment, quiet, tmp_path, monkeypatch):
    """Killed while the folder is made, or in the first steps: nothing is lost, and nothing needs to be removed by hand."""
    out = tmp_path / "run"
    if moment < 3:

        def dies(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"diptych.runs.run.{('append_lines', 'write_file', 'environment')[moment]}", dies)
            with pytest.raises(KeyboardInterrupt):
                tiny_run(out)
    else:
        assert in_own_process(struck.dies_early, str(out)) == -SIGKILL
        assert len(Run(out).lines("step")) == 3
    assert_as_quiet(tiny_run(out, checkpoint_minutes=5.0), quiet)


# ---- 34: killed while it saves


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_34_killed_at_every_operation_of_saving(every, tmp_path):
    """Each operation costs a process of its own, half a second to two: the quick run takes every sixth."""
    moment, newest = 0, []
    while True:
        moment, folder = moment + every, tmp_path / f"at_{moment + every}"
        for step in (1, 2):
            checkpoints.save(folder, step, struck.tensors(step), {})
        code = in_own_process(struck.save_and_die, str(folder), moment)
        checkpoints.clear(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # not even a broken one to pass over
            found = checkpoints.newest(folder)
        step = int(found.name.removeprefix("step_"))
        newest.append(step)
        assert checkpoints.read_tensors(found / "model.safetensors")["a"][0] == step
        assert not list(folder.glob(".step*"))  # half of a checkpoint is swept away
        if code == 0:
            break
        assert code == -SIGKILL and moment < 100
    assert moment > 20 and len(newest) > 3 and newest == sorted(newest) and set(newest) == {2, 3}


@pytest.mark.slow
def test_34_killed_at_random_moments(tmp_path):
    """Forty times, while it does little but save; and it ends bit-equal to a run that nothing disturbed."""
    rng, out = random.Random(0), tmp_path / "run"
    killed = 0
    while killed < 40:
        code = in_own_process(struck.keep_saving, str(out), 30, kill_after=rng.uniform(0.02, 0.6))
        if code == 0:
            break
        assert code == -SIGKILL
        killed += 1
    assert killed >= 12
    assert_as_quiet(tiny_run(out, epochs=30), tiny_run(tmp_path / "quiet", epochs=30, checkpoint_minutes=5.0))


# ---- 36: what was saved is damaged


FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
CHANGES = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.none()),
    st.tuples(st.just("zero"), st.floats(0, 1, exclude_max=True), st.none()),
    st.tuples(st.just("other"), st.none(), st.binary(max_size=200)),
    st.tuples(st.just("header"), st.none(), st.integers(0, 2**64 - 1)),
)


def damage(data: bytes, change: tuple) -> bytes:
    kind, where, what = change
    at = int(where * len(data)) if where is not None else 0
    made = bytearray(data)
    if kind == "flip":
        made[at] ^= 1 << what
    elif kind == "cut":
        del made[at:]
    elif kind == "zero":
        made[at:] = bytes(len(made) - at)
    elif kind == "other":
        made = bytearray(what)
    else:
        made[:8] = what.to_bytes(8, "little")
    return bytes(made)


@given(file=st.sampled_from(FILES), change=CHANGES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_36_any_damage_is_passed_over_for_the_checkpoint_before(file, change, halfway, tmp_path_factory):
    folder = copied(halfway / "checkpoints", tmp_path_factory.mktemp("damaged") / "checkpoints")
    before = (folder / "step_0000006" / file).read_bytes()
    after = damage(before, change)
    (folder / "step_0000006" / file).write_bytes(after)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = checkpoints.newest(folder)
    if found.name == "step_0000006":  # unchanged, or what changed means nothing to JSON
        assert (
            after == before or file == "manifest.json" and json.loads(after)["sha256"] == json.loads(before)["sha256"]
        )
        assert not told
    else:
        assert (
            found.name == "step_0000005"
            and "step_0000006: " in str(told[0].message)
            and "older" in str(told[0].message)
        )
    shutil.rmtree(folder.parent)


def test_36_it_goes_on_from_the_older_one_and_ends_the_same(halfway, quiet, tmp_path):
    out = copied(halfway, tmp_path / "run")
    weights = out / "checkpoints" / "step_0000006" / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes(), ("flip", 0.9, 3)))
    with pytest.warns(UserWarning, match="model.safetensors is damaged .* looking for an older checkpoint"):
        run = tiny_run(out)
    assert_as_quiet(run, quiet)


def test_36_when_none_is_whole_it_is_exit_code_4_in_one_line(halfway, tmp_path):
    out, said = copied(halfway, tmp_path / "run"), tmp_path / "said"
    for checkpoint in checkpoints.steps(out / "checkpoints"):
        (checkpoint / "optimizer.safetensors").write_bytes(b"")
    assert in_own_process(struck.ended, str(out), str(said)) == 4
    told = said.read_text().splitlines()
    assert len(told) == 3 and sum("looking for an older" in line for line in told) == 2
    assert told[-1].endswith("is intact; restore one, or start over with --overwrite")


def sealed(checkpoint: Path, file: str, data: bytes, **manifest) -> Path:
    """Replace a file and make the manifest agree: whole by its hashes, as a foreign or future program would leave it."""
    (checkpoint / file).write_bytes(data)
    told = json.loads((checkpoint / "manifest.json").read_text())
    told["sha256"][file] = hashlib.sha256(data).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(told | manifest))
    return checkpoint


def changed(path: Path, **tensors) -> bytes:
    made = safetensors.torch.load_file(path) | tensors
    return safetensors.torch.save({name: value for name, value in made.items() if value is not None})


@pytest.mark.parametrize(
    ("file", "make", "message"),
    [
        ("model.safetensors", lambda path: b"\xff" * 64, "is not a readable safetensors file"),
        ("model.safetensors", lambda path: (2**40).to_bytes(8, "little") + b"{}", "is not a readable safetensors file"),
        (
            "model.safetensors",
            lambda path: changed(path, other=torch.ones(1)),
            "does not fit this network: unexpected other",
        ),
        ("model.safetensors", lambda path: changed(path, **{"encoder.0.bias": None}), "missing encoder.0.bias"),
        (
            "model.safetensors",
            lambda path: changed(path, **{"encoder.0.bias": torch.ones(3)}),
            "of another shape encoder.0.bias",
        ),
        ("optimizer.safetensors", lambda path: changed(path, strange=torch.ones(1)), "another version of diptych"),
        ("state.json", lambda path: b"[]", "state.json: not a JSON object"),
        ("state.json", lambda path: b"\x80\x04.", "state.json: not JSON"),
    ],
    ids=[
        "noise",
        "huge header",
        "extra key",
        "missing key",
        "other architecture",
        "other optimizer",
        "other state",
        "no JSON",
    ],
)
def test_36_what_does_not_fit_is_one_error_that_names_it(file, make, message, halfway, tmp_path):
    newest = copied(halfway, tmp_path / "run") / "checkpoints" / "step_0000006"
    sealed(newest, file, make(newest / file))
    with pytest.raises(CheckpointError, match=message) as error:
        tiny_run(tmp_path / "run")
    assert "\n" not in str(error.value) and "step_0000006" in str(error.value)


def test_36_a_checkpoint_of_a_newer_version_is_told_by_its_format(halfway, tmp_path):
    for path in checkpoints.steps(copied(halfway, tmp_path / "run") / "checkpoints"):
        sealed(path, "state.json", b"{}", format=2)
    with pytest.warns(UserWarning, match="format 2, this version of diptych reads 1"), pytest.raises(CheckpointError):
        tiny_run(tmp_path / "run")


VALUES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | st.just({})
)


@given(
    key=st.sampled_from(["step", "elapsed_seconds", "best", "finished", "optimizer", "data", "images"]),
    value=VALUES | st.just("-"),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_36_any_state_is_taken_or_refused(key, value, halfway, tmp_path_factory):
    folder = copied(halfway / "checkpoints" / "step_0000006", tmp_path_factory.mktemp("states") / "step_0000006")
    numbers = json.loads((folder / "state.json").read_text())
    numbers = {k: v for k, v in numbers.items() if k != key} | ({} if value == "-" else {key: value})
    sealed(folder, "state.json", json.dumps(numbers).encode())
    method = tiny_method()
    try:
        optimizer = lars(method, lr=0.5, weight_decay=1e-4)
        state = Keeper(Run(halfway), method, optimizer, tiny_images()).restore(folder)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(state.step, int) and isinstance(state.elapsed_seconds, float)


# ---- 38: asked to stop


def stopped(out: Path, monkeypatch, where: str, number: int) -> None:
    """A run that gets a signal while it loads data, in its forward pass, in a watch or while it saves."""
    photos, method, options = tiny_images(resident="auto" if where != "data" else False), tiny_method(), {}
    calls = 0

    def strike(original, at):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls == at:
                os.kill(os.getpid(), number)
            return original(*arguments, **named)

        return call

    if where == "data":
        monkeypatch.setattr(Squares, "__call__", strike(Squares.__call__, 100))
    elif where == "forward":
        method.compare = strike(method.compare, 6)
    elif where == "watch":
        options["watch"] = [strike(lambda step, encoder: {}, 2)]
    else:
        monkeypatch.setattr(os, "replace", strike(os.replace, 40))
    with pytest.raises(Preempted) as request:
        tiny_run(out, method, photos, **options)
    assert request.value.code == 75
    assert request.value.message.startswith(f"{signal.Signals(number).name}: saved at step ")


@pytest.mark.parametrize("number", SIGNALS, ids=[one.name for one in SIGNALS])
@pytest.mark.parametrize("where", ["data", "forward", "watch", "save"])
def test_38_asked_to_stop_it_saves_and_goes_on_the_same(where, number, quiet, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopped(tmp_path / "run", patch, where, number)
    newest = checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert 0 < checkpoints.read_state(newest)["step"] < TOTAL
    run = tiny_run(tmp_path / "run", watch=[lambda step, encoder: {}] if where == "watch" else ())
    undisturbed = quiet if where != "watch" else tiny_run(tmp_path / "quiet", watch=[lambda step, encoder: {}])
    assert_as_quiet(run, undisturbed)


def test_38_a_second_interrupt_does_not_wait(tmp_path):
    assert in_own_process(struck.interrupted_twice, str(tmp_path / "run")) == 130
    assert time.time() - (tmp_path / "run" / "struck").stat().st_mtime < 10  # the watch would have taken ten minutes
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").name == "step_0000003"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_38_before_training_there_is_nothing_to_save(number, code, tmp_path, monkeypatch):
    handlers = [signal.getsignal(one) for one in SIGNALS]
    monkeypatch.setattr(pretraining, "open_images", lambda *_, **__: os.kill(os.getpid(), number))
    got, _, err = diptych("pretrain", tmp_path / "photos", *SMALL, "--out", tmp_path / "run")
    assert got == code and refusal(err) and not (tmp_path / "run").exists()
    assert [signal.getsignal(one) for one in SIGNALS] == handlers
